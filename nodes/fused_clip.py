"""LLM4GEN as a CLIP: what every node that takes a CLIP gets its fused conditioning from. The one path."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from comfy.sd import CLIP
from torch import Tensor

from ..models.errors import MissingCLIP, WidthMismatch
from ..models.llm import Features
from .hosted import HostedAdapter, HostedLLM
from .prompt import words_of

log = logging.getLogger(__name__)

CUT, CHUNKS = "cut at 77 (as published)", "chunks of 77"
CLIP_CONTEXT, FUSED_CONTEXT = "clip", "fused"
SD15 = "l"  # the name of SD1.5's only CLIP among a tokenizer's parts
OURS = "llm4gen"  # the LLM's tokens, beside CLIP's and in their form: a list of one list of (id, weight)


@dataclass(frozen=True)
class Fusion:
    """How a CLIP is fused. strength: the paper's balance factor on the LLM half. long_prompt: CUT or CHUNKS.
    controlnet_context: whether ControlNets see CLIP's tokens alone, as they were trained, or all."""

    llm: HostedLLM
    adapter: HostedAdapter
    strength: float = 1.0
    long_prompt: str = CUT
    controlnet_context: str = CLIP_CONTEXT


class FusedCLIP(CLIP):
    """A CLIP whose conditioning carries the LLM's half.

    It shares the other CLIP's patcher, so LoRA, hooks and clip skip act on CLIP alone, and what changes CLIP's
    states changes what the LLM's tokens see.
    """

    fusion: Fusion

    @classmethod
    def around(cls, clip: CLIP, fusion: Fusion) -> FusedCLIP:
        """Another view of the same CLIP, fused. A CLIP that is fused already is fused anew, not twice.

        Raises: MissingCLIP for None, which is what a checkpoint without a CLIP gives.
        """
        if clip is None:
            raise MissingCLIP(
                "There is no CLIP on the clip input: the checkpoint holds none. Connect the CLIP of an SD1.5 "
                "checkpoint, or one from Load CLIP."
            )
        fused = cls(no_init=True)
        fused.__dict__.update(clip.__dict__, fusion=fusion)
        return fused

    def plain(self) -> CLIP:
        """The CLIP inside: same patcher, same options."""
        clip = CLIP(no_init=True)
        clip.__dict__.update(self.__dict__)
        del clip.fusion
        return clip

    def clone(self, *args, **kwargs) -> FusedCLIP:
        return self.around(self.plain().clone(*args, **kwargs), self.fusion)

    def get_models(self) -> list:
        """What the host must know to be in use beside CLIP's own patcher."""
        patchers = self.fusion.llm.patcher, self.fusion.adapter.patcher
        return [patcher for patcher in patchers if patcher is not None]

    def tokenize(
        self, text: str, return_word_ids: bool = False, llm_text: str | None = None, **kwargs
    ) -> dict:
        """CLIP's tokens, cut or in chunks, and the LLM's. llm_text: other words for the LLM."""
        tokens = self.plain().tokenize(text, return_word_ids, **kwargs)
        if self.fusion.long_prompt == CUT and tokens.keys() == {SD15} and len(tokens[SD15]) > 1:
            self.warn_of_cut(text, **kwargs)
            tokens = {SD15: tokens[SD15][:1]}
        if self.fusion.strength == 0:
            return tokens
        words = words_of(text if llm_text is None else llm_text, emphasis=not kwargs.get("disable_weights"))
        read = self.fusion.llm.llm.tokenize(words.text, self.fusion.adapter.recipe, words.weights)
        if read.dropped:
            limit = self.fusion.adapter.recipe.tokens
            log.warning("LLM half: the last %d tokens do not fit in %d and are cut off.", read.dropped, limit)
        pairs = [(*pair, 0) if return_word_ids else pair for pair in zip(read.ids, read.weights, strict=True)]
        return {**tokens, OURS: [pairs]}

    def warn_of_cut(self, text: str, **kwargs) -> None:
        rest = self.plain().tokenize(text, True, **kwargs)[SD15][1:]
        dropped = sum(word > 0 for chunk in rest for _, _, word in chunk)
        log.warning("CLIP half: the last %d tokens do not fit in 77 and are cut off.", dropped)

    def encode_from_tokens(self, tokens: dict, return_pooled=False, return_dict: bool = False):
        """As core's: states, or (states, pooled), or a dictionary, of the fused conditioning."""
        plain = self.plain().encode_from_tokens(clip_part(tokens), return_pooled, return_dict=True)
        ((states, options),) = self.fuse([[plain.pop("cond"), plain]], tokens)
        if return_dict:
            return {"cond": states, **options}
        return (states, options["pooled_output"]) if return_pooled else states

    def encode_from_tokens_scheduled(self, tokens: dict, *args, **kwargs) -> list:
        """Fused conditioning; each segment of a schedule gets an LLM half of its own and keeps its options."""
        return self.fuse(
            self.plain().encode_from_tokens_scheduled(clip_part(tokens), *args, **kwargs), tokens
        )

    def attention(self, tokens: dict) -> Tensor:
        """What each LLM token sees of each CLIP token, [heads, l, n]: of the first entry, if a schedule gives
        several.

        Raises: WidthMismatch, WrongRecipe.
        """
        (states, _), *_ = self.plain().encode_from_tokens_scheduled(clip_part(tokens))
        self.check_fit(tokens, width=states.shape[-1])
        return self.fusion.adapter.attention(states, self.features(tokens[OURS][0]))[0]

    def fuse(self, conditioning: list, tokens: dict) -> list:
        """Appends the LLM half, times `strength`, to each entry of a CLIP's conditioning.

        Tokens that another node made without the LLM's are left as they are.
        Raises: WidthMismatch, WrongRecipe.
        """
        self.check_fit(tokens, width=conditioning[0][0].shape[-1])
        if OURS not in tokens:
            return conditioning
        features = self.features(tokens[OURS][0])
        return [self.fuse_entry(states, options, features) for states, options in conditioning]

    def fuse_entry(self, states: Tensor, options: dict, features: Features) -> list:
        llm = self.fusion.strength * self.fusion.adapter.fuse(states, features)
        if self.fusion.controlnet_context == CLIP_CONTEXT:
            options = {**options, "cross_attn_controlnet": states}
        return [torch.cat([states, llm], dim=1), options]

    def features(self, tokens: list[tuple]) -> Features:
        """The LLM's states, emphasised by ComfyUI's rule: scaled in their difference to the empty prompt's."""
        llm, recipe = self.fusion.llm, self.fusion.adapter.recipe
        ids, weights, *_ = zip(*tokens, strict=True)
        features = llm.features(ids, recipe)
        if all(weight == 1.0 for weight in weights):
            return features
        nothing = llm.features(llm.llm.tokenize("", recipe).ids, recipe)
        return features.emphasised(weights, nothing)

    def check_fit(self, tokens: dict, width: int) -> None:
        """Holds CLIP, LLM and adapter against each other."""
        wanted = self.fusion.adapter.adapter.config
        parts = clip_part(tokens)
        if parts.keys() != {SD15} or width != wanted.clip_dim:
            raise WidthMismatch(
                f"This CLIP ({' + '.join(parts)}) gives states {width} wide; the adapter is made for SD1.5's "
                f"CLIP ({SD15}), {wanted.clip_dim} wide. Connect the CLIP of an SD1.5 checkpoint."
            )
        found = self.fusion.llm.llm.source.config.width
        if found != wanted.llm_dim:
            raise WidthMismatch(
                f"The LLM's states are {found} wide; the adapter was trained on {wanted.llm_dim}. "
                "Load the LLM that the adapter was trained with (the published one: rankgen-t5-xl-all, 2048)."
            )


def clip_part(tokens: dict) -> dict:
    """The tokens without the LLM's."""
    return {name: chunks for name, chunks in tokens.items() if name != OURS}
