"""A scene as a picture: one value of each colour channel for each cell of a small square grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random

import torch
from torch import Tensor

from scenes.scene import ABOVE, BELOW, COLOURS, LARGE, LEFT, RIGHT, SMALL, Place, Scene, Thing

# Cells along a side of the grid → cells along a side of a small and of a large thing. A large one fills a quarter.
SIZES = {8: {SMALL: 3, LARGE: 4}, 16: {SMALL: 5, LARGE: 8}}


@dataclass(frozen=True)
class Placed:
    """A thing with its size and the cell of its upper left corner. side: how many cells wide and high it is."""

    thing: Thing
    top: int
    left: int
    side: int


@lru_cache
def mask(shape: str, side: int) -> Tensor:
    """The cells that a shape fills, [side, side] of bool."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    if shape == "square":
        return torch.ones(side, side, dtype=torch.bool)
    if shape == "triangle":
        return column <= row
    if shape == "ring":
        from_edge = torch.minimum(torch.minimum(row, column), side - 1 - torch.maximum(row, column))
        return from_edge < max(1, side // 4)
    # The bars of a cross are one cell wide, or two where only that is symmetrical.
    before = (side - 1) // 2
    bars = [(line >= before) & (line < side - before) for line in (row, column)]
    return bars[0] | bars[1]


def place_things(scene: Scene, random: Random, cells: int = 8) -> tuple[Placed, ...]:
    """Draws sizes where none is said, and for each thing a quarter of the grid, so that the scene's place is true.

    A thing lies in its quarter's upper left corner. Places that are few are learnt in minutes; things that may lie
    anywhere take a UNet of this size hours.

    cells: 8 or 16, along a side of the grid.
    """
    half = cells // 2
    while True:
        placed = []
        for thing, quarter in zip(scene.things, random.sample(range(4), len(scene.things)), strict=True):
            size = thing.size or random.choice((SMALL, LARGE))
            sized = Thing(thing.colour, thing.shape, size)
            placed.append(Placed(sized, quarter // 2 * half, quarter % 2 * half, SIZES[cells][size]))
        if scene.place is None or is_clear(scene.place, placed, cells):
            return tuple(placed)


def is_clear(place: Place, placed: list[Placed], cells: int) -> bool:
    """Whether a thing lies wholly on the side: of the other thing's cells, or of the picture's middle."""
    one = placed[place.of]
    other = placed[place.to] if place.to is not None else Placed(one.thing, cells // 2, cells // 2, 0)
    return {
        LEFT: one.left + one.side <= other.left,
        RIGHT: one.left >= other.left + other.side,
        ABOVE: one.top + one.side <= other.top,
        BELOW: one.top >= other.top + other.side,
    }[place.side]


def paint(placed: tuple[Placed, ...], cells: int = 8) -> Tensor:
    """The picture, [3, cells, cells], in -1..1; the ground is 0."""
    picture = torch.zeros(3, cells, cells)
    for one in placed:
        inside = picture[:, one.top : one.top + one.side, one.left : one.left + one.side]
        filled = mask(one.thing.shape, one.side)
        inside[:, filled] = torch.tensor(COLOURS[one.thing.colour])[:, None]
    return picture
