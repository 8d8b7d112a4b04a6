"""Captions → their states. The LLM reads them in batches; ComfyUI's CLIP takes one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...models.features.features import Features
from ...models.training.data import EncodedText
from .. import host
from ..fused_clip import CLIP_G, LLM_TOKENS, FusedCLIP, without_llm
from ..prompt import weighted_text
from .words import Words, places_of

AT_ONCE = 16 << 20  # bytes of the LLM's states in a batch. While it reads, it holds some ten times as much
ON_CPU = 512  # positions in a batch, where larger ones leave the processor's caches and are no faster
WINDOW = 512  # captions that are sorted by length together

Tokens = dict[str, Any]
Read = TypeVar("Read")  # what is made of a text


class Reader:
    """Reads captions as LLM4GEN Conditioning would, but that parentheses are ordinary characters.

    words: caption → the words that belong together in it, for the entity-guided loss.

    In a batch, a caption's states are those that it has alone but for rounding (in fp32 1e-5 of their norm; with
    16-bit products as far from fp32 as those that it has alone). So they come from no cache of single prompts and go
    into none: the same captions give the same states to the bit, whatever was read before.
    """

    def __init__(self, fused: FusedCLIP, words: Mapping[str, Sequence[Words]] | None = None):
        self.fused, self.words = fused, words or {}

    def positions(self, text: str) -> int:
        """How many positions the LLM's states of a caption will have, which its tokens tell. Raises: UnreadableText."""
        recipe = self.fused.fusion.adapter.recipe
        ids = self.fused.fusion.llm.tokenize(weighted_text(text, emphasis=False).text, recipe).ids
        return len(ids) if recipe.padding == "drop" else recipe.tokens

    def __call__(self, texts: Sequence[str]) -> Iterator[tuple[str, EncodedText]]:
        """Each caption with its states, in the order in which they are read. Raises: what encoding raises."""
        for group in self.read(texts):
            for text, (tokens, features) in group.items():
                states = Features(ordinary(half(features.states)), features.rows)
                yield text, self.with_clip(text, tokens, states)

    def encoded(self, texts: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Each caption with what LLM4GEN CLIP gives for it: (states, pooled output). Order and errors as above."""
        for group in self.read(texts):
            read = {ids_of(tokens): features for tokens, features in group.values()}
            with self.fused.fusion.llm.having_read(read):
                for text, (tokens, _) in group.items():
                    yield text, self.fused.encode_from_tokens(tokens, return_pooled=True)

    def read(self, texts: Sequence[str]) -> Iterator[dict[str, tuple[Tokens, Features]]]:
        """The captions of each batch, with their tokens and the LLM's states."""
        llm, recipe = self.fused.fusion.llm, self.fused.fusion.adapter.recipe
        is_on_cpu = host.load_device_of(llm.device).type == "cpu"
        most = ON_CPU if is_on_cpu else AT_ONCE // (llm.width * 4)
        least = recipe.tokens if recipe.padding == "keep" else 1
        for first in range(0, len(texts), WINDOW):
            tokens = {
                text: self.fused.tokenize(text, disable_weights=True)
                for text in texts[first : first + WINDOW]
            }
            lengths = {text: max(least, len(ids_of(own))) for text, own in tokens.items()}
            for group in groups(lengths, most):
                with torch.inference_mode():
                    found = llm.encode_all([ids_of(tokens[text]) for text in group], recipe)
                yield {text: (tokens[text], features) for text, features in zip(group, found, strict=True)}

    def with_clip(self, text: str, tokens: Tokens, features: Features) -> EncodedText:
        words = self.words.get(text, ())
        with torch.inference_mode():
            plain = without_llm(tokens)
            states, pooled = self.fused.plain().encode_from_tokens(plain, return_pooled=True)
            self.fused.check_fit(tokens, states)
            return EncodedText(
                ordinary(states[0]),
                features,
                pairs=places_of(self.fused, text, words) if words else (),
                pooled=ordinary(pooled[0]) if CLIP_G in tokens else None,
            )


def ids_of(tokens: Tokens) -> tuple[int, ...]:
    """The LLM's token ids of a caption. All of its weights are 1."""
    return tuple(token for token, *_ in tokens[LLM_TOKENS][0])


def groups(lengths: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Texts of similar length together, so that little is padded; at most `most` positions, or one text."""
    group: list[str] = []
    for text in sorted(lengths, key=lambda text: lengths[text]):
        if group and (len(group) + 1) * lengths[text] > most:
            yield group
            group = []
        group.append(text)
    if group:
        yield group


def read_all(
    read: Callable[[Sequence[str]], Iterable[tuple[str, Read]]],
    texts: Sequence[str],
    step: Callable[[], None],
) -> dict[str, Read]:
    """Text → what `read` makes of it, in the order of the texts. step: is called after each."""
    found = {}
    for text, states in read(texts):
        found[text] = states
        step()
    return {text: found[text] for text in texts}


def ordinary(tensor: Tensor) -> Tensor:
    """A copy in main memory that autograd may keep; nodes run in inference mode, whose tensors it refuses."""
    with torch.inference_mode(False):
        return tensor.detach().to("cpu", copy=True)


def half(states: Tensor) -> Tensor:
    """States in half of their memory, unless they do not fit into fp16's range."""
    small = states.half()
    return small if small.isfinite().all() else states
