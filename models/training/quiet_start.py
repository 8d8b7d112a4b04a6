"""The objective *quiet start*: a new adapter first learns to change nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cross_adapter import CrossAdapter
from .data import Batch
from .schedule import NoiseSchedule, Predict, squared_error


@dataclass(frozen=True)
class QuietStart:
    """‖u(x_t, t, [c; A(c, l)]) - u(x_t, t, c)‖² / ‖u(x_t, t, c)‖², the relative change of the prediction, squared.

    An adapter of zeros does not leave the UNet's prediction as it is, because its tokens take part in the softmax of
    the cross-attention. So the adapter is fitted to the prediction on CLIP's tokens alone before it learns anything
    else, and training starts from the pictures that the checkpoint makes without it.
    """

    predict: Predict
    schedule: NoiseSchedule
    adapter: CrossAdapter

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of each example, [b]."""
        noised = self.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        with torch.no_grad():
            target = self.predict(noised, batch.timesteps, batch.clip_context, batch.pooled)
        prediction = self.predict(noised, batch.timesteps, batch.context(self.adapter), batch.pooled)
        return squared_error(prediction, target) / squared_error(target, torch.zeros_like(target))
