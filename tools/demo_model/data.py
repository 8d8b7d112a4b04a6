"""The scenes with their captions that the demo model learns from, and those that it is tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import torch
from torch import Tensor

from demo_model.parts import CORE_SCALE, SCALE
from scenes.captions import WORDINGS, caption
from scenes.held_out import HELD_OUT_WORDINGS, TRAINING_WORDINGS, has_new_pair, is_for_training
from scenes.painting import paint, place_things
from scenes.scene import Scene, draw_scene

CELLS = 8
PICTURES = 64  # of each caption; each has other places, and other sizes where the caption says none


@dataclass(frozen=True)
class Captioned:
    scene: Scene
    text: str


def draw_captions(
    seed: int, count: int, things: tuple[int, ...], allowed: Callable[[Scene], bool], wordings: Sequence[str]
) -> list[Captioned]:
    """things: how many a scene may have. allowed: whether a scene may be used."""
    random = Random(seed)
    found = []
    for _ in range(count):
        scene, wording = draw_scene(random, things, allowed), random.choice(wordings)
        found.append(Captioned(scene, caption(scene, WORDINGS[wording], random)))
    return found


TRAINING = "training"
# Name → what makes the captions. All but the first are for tests.
SETS = {
    TRAINING: partial(draw_captions, 1, 3000, (1, 2, 2, 2, 2, 2, 3), is_for_training, TRAINING_WORDINGS),
    "seen pairs": partial(draw_captions, 2, 300, (2,), is_for_training, TRAINING_WORDINGS),
    "held-out pairs": partial(draw_captions, 3, 300, (2,), has_new_pair, TRAINING_WORDINGS),
    "held-out wordings": partial(draw_captions, 4, 300, (2,), is_for_training, HELD_OUT_WORDINGS),
}


class Pictures(Sequence[Tensor]):
    """Latents [4, cells, cells] as the VAE gives them, painted when they are asked for: `PICTURES` of each caption.

    The picture at an index is always the same.
    """

    def __init__(self, captions: Sequence[Captioned]):
        self.captions = captions

    def __len__(self) -> int:
        return PICTURES * len(self.captions)

    def __getitem__(self, index):
        scene = self.captions[index % len(self.captions)].scene
        return latent_of(paint(place_things(scene, Random(index), CELLS), CELLS))


def latent_of(picture: Tensor) -> Tensor:
    """A picture [3, cells, cells] in -1..1 → the latent that `parts.vae_weights` would give for its tiles."""
    return torch.cat([picture, picture.mean(0, keepdim=True)]) * (SCALE / CORE_SCALE)
