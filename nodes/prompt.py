"""A prompt with syntax (ComfyUI's or A1111's) → plain text for the LLM, and a weight for each of its characters."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from comfy.sd1_clip import escape_important, token_weights, unescape_important

EMBEDDING_LABEL = "(embedding)"  # shown to people in place of a textual inversion, which has no text
EMBEDDING = re.compile(r"(?:^|(?<=\s))embedding:[^\s,<\[]+")
GAP = "\N{OBJECT REPLACEMENT CHARACTER}"
AROUND_GAP = re.compile(rf"[\s,]*{GAP}[\s,{GAP}]*")


@dataclass(frozen=True)
class WeightedText:
    """text: what the LLM reads. weights: the prompt weight (ComfyUI's emphasis) of each of its characters."""

    text: str
    weights: tuple[float, ...]

    def __add__(self, other: WeightedText) -> WeightedText:
        return WeightedText(self.text + other.text, self.weights + other.weights)

    def __getitem__(self, part: slice) -> WeightedText:
        return WeightedText(self.text[part], self.weights[part])


def weighted_text(prompt: str, *, emphasis: bool = True) -> WeightedText:
    """Removes emphasis syntax and textual inversions from a prompt: `a (red:1.3) cat` → `a red cat`.

    ComfyUI's own parser decides what is emphasis, so that CLIP and the LLM read the same. Text without any syntax
    stays as it is.

    emphasis: False takes parentheses as ordinary characters.
    """
    segments = token_weights(escape_important(prompt), 1.0) if emphasis else [(escape_important(prompt), 1.0)]
    return without_embeddings((unescape_important(segment), weight) for segment, weight in segments)


# A1111's grammar and compel's signs, as packs use them that parse a prompt themselves.
A1111 = re.compile(
    r"""
    (?P<escaped> \\[()\[\]\\] )
    | (?P<open> [(\[] )
    | :\s* (?P<factor> [+-]?(?:\d+\.?\d*|\.\d+) ) \s*\)
    | (?P<close> [)\]] ) (?P<group_signs> (?:\++|-+)(?!\w) )?
    | (?P<new_chunk> \s*,?\s* \bBREAK\b \s*,?\s* )
    | (?P<word> [^\s()\[\],:\\]*\w ) (?P<word_signs> \++|-{2,} ) (?=[\s,)\]]|$)
    | [^\s()\[\],:\\]+
    | .
    """,
    re.DOTALL | re.VERBOSE,
)
A1111_EMBEDDING = re.compile(r"(?:^|(?<=[\s,(\[]))embedding:[^\s,:()\[\]]+")
BRACKETS = {"(": 1.1, "[": 1 / 1.1}  # the factors of a pair
SIGNS = {"+": 1.1, "-": 0.9}


def a1111_text(prompt: str) -> WeightedText:
    """Removes A1111's syntax from a prompt: `[a] (red:1.3) ((cat)) BREAK mat++` → `a red cat, mat`.

    Round brackets multiply the weight by 1.1, square ones divide by it, `(x:w)` multiplies by w, each + by 1.1 and each
    - by 0.9. BREAK becomes a comma. Schedules (`[a:b:0.5]`) and AND do not come here: the pack that understands them
    asks for the tokens of each text that they stand for.
    """
    pieces: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []  # brackets, each with the number of pieces before it

    def multiply(start: int, factor: float) -> None:
        pieces[start:] = [(text, weight * factor) for text, weight in pieces[start:]]

    for match in A1111.finditer(A1111_EMBEDDING.sub(GAP, prompt)):
        if match["open"]:
            opened.append((match["open"], len(pieces)))
        elif match["factor"] and opened and opened[-1][0] == "(":
            multiply(opened.pop()[1], float(match["factor"]))
        elif match["close"] and opened:
            bracket, start = opened.pop()
            multiply(start, factor_of(match["group_signs"]) if match["group_signs"] else BRACKETS[bracket])
        elif match["new_chunk"]:
            pieces.append((", ", 1.0))
        elif match["word"]:
            pieces.append((match["word"], factor_of(match["word_signs"])))
        else:
            pieces.append((match["escaped"][1:] if match["escaped"] else match[0], 1.0))
    for bracket, start in opened:  # A1111 closes them at the end
        multiply(start, BRACKETS[bracket])
    return without_embeddings(pieces)


def factor_of(signs: str) -> float:
    """compel's `++` → 1.21."""
    return SIGNS[signs[0]] ** len(signs)


def without_embeddings(pieces: Iterable[tuple[str, float]]) -> WeightedText:
    """Joins pieces of text and their weights, and removes textual inversions."""
    text = WeightedText("", ())
    for piece, weight in pieces:
        part = EMBEDDING.sub(GAP, piece)
        text += WeightedText(part, (weight,) * len(part))
    return close_gaps(text) if GAP in text.text else text


def close_gaps(text: WeightedText) -> WeightedText:
    """Joins what is left around removed textual inversions, so that the sentence has no hole."""
    closed, end = WeightedText("", ()), 0
    for around in AROUND_GAP.finditer(text.text):
        seam = ", " if "," in around[0] else " "
        closed += text[end : around.start()] + WeightedText(seam, (1.0,) * len(seam))
        end = around.end()
    closed += text[end:]
    start = len(closed.text) - len(closed.text.lstrip(" ,"))
    return closed[start : max(start, len(closed.text.rstrip(" ,")))]
