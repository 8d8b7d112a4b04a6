"""A picture from models in training: deterministic DDIM, which is euler's method on the noise levels of these UNets."""

from __future__ import annotations

import torch
from torch import Tensor

from .schedule import NoiseSchedule, Predict


@torch.no_grad()
def sample(
    predict: Predict,
    schedule: NoiseSchedule,
    noise: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    pooled: tuple[Tensor | None, Tensor | None] = (None, None),
    steps: int,
    guidance: float = 7.5,
) -> Tensor:
    """Noise → clean latents, both [1, c, h, w], scaled as the UNet gets them (DDIM, arXiv 2010.02502, equation 12).

    positive, negative: contexts [1, n, d] of the picture's text and of "". They may differ in length.
    pooled:             CLIP's pooled output [1, p] of both, for a UNet that takes it.
    guidance:           of classifier-free guidance (arXiv 2207.12598).
    """
    length = len(schedule.alphas)
    texts = (negative, pooled[1]), (positive, pooled[0])
    timesteps = [
        torch.tensor([t], device=noise.device) for t in range(1, length, max(1, length // steps))[::-1]
    ]
    latents = torch.zeros_like(noise)
    for timestep in timesteps:
        noised = schedule.add_noise(latents, noise, timestep)
        without, with_text = (predict(noised, timestep, *text) for text in texts)
        prediction = without + guidance * (with_text - without)
        latents, noise = schedule.parts(noised, prediction, timestep)
    return latents
