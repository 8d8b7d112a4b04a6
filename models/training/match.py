"""The objective *match*: a student with one LLM learns to predict what a teacher with another predicts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cross_adapter import CrossAdapter
from .data import Batch
from .schedule import MIN_SNR, NoiseSchedule, Predict, squared_error


@dataclass(frozen=True)
class Match:
    """w(t) · ‖u(x_t, t, [c; A(c, l)]) - u*(x_t, t, c*)‖² (distillation, Hinton et al. 2015, arXiv 1503.02531).

    u* is the teacher's UNet and c* the context that its own text encoders give it for the same text, such as CLIP's
    tokens fused with RankGen's by the published adapter; each UNet also gets its own CLIP's pooled output, if it takes
    one. Both UNets see the same noised latents, and must predict the same thing, noise or velocity, on the same
    schedule. The latents need not fit the texts.

    teacher: u*; it may be the student's own UNet. Of its result no gradient is taken.
    weighting, gamma: of w(t), see `NoiseSchedule.loss_weights`.
    """

    predict: Predict
    teacher: Predict
    schedule: NoiseSchedule
    adapter: CrossAdapter
    weighting: str = MIN_SNR
    gamma: float = 5.0

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of each example, [b]. The batch needs the teacher's context."""
        assert batch.teacher is not None
        noised = self.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        with torch.no_grad():
            target = self.teacher(noised, batch.timesteps, batch.teacher, batch.teacher_pooled)
        prediction = self.predict(noised, batch.timesteps, batch.context(self.adapter), batch.pooled)
        return self.schedule.loss_weights(batch.timesteps, self.weighting, self.gamma) * squared_error(
            prediction, target
        )
