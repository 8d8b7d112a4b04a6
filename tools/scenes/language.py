"""The words of the toy world, and whether a prompt keeps to them."""

from __future__ import annotations

import re
from string import Formatter

from scenes.captions import ALONE, BESIDE, WORDINGS
from scenes.scene import COLOURS, LARGE, MOST, SHAPES, SMALL

WORD = re.compile(r"[^\W\d_]+")
SIGN = re.compile(r"[^\s,;:.]")  # but those between words
LONGEST = 500  # characters of a prompt; the longest caption has half of it


class OutsideTheWorld(ValueError):
    """A prompt says what the demo model has never seen."""


def words_of(*patterns: str) -> set[str]:
    """The words of patterns, without the fields in braces."""
    return {
        word for text in patterns for literal, *_ in Formatter().parse(text) for word in WORD.findall(literal)
    }


SPOKEN = frozenset(
    words_of(
        "and",
        "the",
        "is",
        *(text for one in WORDINGS.values() for text in (one.sentence, one.first, one.second)),
        *(text for both in BESIDE.values() for text in both),
        *ALONE.values(),
    )
    | {*COLOURS, *SHAPES, SMALL, LARGE}
)


def check_prompt(text: str) -> None:
    """Raises: OutsideTheWorld, whose message says what can be drawn."""
    if len(text) > LONGEST:
        raise OutsideTheWorld(f"The prompt has {len(text)} characters; {LONGEST} are the most. {CAN_DRAW}")
    words = WORD.findall(text.lower())
    signs = SIGN.findall(WORD.sub("", text.lower()))
    unknown = [repr(word)[1:-1] for word in dict.fromkeys([*words, *signs]) if word not in SPOKEN]
    if unknown:
        raise OutsideTheWorld(f"It does not know {', '.join(unknown)}. {CAN_DRAW}")
    shapes = set(words) & set(SHAPES)
    if not 1 <= len(shapes) <= MOST:
        raise OutsideTheWorld(f"The prompt names {len(shapes)} shapes. {CAN_DRAW}")
    if len(set(words) & COLOURS.keys()) < len(shapes):
        raise OutsideTheWorld(f"The prompt names fewer colours than shapes. {CAN_DRAW}")


CAN_DRAW = (
    f"The demo model draws one to three different shapes ({', '.join(SHAPES)}), each in a colour of its own "
    f"({', '.join(COLOURS)}), {SMALL} or {LARGE}, to the left of, to the right of, above or below another one "
    "(sizes and places often go wrong). An example: a cross and a square; the cross is white and the square is blue."
)
