"""Ten prompts on which the demo is tested. Training never shows their pairs of things."""

from __future__ import annotations

from collections.abc import Sequence

from demo_model.data import CELLS, SETS, Captioned
from scenes.painting import Placed
from scenes.scene import Scene
from scenes.verdict import judge

PROMPTS: Sequence[Captioned] = SETS["held-out pairs"]()[:10]


def is_right(found: Sequence[Placed], scene: Scene) -> bool:
    """Whether a picture shows each thing in its colour, and its size and place where they are said."""
    verdict = judge(found, scene, CELLS)
    return verdict.bound and verdict.sized is not False and verdict.placed is not False
