"""Which rows of a padded sequence an encoder must compute, and which computed row stands at each position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

PAD = 0  # the token id of padding


@dataclass(frozen=True)
class Rows:
    """A plan of r rows to compute for a sequence of `length` positions.

    real:      number of tokens that are not padding. They are the first rows, and the only keys of the attention.
    positions: [r], the position in the sequence of each computed row.
    row_of:    [length], the computed row that stands at each position of the result.
    """

    real: int
    positions: Tensor
    row_of: Tensor

    def expand(self, states: Tensor) -> Tensor:
        """States of the computed rows [..., r, w] → states at every position [..., length, w]."""
        return states[..., self.row_of.to(states.device), :]


def pad_together(ids: Sequence[Tensor], rows: Sequence[Rows]) -> tuple[Tensor, Tensor]:
    """Prompts of unequal length as one batch, with padding after each.

    ids: the tokens of each, [n]. rows: the plan of each.
    Returns the ids of all rows, [b, r], and which of them are tokens, [b, r].
    """
    assert [len(own) for own in ids] == [plan.real for plan in rows]
    most = max(len(plan.positions) for plan in rows)
    padded = torch.stack([pad(own, (0, most - len(own)), value=PAD) for own in ids])
    real = torch.tensor([plan.real for plan in rows], device=padded.device)
    return padded, torch.arange(most, device=padded.device) < real[:, None]


def relative_position_bucket(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """T5's bucket for a key position minus a query position (Raffel et al. 2020, section 2.1; bidirectional).

    Half of the buckets are for keys that come after the query. In each half, the first half has one bucket for each
    distance; the others grow logarithmically up to `max_distance`, beyond which all distances share the last.
    """
    half = buckets // 2
    exact = half // 2
    steps = distance.abs()
    # fp32 on purpose: the published model computed the borders of its buckets in fp32.
    growth = torch.log(steps.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    far = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(steps < exact, steps, far) + half * (distance > 0)


def all_rows(real: int, length: int) -> Rows:
    """Computes every position, as the published model does."""
    positions = torch.arange(length)
    return Rows(real, positions, positions)


def real_rows(real: int) -> Rows:
    """Computes the tokens alone, for an adapter that drops the padding."""
    return all_rows(real, real)


def distinct_rows(real: int, length: int, buckets: int = 32, max_distance: int = 128) -> Rows:
    """Computes the tokens, and one padded position for each distinct row of buckets towards the tokens.

    A padded position is never a key. It differs from another padded position only by its buckets towards the tokens,
    so padded positions with equal buckets have equal states in every layer.
    """
    padding = torch.arange(real, length)
    towards_tokens = torch.arange(real) - padding[:, None]
    buckets_of_padding = relative_position_bucket(towards_tokens, buckets, max_distance)
    _, group = buckets_of_padding.unique(dim=0, return_inverse=True)
    groups = int(group.max()) + 1 if len(group) else 0
    first = torch.full((groups,), length).scatter_reduce(0, group, padding, reduce="amin")
    return Rows(real, torch.cat([torch.arange(real), first]), torch.cat([torch.arange(real), real + group]))
