"""An LLM as an adapter needs it: words in, hidden states of every wanted position out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .errors import MissingTokenizer, WrongRecipe
from .progress import Progress, silent
from .recipe import Recipe
from .rows import PAD, Rows, distinct_rows, real_rows
from .t5 import T5Encoder

TOKENIZER_FILE = "tokenizer.json"


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer that can be read with what the host brings (`spiece.model` cannot)."""
    return (folder / TOKENIZER_FILE).is_file()


def load_tokenizer(folder: Path, vocabulary: int) -> PreTrainedTokenizerBase:
    """Reads a tokenizer from a folder, without network and without code from the folder.

    vocabulary: rows of the encoder's embedding. T5 rounds it up (32100 pieces, 32128 rows).
    Raises: MissingTokenizer if the folder holds none, a damaged one, or one whose ids the encoder lacks or
    that leaves much of the encoder's vocabulary unused.
    """
    if not has_tokenizer(folder):
        raise MissingTokenizer(
            f"{folder} holds no tokenizer ({TOKENIZER_FILE}). "
            "Put the tokenizer files of the encoder beside its weights."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file makes of the library
        raise MissingTokenizer(
            f"The tokenizer in {folder} cannot be read ({type(error).__name__}: {error}). Get its files again, or "
            "remove them to use ComfyUI's own T5 tokenizer."
        ) from error
    if not len(tokenizer) <= vocabulary <= len(tokenizer) + 128:
        raise MissingTokenizer(
            f"The tokenizer in {folder} has {len(tokenizer)} pieces, the encoder {vocabulary} embeddings: they "
            "do not belong together. Put the encoder in a folder of its own with its config.json and its own "
            "tokenizer files."
        )
    return tokenizer


@dataclass(frozen=True)
class Tokens:
    """ids [n]: at most the recipe's length. dropped: how many tokens of words did not fit."""

    ids: Tensor
    dropped: int


@dataclass(frozen=True)
class Features:
    """states [r, width]: fp32, one row for each that differs. rows: where each stands."""

    states: Tensor
    rows: Rows


class LLM:
    """A T5 encoder with its tokenizer. Moving the encoder between devices is the caller's business."""

    def __init__(self, encoder: T5Encoder, tokenizer: PreTrainedTokenizerBase):
        self.encoder = encoder
        self.tokenizer = tokenizer

    def tokenize(self, text: str, recipe: Recipe) -> Tokens:
        """The recipe's prompt as ids, cut to its length.

        As published: not cut by the tokenizer but after it, so that a long prompt loses its `</s>`.
        """
        ids = self.tokenizer(recipe.prompt(text), verbose=False)["input_ids"] or [PAD]
        words = len(ids) - (ids[-1] == self.tokenizer.eos_token_id)  # losing the end mark is losing no words
        return Tokens(torch.tensor(ids[: recipe.tokens]), max(0, words - recipe.tokens))

    def rows(self, tokens: Tokens, recipe: Recipe) -> Rows:
        """The rows that must be computed for what the recipe keeps."""
        if recipe.padding == "drop":
            return real_rows(len(tokens.ids))
        config = self.encoder.config
        return distinct_rows(len(tokens.ids), recipe.tokens, config.buckets, config.max_distance)

    def depth(self, recipe: Recipe) -> int:
        """How many blocks lead to the recipe's layer. Raises: WrongRecipe if the encoder has too few."""
        layers = self.encoder.config.layers
        if not -layers - 1 <= recipe.layer <= layers:
            raise WrongRecipe(
                f"The adapter wants hidden state {recipe.layer} of its LLM; this encoder has {layers} layers. "
                "Load the encoder that the adapter was trained with."
            )
        return recipe.layer % (layers + 1)

    def read(
        self,
        tokens: Tokens,
        recipe: Recipe,
        *,
        device: torch.device,
        products: torch.dtype,
        progress: Progress = silent,
    ) -> Features:
        """Runs the encoder, which is on `device`, up to the recipe's layer: states [r, width], fp32, there.

        Raises: WrongRecipe.
        """
        rows, depth = self.rows(tokens, recipe), self.depth(recipe)
        states = self.encoder(
            tokens.ids.to(device), rows, depth=depth, products=products, on_layer=progress(depth)
        )
        return Features(states, rows)
