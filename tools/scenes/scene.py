"""What a caption says: one to three things, and where one of them is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from random import Random

# Red, green and blue in -1..1. The ground is grey, 0, so that every colour differs from it equally.
COLOURS = {
    "red": (1.0, -1.0, -1.0),
    "green": (-1.0, 1.0, -1.0),
    "blue": (-1.0, -1.0, 1.0),
    "yellow": (1.0, 1.0, -1.0),
    "purple": (1.0, -1.0, 1.0),
    "white": (1.0, 1.0, 1.0),
}
SHAPES = ("square", "ring", "cross", "triangle")
SMALL, LARGE = "small", "large"
MOST = 3  # things in a scene

LEFT, RIGHT, ABOVE, BELOW = "left", "right", "above", "below"
SIDES = (LEFT, RIGHT, ABOVE, BELOW)


@dataclass(frozen=True)
class Thing:
    """size: SMALL or LARGE, or None where the caption says nothing about it."""

    colour: str
    shape: str
    size: str | None = None

    @property
    def kind(self) -> tuple[str, str]:
        """What must be bound together: the colour and the shape."""
        return self.colour, self.shape


@dataclass(frozen=True)
class Place:
    """Says on which side thing number `of` is: of thing number `to`, or of the picture if that is None."""

    of: int
    side: str
    to: int | None = None


@dataclass(frozen=True)
class Scene:
    """No two things have the same colour or the same shape, so a noun names one thing, and swapped colours show."""

    things: tuple[Thing, ...]
    place: Place | None = None

    @property
    def pairs(self) -> set[frozenset[tuple[str, str]]]:
        """The kinds of each two things of the scene."""
        return {frozenset(pair) for pair in combinations([thing.kind for thing in self.things], 2)}


def draw_scene(
    random: Random, counts: tuple[int, ...] = (1, 2, 3), allowed: Callable[[Scene], bool] = lambda _: True
) -> Scene:
    """Draws a scene that is allowed.

    counts: how many things it may have; a number that stands there twice comes twice as often.
    """
    while True:
        count = random.choice(counts)
        colours, shapes = random.sample(list(COLOURS), count), random.sample(SHAPES, count)
        # Half of the things say no size, and half of the scenes no place.
        sizes = [random.choice((SMALL, LARGE, None, None)) for _ in range(count)]
        things = tuple(Thing(*one) for one in zip(colours, shapes, sizes, strict=True))
        scene = Scene(things, draw_place(random, count) if random.random() < 0.5 else None)
        if allowed(scene):
            return scene


def draw_place(random: Random, count: int) -> Place:
    if count == 1:
        return Place(0, random.choice(SIDES))
    of, to = random.sample(range(count), 2)
    return Place(of, random.choice(SIDES), to)
