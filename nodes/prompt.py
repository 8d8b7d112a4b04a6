"""The prompt language of ComfyUI's CLIP, as words for the LLM."""

from __future__ import annotations

import re

from comfy.sd1_clip import escape_important, token_weights, unescape_important

EMBEDDING = re.compile(r"(?:^|(?<=\s))embedding:[^\s,<\[]+")
GAP = "\N{OBJECT REPLACEMENT CHARACTER}"
AROUND_GAP = re.compile(rf"[\s,]*{GAP}[\s,{GAP}]*")


def plain_words(text: str) -> str:
    """What a prompt says, without emphasis and without textual inversions: `a (red:1.3) cat` → `a red cat`.

    ComfyUI's own parser decides what is emphasis, so both halves read the same; text without any syntax comes
    back as it is.
    """
    segments = token_weights(escape_important(text), 1.0)
    words = "".join(EMBEDDING.sub(GAP, unescape_important(segment)) for segment, _ in segments)
    if GAP not in words:
        return words
    return AROUND_GAP.sub(lambda around: ", " if "," in around[0] else " ", words).strip(" ,")
