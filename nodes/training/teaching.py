"""What a teacher's CLIP makes of the captions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from .. import host
from ..fused_clip import FusedCLIP
from .reading import Reader, half, ordinary, read_all


@dataclass(frozen=True)
class Context:
    """What a CLIP gives a UNet for a text: states [m, c], and the pooled output [p] if it has one."""

    states: Tensor
    pooled: Tensor | None


def contexts(clip: Any, texts: Iterable[str]) -> dict[str, Context]:
    """For each text what a CLIP gives a UNet, such as the fused tokens of LLM4GEN CLIP. Shows progress."""
    texts = list(texts)
    return read_all(partial(read, clip), texts, host.progress(len(texts)))


def read(clip: Any, texts: Sequence[str]) -> Iterator[tuple[str, Context]]:
    for text, (states, pooled) in encoded(clip, texts):
        yield text, Context(ordinary(half(states[0])), None if pooled is None else ordinary(pooled[0]))


def encoded(clip: Any, texts: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Each text with its states and pooled output. The LLM of LLM4GEN CLIP reads in batches, see `Reader`."""
    if isinstance(clip, FusedCLIP) and clip.fusion.strength != 0:
        yield from Reader(clip).encoded(texts)
        return
    for text in texts:
        yield text, clip.encode_from_tokens(clip.tokenize(text, disable_weights=True), return_pooled=True)
