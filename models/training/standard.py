"""The LLM's states in a scale that an adapter learns from, and the adapter in the scale of its file.

The last states of many LLMs have a large mean that all tokens share, and a few dimensions that are ten times as large
as most. Fed as they are, an adapter hardly learns: nearly every gradient points along them. So it learns from states
with mean 0 and deviation 1 in each dimension, and its first layer is converted before and after, which leaves what it
computes as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .data import EncodedText

MOST = 2000  # captions whose states are looked at
WEIGHT, BIAS = "llm_proj.weight", "llm_proj.bias"


@dataclass(frozen=True)
class Standard:
    """mean and deviation of each dimension of the LLM's states, [w], in fp32."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, texts: Iterable[EncodedText]) -> Standard:
        """Over all rows that are computed for the texts."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for text in texts:
            states = text.llm.states.double()
            count += len(states)
            total, squares = total + states.sum(0), squares + states.square().sum(0)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        # A dimension that never changes says nothing, whatever its scale.
        deviation = torch.where(deviation > 1e-6 * deviation.max(), deviation, 1.0)
        return cls(mean.float(), deviation.float())

    def apply(self, text: EncodedText) -> EncodedText:
        """The text with standardised states."""
        states = (text.llm.states.float() - self.mean) / self.deviation
        return replace(text, llm=replace(text.llm, states=states))

    def into(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An adapter's weights → those that give on standardised states what these give on the LLM's own."""
        weight, mean, deviation = weights[WEIGHT].float(), *self.on(weights)
        return {**weights, WEIGHT: weight * deviation, BIAS: weights[BIAS].float() + weight @ mean}

    def out_of(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of `into`."""
        mean, deviation = self.on(weights)
        weight = weights[WEIGHT] / deviation
        return {**weights, WEIGHT: weight, BIAS: weights[BIAS] - weight @ mean}

    def on(self, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        device = weights[WEIGHT].device
        return self.mean.to(device), self.deviation.to(device)


def some(count: int) -> range:
    """Which of `count` captions are looked at: at most `MOST`, evenly spread."""
    return range(0, count, max(1, -(-count // MOST)))
