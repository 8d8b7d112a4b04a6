"""CLIP conditioning + LLM states → fused conditioning. The one path from words to what KSampler gets."""

from __future__ import annotations

import logging
from collections import OrderedDict

import torch
from torch import Tensor

from ..models.cross_adapter import CrossAdapter
from ..models.errors import WidthMismatch
from ..models.llm import LLM, Features
from ..models.recipe import Recipe
from . import host
from .prompt import plain_words

log = logging.getLogger(__name__)

CUT, CHUNKS = "cut at 77 (as published)", "chunks of 77"
REMEMBERED = 32  # prompts; at most 2 MB each for T5-XL


class HostedLLM:
    """What travels on the LLM wire. Remembers the last prompts' states: a new strength, LoRA or clip skip
    does not run the LLM again."""

    def __init__(self, llm: LLM, dtype: str, device: str):
        self.llm = llm
        self.dtype = dtype
        self.hosted = host.Hosted(llm.encoder, device)
        self.read_before: OrderedDict[tuple[str, Recipe], Features] = OrderedDict()

    def features(self, text: str, recipe: Recipe) -> Features:
        """The LLM's states of a prompt, fp32, where conditioning lies."""
        key = (text, recipe)
        if key not in self.read_before:
            self.read_before[key] = self.read(text, recipe)
        self.read_before.move_to_end(key)
        while len(self.read_before) > REMEMBERED:
            self.read_before.popitem(last=False)
        return self.read_before[key]

    def read(self, text: str, recipe: Recipe) -> Features:
        tokens = self.llm.tokenize(text, recipe)
        device = self.hosted.ready()
        products = host.product_dtype(self.llm.encoder.dtype, device, self.dtype)
        features = self.llm.read(tokens, recipe, device=device, products=products, progress=host.progress)
        return Features(host.as_conditioning(features.states), features.rows)


class HostedAdapter:
    """What travels on the adapter wire."""

    def __init__(self, adapter: CrossAdapter, recipe: Recipe):
        self.adapter = adapter
        self.recipe = recipe
        self.hosted = host.Hosted(adapter)

    def fuse(self, clip: Tensor, features: Features) -> Tensor:
        """CLIP states [b, n, c] and the LLM's → fused LLM tokens [b, l, c] at every position. Rows that are
        equal are fused once."""
        device = self.hosted.ready()
        llm = features.states.to(device).expand(len(clip), -1, -1)
        return host.as_conditioning(features.rows.spread(self.adapter(clip.to(device), llm)))


def encode(
    clip,
    llm: HostedLLM,
    adapter: HostedAdapter,
    text: str,
    *,
    llm_text: str | None,
    strength: float,
    long_prompt: str,
) -> list:
    """Fused conditioning: the CLIP half as core encodes it, then the LLM half times `strength`, over tokens.

    Every segment of a scheduled CLIP gets its own LLM half, and keeps its options.
    Raises: WidthMismatch, WrongRecipe.
    """
    tokens = clip_tokens(clip, text, long_prompt)
    conditioning = clip.encode_from_tokens_scheduled(tokens)
    check_fit(adapter.adapter, llm.llm, tokens, width=conditioning[0][0].shape[-1])
    if strength == 0:
        return conditioning
    features = llm.features(plain_words(text if llm_text is None else llm_text), adapter.recipe)
    return [
        [torch.cat([states, strength * adapter.fuse(states, features)], dim=1), options]
        for states, options in conditioning
    ]


def clip_tokens(clip, text: str, long_prompt: str) -> dict:
    """CLIP's tokens of a prompt: all its chunks, or the first, as the published model has it."""
    tokens = clip.tokenize(text)
    if long_prompt == CHUNKS or tokens.keys() != {"l"} or len(tokens["l"]) == 1:
        return tokens
    rest = clip.tokenize(text, return_word_ids=True)["l"][1:]
    dropped = sum(word > 0 for chunk in rest for _, _, word in chunk)
    log.warning("CLIP half: the last %d tokens do not fit in 77 and are cut off.", dropped)
    return {"l": tokens["l"][:1]}


def check_fit(adapter: CrossAdapter, llm: LLM, tokens: dict, width: int) -> None:
    """Holds CLIP, LLM and adapter against each other."""
    wanted = adapter.config
    if tokens.keys() != {"l"} or width != wanted.clip_dim:
        raise WidthMismatch(
            f"This CLIP ({' + '.join(tokens)}) gives states {width} wide; the adapter is made for SD1.5's CLIP "
            f"(l), {wanted.clip_dim} wide. Connect the CLIP of an SD1.5 checkpoint."
        )
    if llm.encoder.config.width != wanted.llm_dim:
        raise WidthMismatch(
            f"The LLM's states are {llm.encoder.config.width} wide; the adapter was trained on {wanted.llm_dim}. "
            "Load the LLM that the adapter was trained with (the published one: rankgen-t5-xl-all, 2048)."
        )
