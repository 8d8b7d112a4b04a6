"""The fused CLIP: a ComfyUI CLIP whose conditioning carries the LLM's half. Every node of this pack encodes with it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from comfy.sd import CLIP
from torch import Tensor

from ..models.errors import MissingCLIP, WidthMismatch
from ..models.features.features import Features
from .managed import ManagedAdapter, ManagedLLM
from .prompt import weighted_text

log = logging.getLogger(__name__)

# Choices of the inputs `long_prompt` and `controlnet_context`. Saved workflows hold these strings.
CUT, CHUNKS = "cut at 77 (as published)", "chunks of 77"
CLIP_CONTEXT, FUSED_CONTEXT = "clip", "fused"
CLIP_L = "l"  # the key of SD1.5's CLIP-L among the parts of ComfyUI's tokens
LLM_TOKENS = "llm4gen"  # the key of the LLM's tokens, in the form of CLIP's: one chunk of (id, weight)


@dataclass(frozen=True)
class Fusion:
    """How a CLIP is fused.

    strength:           the paper's balance factor λ, which multiplies the LLM's half.
    long_prompt:        what happens to CLIP's tokens beyond 77: CUT or CHUNKS.
    controlnet_context: whether ControlNets get CLIP's tokens alone, as they were trained, or all tokens.
    """

    llm: ManagedLLM
    adapter: ManagedAdapter
    strength: float = 1.0
    long_prompt: str = CUT
    controlnet_context: str = CLIP_CONTEXT


class FusedCLIP(CLIP):
    """A CLIP whose conditioning carries the LLM's half.

    It shares the patcher of the CLIP that it was made from. LoRA, hooks and clip skip therefore act on CLIP as usual,
    and what changes CLIP's states also changes what the LLM's tokens attend to.
    """

    fusion: Fusion

    @classmethod
    def around(cls, clip: CLIP | None, fusion: Fusion) -> FusedCLIP:
        """A fused view of a CLIP. If that is fused already, the new fusion replaces the old one.

        Raises: MissingCLIP for None, which is what a checkpoint without a CLIP gives.
        """
        if clip is None:
            raise MissingCLIP(
                "The clip input got no CLIP: the checkpoint holds none. Connect the CLIP of an SD1.5 checkpoint, or "
                "one from Load CLIP."
            )
        fused = cls(no_init=True)
        fused.__dict__.update(clip.__dict__, fusion=fusion)
        return fused

    def plain(self) -> CLIP:
        """The CLIP inside, with the same patcher and options."""
        clip = CLIP(no_init=True)
        clip.__dict__.update(self.__dict__)
        del clip.fusion
        return clip

    def clone(self, *args: Any, **kwargs: Any) -> FusedCLIP:
        return self.around(self.plain().clone(*args, **kwargs), self.fusion)

    def get_models(self) -> list[Any]:
        """The patchers that ComfyUI must keep in use beside CLIP's own."""
        patchers = self.fusion.llm.patcher, self.fusion.adapter.patcher
        return [patcher for patcher in patchers if patcher is not None]

    def tokenize(
        self, text: str, return_word_ids: bool = False, llm_text: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """CLIP's tokens, cut or in chunks, together with the LLM's.

        llm_text: another text for the LLM; None: the same text.
        """
        tokens = self.plain().tokenize(text, return_word_ids, **kwargs)
        if self.fusion.long_prompt == CUT and tokens.keys() == {CLIP_L} and len(tokens[CLIP_L]) > 1:
            self.warn_of_cut(text, **kwargs)
            tokens = {CLIP_L: tokens[CLIP_L][:1]}
        if self.fusion.strength == 0:
            return tokens
        prompt = weighted_text(
            text if llm_text is None else llm_text, emphasis=not kwargs.get("disable_weights")
        )
        recipe = self.fusion.adapter.recipe
        llm_tokens = self.fusion.llm.tokenize(prompt.text, recipe, prompt.weights)
        if llm_tokens.dropped:
            log.warning(
                "LLM half: the last %d tokens do not fit into %d and are cut off.",
                llm_tokens.dropped,
                recipe.tokens,
            )
        chunk = [
            (*pair, 0) if return_word_ids else pair
            for pair in zip(llm_tokens.ids, llm_tokens.weights, strict=True)
        ]
        return {**tokens, LLM_TOKENS: [chunk]}

    def warn_of_cut(self, text: str, **kwargs: Any) -> None:
        rest = self.plain().tokenize(text, True, **kwargs)[CLIP_L][1:]
        dropped = sum(word > 0 for chunk in rest for _, _, word in chunk)
        log.warning("CLIP half: the last %d tokens do not fit into 77 and are cut off.", dropped)

    def encode_from_tokens(
        self, tokens: dict[str, Any], return_pooled: Any = False, return_dict: bool = False
    ) -> Any:
        """As core's `CLIP.encode_from_tokens`: states, or (states, pooled), or a dictionary, but fused."""
        plain = self.plain().encode_from_tokens(clip_tokens(tokens), return_pooled, return_dict=True)
        ((states, options),) = self.fuse([[plain.pop("cond"), plain]], tokens)
        if return_dict:
            return {"cond": states, **options}
        return (states, options["pooled_output"]) if return_pooled else states

    def encode_from_tokens_scheduled(self, tokens: dict[str, Any], *args: Any, **kwargs: Any) -> list[Any]:
        """As core's, but fused: each entry of a schedule gets its own LLM half and keeps its options."""
        plain = self.plain().encode_from_tokens_scheduled(clip_tokens(tokens), *args, **kwargs)
        return self.fuse(plain, tokens)

    def attention_weights(self, tokens: dict[str, Any]) -> Tensor:
        """The Cross-Adapter's attention from each LLM token to each CLIP token: [heads, l, n].

        Where hooks schedule CLIP, it is that of the schedule's first entry.
        Raises: WidthMismatch, WrongRecipe.
        """
        (states, _), *_ = self.plain().encode_from_tokens_scheduled(clip_tokens(tokens))
        self.check_fit(tokens, width=states.shape[-1])
        return self.fusion.adapter.attention_weights(states, self.features(tokens[LLM_TOKENS][0]))[0]

    def fuse(self, conditioning: list[Any], tokens: dict[str, Any]) -> list[Any]:
        """Appends the LLM's half, times `strength`, to each entry of CLIP's conditioning.

        If the tokens hold none of the LLM's, because another node made them, the conditioning stays as it is.
        Raises: WidthMismatch, WrongRecipe.
        """
        self.check_fit(tokens, width=conditioning[0][0].shape[-1])
        if LLM_TOKENS not in tokens:
            return conditioning
        features = self.features(tokens[LLM_TOKENS][0])
        return [self.fuse_entry(states, options, features) for states, options in conditioning]

    def fuse_entry(self, states: Tensor, options: dict[str, Any], features: Features) -> list[Any]:
        """states: CLIP's [b, n, c] → [states [b, n + l, c], options]."""
        llm = self.fusion.strength * self.fusion.adapter.fuse(states, features)
        if self.fusion.controlnet_context == CLIP_CONTEXT:
            options = {**options, "cross_attn_controlnet": states}
        return [torch.cat([states, llm], dim=1), options]

    def features(self, tokens: list[tuple[Any, ...]]) -> Features:
        """The LLM's hidden states of its tokens (id, weight, …), with the prompt weights applied."""
        llm, recipe = self.fusion.llm, self.fusion.adapter.recipe
        ids, weights, *_ = zip(*tokens, strict=True)
        features = llm.features(ids, recipe)
        if all(weight == 1.0 for weight in weights):
            return features
        empty = llm.features(llm.tokenize("", recipe).ids, recipe)
        return features.weighted(weights, empty)

    def check_fit(self, tokens: dict[str, Any], width: int) -> None:
        """Checks that CLIP, LLM and adapter have the widths that belong together. Raises: WidthMismatch."""
        wanted = self.fusion.adapter.adapter.config
        parts = clip_tokens(tokens)
        if parts.keys() != {CLIP_L} or width != wanted.clip_dim:
            raise WidthMismatch(
                f"This CLIP ({' + '.join(parts)}) gives states that are {width} wide; the adapter is made for SD1.5's "
                f"CLIP ({CLIP_L}), {wanted.clip_dim} wide. Connect the CLIP of an SD1.5 checkpoint."
            )
        if self.fusion.llm.width != wanted.llm_dim:
            raise WidthMismatch(
                f"The LLM's states are {self.fusion.llm.width} wide; the adapter was trained on {wanted.llm_dim}. "
                "Load the LLM that the adapter was trained with (the published one: rankgen-t5-xl-all, 2048)."
            )


def clip_tokens(tokens: dict[str, Any]) -> dict[str, Any]:
    """The tokens without the LLM's."""
    return {name: chunks for name, chunks in tokens.items() if name != LLM_TOKENS}
