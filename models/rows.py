"""Which of a padded sequence's rows must be computed, and where each stands in the result."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PAD = 0


@dataclass(frozen=True)
class Rows:
    """real: number of tokens that are no padding; the first rows are theirs, and they are the only keys.
    positions [r]: the position in the sequence of each computed row.
    source [length]: which computed row stands at each position of the result.
    """

    real: int
    positions: Tensor
    source: Tensor

    def fill(self, ids: Tensor) -> Tensor:
        """Token ids [real] → ids of all computed rows [r]: padding after the tokens."""
        return torch.nn.functional.pad(ids, (0, len(self.positions) - self.real), value=PAD)

    def spread(self, states: Tensor) -> Tensor:
        """States of the computed rows [..., r, w] → states at every position [..., length, w]."""
        return states[..., self.source.to(states.device), :]


def relative_position_bucket(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """T5's bucket for key position minus query position (Raffel et al. 2020, section 2.1; bidirectional).

    Half the buckets are for keys that come after. In each half the first half is one bucket a distance, the
    rest grow logarithmically up to `max_distance`, beyond which all share the last.
    """
    half = buckets // 2
    exact = half // 2
    steps = distance.abs()
    # fp32 on purpose: the published model found its bucket borders in fp32.
    growth = torch.log(steps.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    far = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(steps < exact, steps, far) + half * (distance > 0)


def all_rows(real: int, length: int) -> Rows:
    """Every position is computed, as the published model does."""
    positions = torch.arange(length)
    return Rows(real, positions, positions)


def real_rows(real: int) -> Rows:
    """Only the tokens, for an adapter that drops the padding."""
    return all_rows(real, real)


def distinct_rows(real: int, length: int, buckets: int = 32, max_distance: int = 128) -> Rows:
    """The tokens, and one padded position for each distinct row of buckets towards the tokens.

    A padded position is never a key, so its row of buckets is all that sets it apart from other padding.
    """
    padding = torch.arange(real, length)
    towards = torch.arange(real) - padding[:, None]
    _, kind = relative_position_bucket(towards, buckets, max_distance).unique(dim=0, return_inverse=True)
    kinds = int(kind.max()) + 1 if len(kind) else 0
    first = torch.full((kinds,), length).scatter_reduce(0, kind, padding, reduce="amin")
    return Rows(real, torch.cat([torch.arange(real), first]), torch.cat([torch.arange(real), real + kind]))
