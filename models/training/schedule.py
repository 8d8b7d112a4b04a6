"""The noise that a UNet was trained to remove, and what it predicts of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# A UNet: noised latents [b, c, h, w], timesteps [b], context [b, n, d] and CLIP's pooled output [b, p] → its prediction
# [b, c, h, w]. Only SDXL's kinds take a pooled output; for all others it is None.
Predict = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

MIN_SNR, DEBIASED = "min-snr", "debiased"  # how the loss weighs the timesteps
MOST_DEBIASED = 20.0  # SD1.5's own schedule reaches 15
EPS, V = "eps", "v"  # what a UNet predicts: the noise (Ho et al. 2020), or the velocity (Salimans & Ho 2022)


@dataclass(frozen=True)
class NoiseSchedule:
    """x_t = √a_t · x_0 + √(1 - a_t) · e, with a variance of 1 at every timestep (DDPM, arXiv 2006.11239, equation 4).

    x_0 are clean latents, e is the noise, and a_t is the share of the signal's variance (the paper's cumulative alpha).

    alphas:     [T], a_t of each timestep.
    prediction: what the UNet predicts, EPS or V.
    """

    alphas: Tensor
    prediction: str

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Clean latents x_0 and noise e, both [b, c, h, w], at timesteps [b] → x_t."""
        signal, spread = self.factors(timesteps)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a perfect UNet would predict: e, or v = √a_t · e - √(1 - a_t) · x_0 (arXiv 2202.00512, appendix D)."""
        if self.prediction == EPS:
            return noise
        signal, spread = self.factors(timesteps)
        return signal * noise - spread * latents

    def parts(self, noised: Tensor, prediction: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The clean latents and the noise that a prediction implies; for a perfect one, those of `add_noise`."""
        signal, spread = self.factors(timesteps)
        if self.prediction == EPS:
            return (noised - spread * prediction) / signal, prediction
        return signal * noised - spread * prediction, spread * noised + signal * prediction

    def loss_weights(self, timesteps: Tensor, weighting: str, gamma: float) -> Tensor:
        """The weight of each timestep's squared error, [b]. weighting: MIN_SNR or DEBIASED."""
        return (
            self.debiased_weights(timesteps)
            if weighting == DEBIASED
            else self.min_snr_weights(timesteps, gamma)
        )

    def min_snr_weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        """The weight of each timestep's squared error, [b] (Hang et al. 2023, arXiv 2303.09556, section 3.4).

        With SNR = a_t / (1 - a_t), it is min(SNR, gamma) / SNR for EPS and min(SNR, gamma) / (SNR + 1) for V. Both
        give the squared error of x_0 the weight min(SNR, gamma).

        gamma: the paper takes 5; 0 weighs all timesteps alike.
        """
        snr = self.snr(timesteps)
        if gamma == 0:
            return torch.ones_like(snr)
        if self.prediction == EPS:
            # Written so that it is also finite where SNR is 0, at the end of a schedule that reaches pure noise.
            return (gamma / snr).clamp(max=1)
        return snr.clamp(max=gamma) / (snr + 1)

    def debiased_weights(self, timesteps: Tensor) -> Tensor:
        """The weight of each timestep's squared error, [b] (Yu et al. 2023, arXiv 2310.08442, section 4).

        It is 1 / √SNR for EPS and √SNR / (SNR + 1) for V, so the squared error of x_0 has the weight √SNR. This says
        more than `min_snr_weights` about very noisy latents, in which is decided what the picture shows.
        """
        root = self.snr(timesteps).sqrt()
        if self.prediction == EPS:
            # At the end of a schedule that reaches pure noise, SNR is 0.
            return 1 / root.clamp(min=1 / MOST_DEBIASED)
        return root / (root.square() + 1)

    def snr(self, timesteps: Tensor) -> Tensor:
        """The ratio of the signal's variance to that of the noise, a_t / (1 - a_t): [b]."""
        alphas = self.alphas.to(timesteps.device)[timesteps]
        return alphas / (1 - alphas)

    def factors(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """√a_t and √(1 - a_t), each [b, 1, 1, 1]."""
        alphas = self.alphas.to(timesteps.device)[timesteps, None, None, None]
        return alphas.sqrt(), (1 - alphas).sqrt()


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean squared error of each row, in fp32: [b, …], [b, …] → [b]."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)
