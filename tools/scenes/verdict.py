"""Whether a picture shows what its caption says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scenes.painting import Placed
from scenes.scene import ABOVE, BELOW, LEFT, RIGHT, Place, Scene


@dataclass(frozen=True)
class Verdict:
    """colours, shapes: these are in the picture, each as often as the caption says, and no others.
    bound: each shape has its own colour.
    sized: besides, each thing has the size that is said; None if none is said.
    placed: besides, the place is as said; None if none is said.
    """

    colours: bool
    shapes: bool
    bound: bool
    sized: bool | None
    placed: bool | None


def judge(found: Sequence[Placed], scene: Scene, cells: int) -> Verdict:
    """found: the things in the picture. cells: along a side of the picture."""
    asked = [thing.kind for thing in scene.things]
    kinds = [one.thing.kind for one in found]
    bound = sorted(kinds) == sorted(asked)
    sized = placed = None
    if any(thing.size for thing in scene.things):
        sized = bound and all(
            thing.size in (None, found[kinds.index(thing.kind)].thing.size) for thing in scene.things
        )
    if scene.place is not None:
        placed = bound and lies_there(scene.place, [found[kinds.index(kind)] for kind in asked], cells)
    return Verdict(
        colours=sorted(colour for colour, _ in kinds) == sorted(colour for colour, _ in asked),
        shapes=sorted(shape for _, shape in kinds) == sorted(shape for _, shape in asked),
        bound=bound,
        sized=sized,
        placed=placed,
    )


def lies_there(place: Place, things: Sequence[Placed], cells: int) -> bool:
    """Whether the middle of one thing is on the side of the other's middle, or of the picture's."""
    across, down = middle(things[place.of])
    to_across, to_down = (cells / 2, cells / 2) if place.to is None else middle(things[place.to])
    return {
        LEFT: across < to_across,
        RIGHT: across > to_across,
        ABOVE: down < to_down,
        BELOW: down > to_down,
    }[place.side]


def middle(one: Placed) -> tuple[float, float]:
    return one.left + one.side / 2, one.top + one.side / 2
