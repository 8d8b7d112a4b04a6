"""The numbers of a training job."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import WrongTraining
from .schedule import DEBIASED, MIN_SNR

CONSTANT, COSINE = "constant", "cosine"  # what the learning rate does after the warm-up


@dataclass(frozen=True)
class Drops:
    """How often an example is seen without a part of its text. At most one of these happens to it in a step.

    text: both halves read "", as the negative prompt does, which makes classifier-free guidance possible.
    llm:  the LLM's half is left out, as with `strength` 0. An adapter that learns alone learns nothing from that.
    clip: CLIP's half reads "", so that the LLM's half must tell the picture by itself.
    clip_tokens: besides, the UNet sees the fused LLM tokens without CLIP's, among which new ones are hard to find for a
                 UNet that learns from nothing.
    """

    text: float = 0.1
    llm: float = 0.0
    clip: float = 0.1
    clip_tokens: float = 0.0

    def __post_init__(self) -> None:
        rates = self.text, self.llm, self.clip, self.clip_tokens
        if min(rates) < 0 or sum(rates) > 1:
            raise WrongTraining(
                f"The drop rates are {', '.join(f'{rate:g}' for rate in rates)} (text, LLM, CLIP, CLIP's tokens). "
                "None may be negative, and their sum may be at most 1."
            )


@dataclass(frozen=True)
class Settings:
    """How a training runs.

    steps:              updates of the weights.
    batch_size:         examples that are computed at once.
    accumulate:         batches whose gradients are added up for one update.
    noises:             noises and timesteps that an example is seen with in one step. Its text is fused once for all
                        of them (MAR, arXiv 2406.11838), which pays where the UNet is small.
    learning_rate:      of the adapter, after the warm-up.
    unet_learning_rate: of what learns in the UNet.
    weight_decay:       AdamW's (Loshchilov & Hutter, arXiv 1711.05101).
    warm_up:            steps in which the learning rate rises from 0.
    decay:              CONSTANT, or COSINE for half a cosine that ends at 0.
    clip_norm:          largest norm of all gradients together; larger ones are scaled down.
    ema:                decay of the moving average of the weights, which is the result; 0 takes the last weights.
    weighting:          MIN_SNR or DEBIASED, see `NoiseSchedule.loss_weights`.
    gamma:              of min-SNR weighting; 0 turns it off.
    seed:               decides on the noise, the timesteps, the drops and the order of the examples.
    """

    steps: int = 1000
    batch_size: int = 1
    accumulate: int = 1
    noises: int = 1
    learning_rate: float = 1e-4
    unet_learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    warm_up: int = 100
    decay: str = CONSTANT
    clip_norm: float = 1.0
    ema: float = 0.999
    weighting: str = MIN_SNR
    gamma: float = 5.0
    drops: Drops = Drops()
    seed: int = 0

    def __post_init__(self) -> None:
        least_of = {"steps": 0, "batch_size": 1, "accumulate": 1, "noises": 1, "warm_up": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise WrongTraining(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        for name in ("learning_rate", "unet_learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise WrongTraining(f"{name} is {getattr(self, name):g}; it must be above 0.")
        if not 0 <= self.ema < 1 or not self.gamma >= 0 or not self.weight_decay >= 0:
            raise WrongTraining(
                f"ema is {self.ema:g}, gamma {self.gamma:g} and weight_decay {self.weight_decay:g}. ema must be at "
                "least 0 and below 1, the others at least 0."
            )
        for name, options in (("decay", (CONSTANT, COSINE)), ("weighting", (MIN_SNR, DEBIASED))):
            if (value := getattr(self, name)) not in options:
                raise WrongTraining(f'{name} is {value!r}; it can be "{options[0]}" or "{options[1]}".')
