"""The processes that train together: each computes a share of every batch, and all make the same update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class Ranks(Protocol):
    """number: of this process, from 0. count: of all. add: adds tensors up over all processes, in place."""

    number: int
    count: int

    def add(self, tensors: Sequence[Tensor]) -> None: ...


class Alone:
    """One process."""

    number, count = 0, 1

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor is the sum already."""


ALONE = Alone()


def add_gradients(ranks: Ranks, weights: Sequence[nn.Parameter]) -> None:
    """Gives every process the sum of all processes' gradients.

    A weight has no gradient where no part of a process's share needed it, such as an adapter whose LLM's half was left
    out. It counts as zeros then, unless all processes lack it.
    """
    if ranks.count == 1:
        return
    having = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.float32)
    having = having.to(weights[0].device)
    ranks.add([having])
    summed = []
    for weight, owners in zip(weights, having.tolist(), strict=True):
        if owners:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            summed.append(weight.grad)
    ranks.add(summed)
