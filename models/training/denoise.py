"""The objective *denoise*: the UNet's own training, with the fused context. This is how LLM4GEN was trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..cross_adapter import CrossAdapter
from .data import Batch
from .schedule import MIN_SNR, NoiseSchedule, Predict, squared_error


@dataclass(frozen=True)
class Denoise:
    """w(t) · ‖u(x_t, t, [c; A(c, l)]) - target‖² (LLM4GEN, arXiv 2407.00737; DDPM, arXiv 2006.11239, equation 14).

    u is the UNet, c are CLIP's tokens, A(c, l) is the Cross-Adapter's fusion of them with the LLM's tokens l, and the
    target is the noise or the velocity, as the UNet predicts it.

    weighting, gamma: of w(t), see `NoiseSchedule.loss_weights`.
    """

    predict: Predict
    schedule: NoiseSchedule
    adapter: CrossAdapter
    weighting: str = MIN_SNR
    gamma: float = 5.0

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of each example, [b]."""
        noised = self.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        target = self.schedule.target(batch.latents, batch.noise, batch.timesteps)
        prediction = self.predict(noised, batch.timesteps, batch.context(self.adapter), batch.pooled)
        return self.schedule.loss_weights(batch.timesteps, self.weighting, self.gamma) * squared_error(
            prediction, target
        )
