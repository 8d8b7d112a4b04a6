"""What the demo's picture shows: the LLM's half on the left, CLIP alone on the right, both of the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from demo_model.data import CELLS
from scenes.detector import find_things
from scenes.painting import Placed

SIDE, GAP = 512, 16  # pixels, as in graph.json: of a half, and between the two
SIZE = 2 * SIDE + GAP, SIDE


def cells_of(path: Path) -> Tensor:
    """Both halves as [2, 3, cells, cells] in -1..1."""
    with Image.open(path) as picture:
        pixels = torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32))
    halves = torch.stack([pixels[:, :SIDE], pixels[:, SIDE + GAP :]]).permute(0, 3, 1, 2)
    return torch.nn.functional.avg_pool2d(halves, SIDE // CELLS) / 127.5 - 1


def said_of(things: Sequence[Placed]) -> str:
    """The things in words, such as "small red ring (top left)"."""
    return ", ".join(map(say, things)) or "nothing"


def say(one: Placed) -> str:
    down = "top" if one.top + one.side / 2 < CELLS / 2 else "bottom"
    across = "left" if one.left + one.side / 2 < CELLS / 2 else "right"
    return f"{one.thing.size} {one.thing.colour} {one.thing.shape} ({down} {across})"


def found_in(path: Path) -> list[list[Placed]]:
    """What the detector finds in each half."""
    return find_things(cells_of(path))
