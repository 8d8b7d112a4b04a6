"""The fused CLIP: a ComfyUI CLIP whose conditioning carries the LLM's half, for nodes that take a CLIP."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from comfy.sd import CLIP
from torch import Tensor

from ..models.errors import MissingCLIP, WidthMismatch
from .fusion import CUT, Chunk, ChunkPerText, Fusion
from .server import LOSES, notify

log = logging.getLogger(__name__)

CLIP_L = "l"  # the key of SD1.5's CLIP-L among the parts of ComfyUI's tokens
CLIP_G = "g"  # that of SDXL's CLIP-G, whose pooled output SDXL's UNet reads too
CLIP_H = "h"  # that of SD2's
# The parts of the CLIPs that can be fused: those of SD1.5, of SD2, and of SDXL or its refiner (which reads g alone).
CLIPS = ({CLIP_L}, {CLIP_H}, {CLIP_L, CLIP_G})
WIDTHS = {CLIP_L: 768, CLIP_H: 1024}  # of the states of a CLIP that has no other part
START, END, ZERO = 49406, 49407, 0  # special tokens of all these; l pads with END, h and g with ZERO
LLM_TOKENS = "llm4gen"  # the key of the LLM's tokens, in the form of CLIP's: a list of chunks of (id, weight)


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
                "The clip input got no CLIP: the checkpoint holds none. Connect the CLIP of another checkpoint, or one "
                f"from Load CLIP. The adapter is made for {fusion.wanted_clip}."
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
        self, text: str | list[str], return_word_ids: bool = False, llm_text: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """CLIP's tokens, cut or in chunks, together with the LLM's.

        text:     a text, or a list of texts where another pack has made CLIP's tokenizer take one; each row of CLIP's
                  states then gets the LLM's half of its own text.
        llm_text: another text for the LLM; None: the same text.
        """
        tokens = self.plain().tokenize(text, return_word_ids, **kwargs)
        self.check_parts(tokens)
        if self.fusion.long_prompt == CUT and tokens.keys() in CLIPS and max(map(len, tokens.values())) > 1:
            self.warn_of_cut(text, **kwargs)
            tokens = {name: chunks[:1] for name, chunks in tokens.items()}
        if self.fusion.strength == 0:
            return tokens
        if llm_text is None and not isinstance(text, str):
            return {**tokens, LLM_TOKENS: [ChunkPerText(map(self.fusion.tokenize_a1111, text))]}
        llm_text = str(text) if llm_text is None else llm_text
        chunk = self.fusion.tokenize(llm_text, emphasis=not kwargs.get("disable_weights"))
        return {**tokens, LLM_TOKENS: [[(*pair, 0) for pair in chunk] if return_word_ids else chunk]}

    def warn_of_cut(self, text: str | list[str], **kwargs: Any) -> None:
        """Logs how many tokens of CLIP's half are cut off."""
        tokens = self.plain().tokenize(text, True, **kwargs)
        dropped = max(sum(map(count_words, chunks[1:])) for chunks in tokens.values())
        log.warning("CLIP half: the last %d tokens do not fit into 77 and are cut off.", dropped)

    def encode_from_tokens(
        self, tokens: dict[str, Any], return_pooled: Any = False, return_dict: bool = False
    ) -> Any:
        """As core's `CLIP.encode_from_tokens`: states, or (states, pooled), or a dictionary, but fused."""
        plain = self.plain().encode_from_tokens(without_llm(tokens), return_pooled, return_dict=True)
        ((states, options),) = self.fuse([[plain.pop("cond"), plain]], tokens)
        if return_dict:
            return {"cond": states, **options}
        return (states, options["pooled_output"]) if return_pooled else states

    def encode_from_tokens_scheduled(self, tokens: dict[str, Any], *args: Any, **kwargs: Any) -> list[Any]:
        """As core's, but fused: each entry of a schedule gets its own LLM half and keeps its options."""
        plain = self.plain().encode_from_tokens_scheduled(without_llm(tokens), *args, **kwargs)
        return self.fuse(plain, tokens)

    def fuse(self, conditioning: list[Any], tokens: dict[str, Any]) -> list[Any]:
        """Appends the LLM's half to CLIP's conditioning. See `Fusion.fuse`.

        If the tokens hold none of the LLM's, because another node made them, the conditioning stays as it is, and a
        notice tells the user.
        """
        self.check_fit(tokens, conditioning[0][0])
        if LLM_TOKENS in tokens:
            return self.fusion.fuse(conditioning, tokens[LLM_TOKENS])
        if self.fusion.strength != 0:
            notify(LOSES)
        return conditioning

    def attention_weights(self, tokens: dict[str, Any]) -> Tensor:
        """The Cross-Adapter's attention from each LLM token to each CLIP token: [heads, l, n].

        Where hooks schedule CLIP, it is that of the schedule's first entry.
        Raises: WidthMismatch, WrongRecipe.
        """
        (states, _), *_ = self.plain().encode_from_tokens_scheduled(without_llm(tokens))
        self.check_fit(tokens, states)
        return self.fusion.attention_weights(states, tokens[LLM_TOKENS][0])

    def text_of(self, tokens: dict[str, Any]) -> tuple[Chunk, Callable[..., str]]:
        """The first chunk of CLIP's tokens, and a function that decodes ids. SDXL's two CLIPs read the same tokens."""
        name = CLIP_L if CLIP_L in tokens else next(iter(without_llm(tokens)))
        return tokens[name][0], getattr(self.tokenizer, f"clip_{name}").decode

    def check_fit(self, tokens: dict[str, Any], states: Tensor) -> None:
        """Raises: WidthMismatch if CLIP's states, the LLM and the adapter do not fit together."""
        self.check_parts(tokens)
        self.fusion.check_fit(states.shape[-1], source_of(tokens))

    def check_parts(self, tokens: dict[str, Any]) -> None:
        """Raises: WidthMismatch if the tokens tell that the CLIP is not the adapter's.

        Core's node for SDXL would fail on such tokens without saying why, before anything is encoded.
        """
        parts = without_llm(tokens).keys()
        if parts not in CLIPS:
            raise WidthMismatch(
                f"{source_of(tokens)} is not that of SD1.5 (l), SD2 (h) or SDXL (g + l). The adapter is made for "
                f"{self.fusion.wanted_clip}. Connect the CLIP of a checkpoint of that kind."
            )
        if len(parts) == 1:
            self.fusion.check_fit(WIDTHS[next(iter(parts))], source_of(tokens))


def source_of(tokens: dict[str, Any]) -> str:
    """What gives the states of these tokens, for messages."""
    return f"This CLIP ({' + '.join(sorted(without_llm(tokens)))})"


def without_llm(tokens: dict[str, Any]) -> dict[str, Any]:
    """CLIP's tokens alone."""
    return {name: chunks for name, chunks in tokens.items() if name != LLM_TOKENS}


def count_words(chunk: Any) -> int:
    """The tokens of a chunk that are part of a word.

    chunk: core's, of (id, weight, number of the word), or as packs with A1111's grammar make it for a list of texts:
           (ids, weights), each with a row for every text. The longest text decides there.
    """
    if isinstance(chunk, list):
        return sum(word > 0 for _, _, word in chunk)
    ids, _ = chunk
    return max(sum(token not in (START, END, ZERO) for token in row) for row in ids)
