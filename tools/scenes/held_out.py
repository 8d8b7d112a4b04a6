"""What training never shows, so that a test can tell understanding from memory."""

from __future__ import annotations

from itertools import combinations, product
from random import Random

from scenes.captions import WORDINGS
from scenes.scene import COLOURS, SHAPES, Scene

KINDS = list(product(COLOURS, SHAPES))
PAIRS = [
    frozenset(pair)
    for pair in combinations(KINDS, 2)
    if pair[0][0] != pair[1][0] and pair[0][1] != pair[1][1]
]
# A sixth of the pairs of things: they never stand in one training scene, though each thing does with others.
HELD_OUT_PAIRS = frozenset(Random(1).sample(PAIRS, len(PAIRS) // 6))
# One with the colour after its noun, one with all colours after all nouns, one with the colour first.
HELD_OUT_WORDINGS = ("in colour", "nouns, then colours reversed", "colour is that of")
TRAINING_WORDINGS = tuple(name for name in WORDINGS if name not in HELD_OUT_WORDINGS)


def is_for_training(scene: Scene) -> bool:
    """Whether no two things of the scene are a pair that is held out."""
    return not scene.pairs & HELD_OUT_PAIRS


def has_new_pair(scene: Scene) -> bool:
    """Whether all pairs of the scene are held out. A scene of one thing has none."""
    return bool(scene.pairs) and scene.pairs <= HELD_OUT_PAIRS
