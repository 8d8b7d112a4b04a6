"""What people see while a training runs: bar, loss, speed, time left, and a picture that the models draw by then."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from statistics import fmean
from typing import Any

import latent_preview
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...models.cross_adapter import CrossAdapter
from ...models.errors import words_of
from ...models.training.data import Drawn, EncodedText, TrainingData, batches
from ...models.training.drawing import generator
from ...models.training.sampling import sample
from ...models.training.trainer import Trainer
from .. import host, server
from .shortage import parts_of
from .unet import UNetInTraining

log = logging.getLogger(__name__)

RECENT = 100  # steps whose mean loss and speed are shown
STEPS = 20  # of a preview's sampler
PERIOD = 0.5  # seconds between two texts for the browser


def shown(what: str, trainer: Trainer) -> Callable[..., None]:
    """Shows a training's steps in the node and in the console. Cancel ends it at the next step.

    Returns a function to call after each step, with a picture for the node if there is one.
    """
    total = trainer.settings.steps
    step = host.progress(total, trainer.steps)
    bar = tqdm(total=total, initial=trainer.steps, desc=f"LLM4GEN {what}")
    times = deque([time.monotonic()], maxlen=RECENT + 1)
    next_text = 0.0

    def show(picture: Any = None) -> None:
        nonlocal next_text
        times.append(time.monotonic())
        loss = fmean(trainer.losses[-RECENT:])
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        bar.update(1)
        is_last = trainer.steps >= total
        if is_last:
            bar.close()
        if is_last or times[-1] >= next_text:
            next_text = times[-1] + PERIOD
            seconds = (times[-1] - times[0]) / (len(times) - 1)
            server.show_text(f"{what}: {described(trainer.steps, total, loss, seconds)}{parts_of(trainer)}")
        step(picture)

    return show


def described(steps: int, total: int, loss: float, seconds: float) -> str:
    """A training's state in words. loss: the mean of the last steps. seconds: of a step."""
    left = tqdm.format_interval((total - steps) * seconds)
    return f"step {steps} of {total}\nmean loss {loss:.4f}\n{1 / max(seconds, 1e-6):.3g} steps/s, {left} left"


class Preview:
    """Draws the first caption of a training set with the models as they are at that step, always from the same noise.

    The picture is made of the latents as KSampler's previews are: in the way that the user chose for those, or else
    with the colours that each channel stands for. A VAE would need memory beside the models that learn.
    """

    def __init__(self, unet: UNetInTraining, adapter: CrossAdapter, data: TrainingData, device: torch.device):
        self.unet, self.adapter, self.device = unet, adapter, device
        first = data.examples[0]
        self.texts = first.text, data.empty
        self.noise = torch.randn(first.latent.shape, generator=generator("preview"))[None].to(device)
        format_ = unet.patcher.model.latent_format
        # Made before the first step, so that a previewer whose file is damaged does not end a long training.
        self.previewer = latent_preview.get_previewer(device, format_) or latent_preview.Latent2RGBPreviewer(
            format_.latent_rgb_factors, format_.latent_rgb_factors_bias, format_.latent_rgb_factors_reshape
        )

    def latents(self) -> Tensor:
        """[1, c, h, w], scaled as the UNet gets them. Cancel ends it at once, since ComfyUI's layers look for it."""
        with torch.no_grad():
            (positive, first), (negative, second) = map(self.read, self.texts)
        return sample(
            self.unet.predict,
            self.unet.schedule,
            self.noise,
            positive,
            negative,
            pooled=(first, second),
            steps=STEPS,
        )

    def picture(self) -> Any:
        """What ComfyUI's progress bar takes as a preview; None if memory is short, which does not end a training."""
        try:
            with torch.no_grad():
                return self.previewer.decode_latent_to_preview_image("JPEG", self.latents())
        except Exception as error:
            if not host.is_out_of_memory(error):
                raise
            log.warning(
                "There is not enough memory for a preview (%s). The training goes on without it.",
                words_of(error),
            )
            return None

    def read(self, text: EncodedText) -> tuple[Tensor, Tensor | None]:
        """CLIP's tokens and the fused LLM tokens, [1, n + l, d], and CLIP's pooled output [1, p] if there is one."""
        (noise,) = self.noise
        drawn = Drawn(noise, text.clip, text.llm, None, noise, 0, pooled=text.pooled)
        (batch,) = batches([drawn], self.device)
        return batch.context(self.adapter), batch.pooled
