"""The prompt language of ComfyUI's CLIP, as words for the LLM and tokens for CLIP."""

from __future__ import annotations

import re

from comfy.sd1_clip import escape_important, token_weights, unescape_important

EMBEDDING = re.compile(r"(^|\s+)embedding:[^\s,<\[]+")


def plain_words(text: str) -> str:
    """What a prompt says, without emphasis and without textual inversions: `a (red:1.3) cat` → `a red cat`.

    ComfyUI's own parser decides what is syntax, so both halves read the same; text without any comes back
    as it is.
    """
    segments = token_weights(escape_important(text), 1.0)
    return "".join(EMBEDDING.sub("", unescape_important(words)) for words, _ in segments)
