"""Which tokens of a caption are which words, for the entity-guided loss."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ...models.errors import WrongTraining
from ...models.training.data import Pair
from ..fused_clip import FusedCLIP, without_llm
from ..prompt import WeightedText

Words = tuple[str, str]  # an attribute and its entity, as they stand in a caption
Span = tuple[int, int]  # of characters


def words_of(text: str) -> list[Words]:
    """`red: ball; blue: cube` → the pairs. Raises: WrongTraining."""
    found = []
    for part in filter(str.strip, re.split(r"[;\n]", text)):
        attribute, colon, entity = (piece.strip() for piece in part.partition(":"))
        if not attribute or not colon or not entity:
            raise WrongTraining(
                f"{part.strip()!r} is no pair of an attribute and its entity. Write them as red: ball; blue: cube."
            )
        found.append((attribute, entity))
    return found


def places_of(fused: FusedCLIP, caption: str, words: Sequence[Words]) -> tuple[Pair, ...]:
    """The places of each pair's tokens in the fused context. A pair whose words cannot be found is left out.

    The words are marked with prompt weights, which both tokenizers hand on to the tokens.
    """
    pairs = [pair for one in words if (pair := nearest(caption, *one))]
    spans = sorted({span for pair in pairs for span in pair})
    if any(end > start for (_, end), (start, _) in pairwise(spans)):
        return ()  # one word is a part of another, and a token has one weight
    marks = {span: float(number) for number, span in enumerate(spans, 2)}
    clip = without_llm(fused.tokenize(marked(caption, marks)))
    if ids_of(clip) != ids_of(without_llm(fused.tokenize(caption, disable_weights=True))):
        return ()  # the marks changed how CLIP cuts the caption into tokens
    chunks = next(iter(clip.values()))  # SDXL's two CLIPs read the same tokens
    weights = [weight for chunk in chunks for _, weight, *_ in chunk]
    of_character = [1.0] * len(caption)
    for (start, end), mark in marks.items():
        of_character[start:end] = [mark] * (end - start)
    weights += [
        weight for _, weight in fused.fusion.tokenize_weighted(WeightedText(caption, tuple(of_character)))
    ]

    def places(span: Span) -> tuple[int, ...]:
        return tuple(place for place, weight in enumerate(weights) if weight == marks[span])

    found = [(places(attribute), places(entity)) for attribute, entity in pairs]
    return tuple((attribute, entity) for attribute, entity in found if attribute and entity)


def nearest(caption: str, attribute: str, entity: str) -> tuple[Span, Span] | None:
    """Where both words stand, at the two places that are nearest to one another; None if one does not stand there."""

    def spans(word: str) -> list[Span]:
        return [match.span() for match in re.finditer(rf"\b{re.escape(word)}\b", caption, re.IGNORECASE)]

    both = [(a, e) for a in spans(attribute) for e in spans(entity) if a != e]
    return min(both, key=lambda pair: abs(pair[0][0] - pair[1][0]), default=None)


def marked(caption: str, marks: dict[Span, float]) -> str:
    """The caption in ComfyUI's syntax, with a weight for each span."""
    text, done = "", 0
    for (start, end), mark in sorted(marks.items()):
        text += f"{escaped(caption[done:start])}({escaped(caption[start:end])}:{mark})"
        done = end
    return text + escaped(caption[done:])


def escaped(text: str) -> str:
    return text.replace("(", r"\(").replace(")", r"\)")


def ids_of(tokens: dict[str, Any]) -> dict[str, Any]:
    """CLIP's tokens without their weights."""
    return {name: [[token for token, *_ in chunk] for chunk in chunks] for name, chunks in tokens.items()}
