"""An LLM as an adapter needs it: words in, hidden states of every wanted position out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .errors import MissingTokenizer, WrongRecipe
from .formats import TOKENIZER_FILE, has_tokenizer, is_gguf
from .progress import Progress, silent
from .recipe import Recipe
from .rows import PAD, Rows
from .source import Source


def load_tokenizer(place: Path, vocabulary: int) -> PreTrainedTokenizerBase:
    """Reads a tokenizer from a folder or a .gguf file, without network and without code from there.

    vocabulary: rows of the encoder's embedding. Many round it up (T5: 32100 pieces, 32128 rows).
    Raises: MissingTokenizer if the place holds none, a damaged one, or one whose ids the encoder lacks or
    that leaves much of the encoder's vocabulary unused.
    """
    inside = {"gguf_file": place.name} if is_gguf(place) else {}
    if not inside and not has_tokenizer(place):
        raise MissingTokenizer(
            f"{place} holds no tokenizer ({TOKENIZER_FILE}). "
            "Put the tokenizer files of the encoder beside its weights."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(place.parent if inside else place), local_files_only=True, trust_remote_code=False, **inside
        )
    except Exception as error:  # whatever a damaged file makes of the library
        raise MissingTokenizer(
            f"The tokenizer in {place} cannot be read ({type(error).__name__}: {error}). "
            + (
                f"Put the encoder in a folder of its own with its {TOKENIZER_FILE}."
                if inside
                else "Get its files again, or remove them to use ComfyUI's own T5 tokenizer."
            )
        ) from error
    if not len(tokenizer) <= vocabulary <= 1.01 * len(tokenizer):
        raise MissingTokenizer(
            f"The tokenizer in {place} has {len(tokenizer)} pieces, the encoder {vocabulary} embeddings: they "
            "do not belong together. Put the encoder in a folder of its own with its config.json and its own "
            "tokenizer files."
        )
    return tokenizer


@dataclass(frozen=True)
class Tokens:
    """ids and their weights (the emphasis on each): at most as many as the recipe's length. total: how many there
    were before the cut, template and end mark included. dropped: how many tokens of words did not fit."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    total: int
    dropped: int


@dataclass(frozen=True)
class Features:
    """states [r, width]: fp32, one row for each that differs. rows: where each stands."""

    states: Tensor
    rows: Rows

    def emphasised(self, weights: Sequence[float], empty: Features) -> Features:
        """ComfyUI's emphasis: each token's difference to the empty prompt's state at its position, scaled.

        weights: one for each token. Where an adapter drops the padding, the empty prompt is shorter, and its
        last state stands for what it lacks. States of weight 1 stay as they are, to the bit.
        """
        weight = torch.tensor(weights, dtype=self.states.dtype, device=self.states.device)[:, None]
        nothing = empty.rows.spread(empty.states)
        nothing = nothing[torch.arange(len(weights)).clamp(max=len(nothing) - 1)]
        tokens, padding = self.states[: len(weights)], self.states[len(weights) :]
        scaled = torch.where(weight == 1, tokens, (tokens - nothing) * weight + nothing)
        return Features(torch.cat([scaled, padding]), self.rows)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, text: str, recipe: Recipe, weights: Sequence[float] = ()
) -> Tokens:
    """The recipe's prompt as tokens, cut to its length.

    As published: not cut by the tokenizer but after it, so that a long prompt loses its `</s>`.
    weights: the emphasis on each character of the text; a token takes that of its first that is no space.
    """
    prompt = recipe.prompt(text)
    emphasised = any(weight != 1.0 for weight in weights)
    read = tokenizer(prompt, verbose=False, return_offsets_mapping=emphasised)
    ids = read["input_ids"] or [PAD]
    each = [1.0] * len(ids)
    if emphasised:
        on = recipe.spread(weights)
        for index, (start, end) in enumerate(read["offset_mapping"]):
            inked = (place for place in range(start, end) if not prompt[place].isspace())
            each[index] = on[next(inked, start)] if start < end else 1.0
    kept = slice(recipe.tokens)
    words = len(ids) - (ids[-1] == tokenizer.eos_token_id)  # losing the end mark is losing no words
    return Tokens(tuple(ids[kept]), tuple(each[kept]), len(ids), max(0, words - recipe.tokens))


def cut_words(tokenizer: PreTrainedTokenizerBase, text: str, recipe: Recipe) -> str:
    """The end of a user's words that does not fit in the recipe's length; empty if all of them do."""
    read = tokenizer(recipe.prompt(text), verbose=False, return_offsets_mapping=True)
    starts = [start for start, end in read["offset_mapping"][recipe.tokens :] if start < end]
    if not starts:
        return ""
    before, _, _ = recipe.around.partition("{text}")
    return text[max(0, starts[0] - len(before)) :].strip()


class LLM:
    """A recognised LLM with its tokenizer. Its encoder is the caller's to load, to keep and to move."""

    def __init__(self, source: Source, tokenizer: PreTrainedTokenizerBase):
        self.source = source
        self.tokenizer = tokenizer

    def tokenize(self, text: str, recipe: Recipe, weights: Sequence[float] = ()) -> Tokens:
        return tokenize(self.tokenizer, text, recipe, weights)

    def depth(self, recipe: Recipe) -> int:
        """How many layers lead to the recipe's hidden state. Raises: WrongRecipe if the encoder has too few."""
        layers = self.source.config.layers
        if not -layers - 1 <= recipe.layer <= layers:
            raise WrongRecipe(
                f"The adapter wants hidden state {recipe.layer} of its LLM; this encoder has {layers} layers. "
                "Load the encoder that the adapter was trained with."
            )
        return recipe.layer % (layers + 1)

    def read(
        self,
        encoder: nn.Module,
        ids: Sequence[int],
        recipe: Recipe,
        *,
        device: torch.device,
        products: torch.dtype,
        progress: Progress = silent,
    ) -> Features:
        """Runs the encoder, which is on `device` and ends at the recipe's layer: states [r, width], fp32, there."""
        rows = self.source.config.rows(len(ids), recipe.tokens, recipe.padding)
        on_layer = progress(self.depth(recipe))
        states = encoder(torch.tensor(ids, device=device), rows, products=products, on_layer=on_layer)
        return Features(states, rows)
