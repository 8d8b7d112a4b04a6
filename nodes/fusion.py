"""Computes the LLM's half of a conditioning and appends it to CLIP's. All nodes that fuse use this path."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.checkpoints.same_llm import OTHER_LLM, SENTENCES, doubt, trained_llm
from ..models.errors import AlreadyFused, UnequalTexts, WidthMismatch
from ..models.features.features import Features
from .managed import ManagedAdapter, ManagedLLM
from .prompt import WeightedText, a1111_text, weighted_text

log = logging.getLogger(__name__)

# Choices of the inputs `long_prompt` and `controlnet_context`. Saved workflows hold these strings.
CUT, CHUNKS = "cut at 77 (as published)", "chunks of 77"
CLIP_CONTEXT, FUSED_CONTEXT = "clip", "fused"
CLIP_LENGTH = 77  # tokens in a chunk of CLIP's
CLIP_OF_WIDTH = {
    768: "SD1.5's CLIP",
    1024: "SD2's CLIP",
    2048: "SDXL's CLIPs",
    1280: "the SDXL refiner's CLIP",
}
CONTROLNET_CONTEXT = "cross_attn_controlnet"  # core's option for what ControlNets read
FUSED = "llm4gen_fused"  # our option of an entry that carries the LLM's half

Chunk = list[tuple[Any, ...]]  # tokens of one text: (id, weight) or (id, weight, number of the word)


class ChunkPerText(list):
    """The chunks of a list of texts: one for each row of CLIP's states."""


Part = Chunk | ChunkPerText


@dataclass(frozen=True)
class Fusion:
    """How conditioning is fused.

    strength:           the paper's balance factor λ, which multiplies the LLM's half.
    long_prompt:        what happens to CLIP's tokens beyond 77: CUT or CHUNKS.
    controlnet_context: whether ControlNets get CLIP's tokens alone, as they were trained, or all tokens.
    """

    llm: ManagedLLM
    adapter: ManagedAdapter
    strength: float = 1.0
    long_prompt: str = CUT
    controlnet_context: str = CLIP_CONTEXT

    def tokenize(self, text: str, *, emphasis: bool = True) -> Chunk:
        """The LLM's tokens of a prompt in ComfyUI's syntax. Logs a warning if they do not fit into its length."""
        return self.tokenize_weighted(weighted_text(text, emphasis=emphasis))

    def tokenize_weighted(self, prompt: WeightedText) -> Chunk:
        recipe = self.adapter.recipe
        tokens = self.llm.tokenize(prompt.text, recipe, prompt.weights)
        if tokens.dropped:
            log.warning(
                "LLM half: the last %d tokens do not fit into %d and are cut off.",
                tokens.dropped,
                recipe.tokens,
            )
        return list(zip(tokens.ids, tokens.weights, strict=True))

    def tokenize_a1111(self, text: str) -> Chunk:
        """The LLM's tokens of a prompt in A1111's syntax. See `tokenize`."""
        return self.tokenize_weighted(a1111_text(text))

    def fuse(self, conditioning: list[Any], parts: Sequence[Part]) -> list[Any]:
        """Appends the LLM's half, times `strength`, to each entry of CLIP's conditioning.

        parts: the LLM's tokens. Usually there is one part. Where another pack joins the tokens of several texts, as for
               BREAK, there is one for each text. Each part becomes a block of its own.
        Raises: WidthMismatch, WrongRecipe, UnequalTexts.
        """
        return [self.fuse_entry(states, options, parts) for states, options in conditioning]

    def fuse_entry(self, states: Tensor, options: dict[str, Any], parts: Sequence[Part]) -> list[Any]:
        """states: CLIP's [b, n, c] → [states [b, n + l, c], options]."""
        blocks = [
            self.block(context, part)
            for context, part in zip(contexts(states, len(parts)), parts, strict=True)
        ]
        options = {**options, FUSED: True}
        if self.controlnet_context == CLIP_CONTEXT:
            options.setdefault(CONTROLNET_CONTEXT, clip_tokens_of(states))
        return [torch.cat([states, *blocks], dim=1), options]

    def block(self, states: Tensor, part: Part) -> Tensor:
        """The fused LLM tokens of one part: [b, l, c], or in pairs as `states` has them."""
        if not isinstance(part, ChunkPerText):
            return self.strength * self.fuse_chunk(states, part)
        if len(part) != len(states):
            raise UnequalTexts(
                f"CLIP gave states of {len(states)} texts, but the LLM got {len(part)} texts. Encode the texts one by "
                "one, or use LLM4GEN Fuse Conditioning after the node that encodes them."
            )
        rows = [self.fuse_chunk(states[index : index + 1], chunk) for index, chunk in enumerate(part)]
        if len({row.shape for row in rows}) > 1:
            raise UnequalTexts(
                "This adapter drops the padding, so texts of unequal length cannot be encoded in one call: their LLM "
                f"halves have {', '.join(str(row.shape[1]) for row in rows)} tokens. Encode them one by one."
            )
        return self.strength * torch.cat(rows)

    def fuse_chunk(self, states: Tensor, chunk: Chunk) -> Tensor:
        if not has_pairs(states):
            return self.adapter.fuse(states, self.features(chunk))
        # Negative weights act on the values alone, so the features are those of the positive weights.
        positive = [(token, abs(weight)) for token, weight, *_ in chunk]
        keys = self.adapter.fuse(clip_tokens_of(states), self.features(positive))
        signs = torch.ones(keys.shape[1], 1, dtype=keys.dtype, device=keys.device)
        signs[: len(chunk), 0] = torch.tensor([-1.0 if weight < 0 else 1.0 for _, weight, *_ in chunk])
        return torch.stack([keys, keys * signs], dim=2).flatten(1, 2)

    def attention_weights(self, states: Tensor, chunk: Chunk) -> Tensor:
        """The Cross-Adapter's attention from each LLM token to each CLIP token: [heads, l, n]. Raises: see `fuse`."""
        return self.adapter.attention_weights(clip_tokens_of(states), self.features(chunk))[0]

    def features(self, chunk: Chunk) -> Features:
        """The LLM's hidden states of its tokens (id, weight, …), with the prompt weights applied."""
        ids, weights, *_ = zip(*chunk, strict=True)
        features = self.llm.features(ids, self.adapter.recipe)
        if all(weight == 1.0 for weight in weights):
            return features
        empty = self.llm.features(self.llm.tokenize("", self.adapter.recipe).ids, self.adapter.recipe)
        return features.weighted(weights, empty)

    @property
    def wanted_clip(self) -> str:
        """The CLIP that the adapter is made for, by its width, for messages."""
        width = self.adapter.adapter.config.clip_dim
        return f"{CLIP_OF_WIDTH.get(width, 'a CLIP')}, {width} wide"

    @property
    def its_llm(self) -> str:
        """Which LLM the adapter belongs to, for messages."""
        if llm := trained_llm(self.adapter.training):
            return f"trained with ({llm.name})"
        if self.adapter.is_new:
            return "made for, the one that New Cross-Adapter got"
        return "trained with (the published one: rankgen-t5-xl-all, 2048)"

    def check_fit(self, width: int, source: str) -> None:
        """Checks that CLIP's states, the LLM and the adapter belong together.

        An LLM of the right width may still be another than the adapter's. The log says so, if it can be told.

        width:  of CLIP's states.
        source: what gives the states, for the message.
        Raises: WidthMismatch.
        """
        wanted = self.adapter.adapter.config
        if width != wanted.clip_dim:
            known = CLIP_OF_WIDTH.get(width)
            like = f", like those of {known}" if known else ""
            raise WidthMismatch(
                f"{source} gives states that are {width} wide{like}; the adapter is made for "
                f"{self.wanted_clip}. Connect the CLIP of a checkpoint of that kind, or an adapter for this one"
                + (f": New Cross-Adapter makes one with context_width {width}." if known else ".")
            )
        if self.llm.width != wanted.llm_dim:
            raise WidthMismatch(
                f"The LLM's states are {self.llm.width} wide; the adapter was trained on {wanted.llm_dim}. "
                f"Load the LLM that the adapter was {self.its_llm}."
            )
        if self.strength != 0 and self.llm not in self.adapter.told_of:
            self.adapter.told_of.add(self.llm)
            self.say_doubt()

    def say_doubt(self) -> None:
        """Says in the log if the LLM is, or may be, another than the one that the adapter was trained with."""
        trained, loaded = trained_llm(self.adapter.training), self.llm.llm.file.facts
        found = doubt(trained, loaded)
        if trained is not None and found is not None:
            level = logging.WARNING if found == OTHER_LLM else logging.INFO
            words = {"adapter": "The adapter", "llm": trained.name, "encoder": loaded.name}
            log.log(level, "%s", SENTENCES[found].format(**words))


