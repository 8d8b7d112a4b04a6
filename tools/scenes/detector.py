"""Finds the things in a picture, also where it is noisy or a little wrong."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from scenes.painting import SIZES, Placed, mask
from scenes.scene import COLOURS, MOST, SHAPES, Thing

LEAST = 0.2  # share of a thing's energy that must be explained: three of five cells, or all cells at 0.6 of their value


def find_things(pictures: Tensor) -> list[list[Placed]]:
    """Pictures [b, 3, cells, cells] in -1..1 → the things in each, the clearest first; at most four.

    Greedy matching pursuit over all shapes, sizes, colours and places. What a thing explains of a picture is how much
    of the squared difference to the empty ground goes when it is painted there. In a clean picture whose things differ
    in colour this is largest for a whole thing at its own place: a smaller shape inside it explains less, and each cell
    of another colour or of the ground costs more than it gains. So the result is exact there.
    """
    cells = pictures.shape[-1]
    masks, places = templates(cells)
    palette = torch.tensor(list(COLOURS.values()))
    energy = palette.square().sum(1)  # of one cell, [colours]
    # |v|² - |v - c|² for each cell v and colour c.
    explained = 2 * pictures.float().flatten(2).transpose(1, 2) @ palette.T - energy  # b cells colours
    found: list[list[Placed]] = [[] for _ in pictures]
    for _ in range(MOST + 1):
        gain = torch.einsum("tn,bnc->btc", masks, explained)
        best = gain.flatten(1).argmax(1)
        template, colour = best // len(palette), best % len(palette)
        enough = (
            gain.flatten(1).gather(1, best[:, None])[:, 0] > LEAST * masks[template].sum(1) * energy[colour]
        )
        for row in enough.nonzero()[:, 0].tolist():
            shape, size, top, left, side = places[template[row]]
            thing = Thing(list(COLOURS)[colour[row]], shape, size)
            found[row].append(Placed(thing, top, left, side))
            explained[row, masks[template[row]] > 0] = -energy  # each cell belongs to one thing
    return found


@lru_cache
def templates(cells: int) -> tuple[Tensor, list[tuple[str, str, int, int, int]]]:
    """All shapes in all sizes at all places: their cells [templates, cells²] of 0 and 1, and what they are."""
    masks, places = [], []
    for shape in SHAPES:
        for size, side in SIZES[cells].items():
            for top in range(cells - side + 1):
                for left in range(cells - side + 1):
                    grid = torch.zeros(cells, cells)
                    grid[top : top + side, left : left + side] = mask(shape, side).float()
                    masks.append(grid.flatten())
                    places.append((shape, size, top, left, side))
    return torch.stack(masks), places
