"""The prompt language of ComfyUI's CLIP, as words and weights for the LLM."""

from __future__ import annotations

import re
from dataclasses import dataclass

from comfy.sd1_clip import escape_important, token_weights, unescape_important

VECTOR = "(embedding)"  # stands for a textual inversion's where words are shown: it is none
EMBEDDING = re.compile(r"(?:^|(?<=\s))embedding:[^\s,<\[]+")
GAP = "\N{OBJECT REPLACEMENT CHARACTER}"
AROUND_GAP = re.compile(rf"[\s,]*{GAP}[\s,{GAP}]*")


@dataclass(frozen=True)
class Words:
    """text: what the prompt says. weights: the emphasis on each of its characters."""

    text: str
    weights: tuple[float, ...]

    def __add__(self, other: Words) -> Words:
        return Words(self.text + other.text, self.weights + other.weights)

    def __getitem__(self, part: slice) -> Words:
        return Words(self.text[part], self.weights[part])


def words_of(text: str, *, emphasis: bool = True) -> Words:
    """A prompt without emphasis syntax and without textual inversions: `a (red:1.3) cat` → `a red cat`.

    ComfyUI's own parser decides what is emphasis, so both halves read the same; text without any syntax comes
    back as it is. With `emphasis` off, parentheses are words.
    """
    segments = token_weights(escape_important(text), 1.0) if emphasis else [(escape_important(text), 1.0)]
    words = Words("", ())
    for segment, weight in segments:
        part = EMBEDDING.sub(GAP, unescape_important(segment))
        words += Words(part, (weight,) * len(part))
    return close_gaps(words) if GAP in words.text else words


def close_gaps(words: Words) -> Words:
    """What is left when textual inversions are taken out, without a hole in the sentence."""
    closed, end = Words("", ()), 0
    for around in AROUND_GAP.finditer(words.text):
        seam = ", " if "," in around[0] else " "
        closed += words[end : around.start()] + Words(seam, (1.0,) * len(seam))
        end = around.end()
    closed += words[end:]
    start = len(closed.text) - len(closed.text.lstrip(" ,"))
    return closed[start : max(start, len(closed.text.rstrip(" ,")))]