def contexts(states: Tensor, parts: int) -> Sequence[Tensor]:
    """The CLIP states that each part's LLM tokens attend to: its own chunk if there are as many, otherwise all.

    With its own chunk, joined parts give the UNet the same tokens as Conditioning (Concat) of each part alone.
    """
    chunk = CLIP_LENGTH * (2 if has_pairs(states) else 1)
    return states.split(chunk, dim=1) if states.shape[1] == chunk * parts else [states] * parts


def check_is_from_clip(states: Tensor, options: dict[str, Any]) -> None:
    """Checks that a conditioning entry holds CLIP's tokens alone. Raises: AlreadyFused, WidthMismatch."""
    length = states.shape[1] // 2 if has_pairs(states) else states.shape[1]
    if FUSED in options:
        raise AlreadyFused(
            f"This conditioning ({states.shape[1]} tokens) carries an LLM's half already. Connect one that was made "
            "with the checkpoint's own CLIP, or remove this node."
        )
    if length % CLIP_LENGTH:
        raise WidthMismatch(
            f"This conditioning has {states.shape[1]} tokens, which is not a multiple of CLIP's {CLIP_LENGTH}: it was "
            "not made by CLIP alone. Connect the conditioning of a CLIP Text Encode, or of a node like it."
        )


def has_pairs(states: Tensor) -> bool:
    """Whether states [b, n, c] are pairs of a key and a value for each token, as NegPip makes them.

    In such a pair the value equals the key, or is its negative. CLIP's own states of neighbouring tokens never do.
    """
    if states.shape[1] % 2:
        return False
    keys, values = states[:, 0::2], states[:, 1::2]
    # Conditioning (Zero Out) has zeros alone.
    return torch.equal(keys.abs(), values.abs()) and bool(keys.any())


def clip_tokens_of(states: Tensor) -> Tensor:
    """CLIP's states, one for each token, also where they are in pairs."""
    return states[:, 0::2] if has_pairs(states) else states
