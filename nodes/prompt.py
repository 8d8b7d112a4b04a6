"""ComfyUI's prompt language (emphasis, textual inversions) → plain text for the LLM, and a weight for each letter."""

from __future__ import annotations

import re
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
    result = WeightedText("", ())
    for segment, weight in segments:
        part = EMBEDDING.sub(GAP, unescape_important(segment))
        result += WeightedText(part, (weight,) * len(part))
    return close_gaps(result) if GAP in result.text else result


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
