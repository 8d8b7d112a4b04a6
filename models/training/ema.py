"""The moving average of what learns: smoother than the last weights, and usually better."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class EMA:
    """average ← d · average + (1 - d) · weights, after each step.

    d is min(decay, (1 + steps) / (10 + steps)), so that the start is soon forgotten (as in TensorFlow's
    ExponentialMovingAverage). With decay 0 the average is the last weights.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float):
        self.decay = decay
        self.average = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """steps: how many updates the weights have had, this one included."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        for name, weight in weights.items():
            self.average[name].lerp_(weight, 1 - decay)
