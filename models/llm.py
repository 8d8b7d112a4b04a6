"""An LLM as an adapter needs it: a file that is recognised from its headers, then text → tokens → hidden states."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from .checkpoints.decoder import is_transformers_folder, recognise_decoder
from .checkpoints.fill import Recognised, fill
from .checkpoints.gguf import GgufModel, load_gguf, recognise_gguf
from .checkpoints.same_llm import DECODER, T5, LLMFacts
from .checkpoints.t5 import OTHER_TOKENIZERS, recognise_t5
from .encoders.decoder import Decoder, DecoderConfig
from .encoders.linear import dequantising_fp8
from .encoders.t5 import T5Config, T5Encoder
from .errors import UnreadableFile, UnreadableText, WrongRecipe
from .features.features import Features
from .files.folder import weight_files
from .files.formats import is_gguf
from .files.texts import JSON_STARTS, refuse_text
from .files.weights import open_weights
from .progress import Progress, silent
from .recipe import Recipe
from .tokens import Tokens, tokenize_for_llm

Encoder = T5Encoder | Decoder
SAMPLE_BYTES = 1 << 20  # read at either end of a file for its identity


@dataclass(frozen=True)
class LLMFile:
    """An LLM on disk that was recognised, but not loaded.

    found:      its sizes and tensor names, so that loading need not recognise the file again.
    identity:   a digest that changes when the files do.
    content:    a digest that copies of the files share, wherever they lie. See `digests_of`.
    dtype_name: the dtype or encoding that most of its numbers have.
    gguf:       the open file, if it is a `.gguf`.
    """

    path: Path
    found: Recognised[T5Config] | Recognised[DecoderConfig]
    identity: str
    content: str
    dtype_name: str
    gguf: GgufModel | None = None

    @property
    def config(self) -> T5Config | DecoderConfig:
        return self.found.config

    @property
    def is_t5(self) -> bool:
        """Whether ComfyUI's T5 tokenizer can serve; ComfyUI brings no other LLM's."""
        return isinstance(self.config, T5Config)

    @property
    def kind(self) -> str:
        """The architecture, for people: `t5`, `mt5`, `llama`, …"""
        if isinstance(self.config, T5Config):
            return OTHER_TOKENIZERS.get(self.config.vocabulary, "t5")
        return self.config.family

    @property
    def facts(self) -> LLMFacts:
        """What tells whether an adapter was trained with this LLM."""
        config, architecture = self.config, T5 if self.is_t5 else DECODER
        sizes = config.layers, config.width, config.mlp_dim, config.vocabulary
        return LLMFacts(self.path.name, self.content, architecture, *sizes)

    def load(
        self,
        depth: int | None = None,
        *,
        dtype: torch.dtype | None = None,
        operations: Any = nn,
        progress: Progress = silent,
        mapped: bool = True,
    ) -> Encoder:
        """Builds the first `depth` layers (None: all) and fills them: an encoder, ids [n] and rows → states [r, width].

        dtype:  of the weights in memory; None keeps the file's. The matrices of a `.gguf` file always stay quantised.
        mapped: whether weights may stay memory-mapped. Those of a `.gguf` file always do.
        Raises: UnreadableFile if the file is no longer the one that was recognised, UnknownCheckpoint if the LLM
        cannot be cut at that layer, IncompleteCheckpoint.
        """
        if digests_of(self.path)[0] != self.identity:
            raise UnreadableFile(f"{self.path.name} has changed since it was chosen. Run the prompt again.")
        depth = self.config.layers if depth is None else depth
        if self.gguf is not None:
            return load_gguf(self.gguf, depth=depth, operations=operations, progress=progress)
        return fill(
            self.found,
            open_weights(self.path),
            operations=dequantising_fp8(operations),
            dtype=dtype,
            progress=progress,
            mapped=mapped,
            depth=depth,
        )


def open_llm(path: Path) -> LLMFile:
    """Recognises the LLM in a file or folder, and checks the names and shapes of its tensors. Reads no weights.

    Raises: UnreadableFile, UnknownCheckpoint, IncompleteCheckpoint, MissingPackage.
    """
    digests = digests_of(path)
    if is_gguf(path):
        gguf = recognise_gguf(path)
        return LLMFile(path, gguf.found, *digests, gguf.dtype_name, gguf)
    if (path / "config.json").is_file():
        refuse_text(path / "config.json", *JSON_STARTS)
    weights = open_weights(path)
    found = recognise_decoder(weights) if is_transformers_folder(path) else recognise_t5(weights)
    return LLMFile(path, found, *digests, weights.dtype_name)


def digests_of(path: Path) -> tuple[str, str]:
    """Two digests of an LLM's files: of their names, sizes, times and both ends, and of their sizes and ends alone.

    Headers lie at the ends. Raises: UnreadableFile.
    """
    identity, content = hashlib.sha256(), hashlib.sha256()
    config = [path / "config.json"] if (path / "config.json").is_file() else []
    for file in [*weight_files(path), *config]:
        try:
            status = file.stat()
            with file.open("rb") as stream:
                start = stream.read(SAMPLE_BYTES)
                stream.seek(max(0, status.st_size - SAMPLE_BYTES))
                end = stream.read(SAMPLE_BYTES)
        except OSError as error:
            raise UnreadableFile(f"{file} cannot be read: {error.strerror}.") from error
        size = str(status.st_size)
        for digest, facts in ((identity, f"{file.name} {size} {status.st_mtime_ns}"), (content, size)):
            for part in (f"{facts}\n".encode(), start, end):
                digest.update(part)
    return identity.hexdigest(), content.hexdigest()


class LLM:
    """A recognised LLM with its tokenizer. Whoever calls `encode` loads the encoder, keeps it and moves it."""

    def __init__(self, file: LLMFile, tokenizer: PreTrainedTokenizerBase):
        self.file = file
        self.tokenizer = tokenizer

    def tokenize(self, text: str, recipe: Recipe, weights: Sequence[float] = ()) -> Tokens:
        """See `tokenize_for_llm`. Raises: UnreadableText for a token that the LLM has no embedding for."""
        tokens = tokenize_for_llm(self.tokenizer, text, recipe, weights)
        unknown = next((token for token in tokens.ids if token >= self.file.config.vocabulary), None)
        if unknown is not None:
            raise UnreadableText(
                f"The text holds {self.tokenizer.convert_ids_to_tokens(unknown)}, which is token {unknown} of "
                f"{self.file.path.name}'s tokenizer, but the LLM has embeddings for {self.file.config.vocabulary} "
                "tokens only. It is not meant for text: remove it from the prompt."
            )
        return tokens

    def depth(self, recipe: Recipe) -> int:
        """How many layers lead to the recipe's hidden state. Raises: WrongRecipe if the encoder has too few."""
        layers = self.file.config.layers
        if not -layers - 1 <= recipe.layer <= layers:
            raise WrongRecipe(
                f"The adapter wants hidden state {recipe.layer} of its LLM, but this encoder has {layers} layers. "
                "Load the encoder that the adapter was trained with, or choose another layer for a new adapter."
            )
        return recipe.layer % (layers + 1)

    def encode(self, encoder: Encoder, ids: Sequence[int], recipe: Recipe, **how: Any) -> Features:
        """See `encode_all`."""
        (features,) = self.encode_all(encoder, [ids], recipe, **how)
        return features

    def encode_all(
        self,
        encoder: Encoder,
        prompts: Sequence[Sequence[int]],
        recipe: Recipe,
        *,
        device: torch.device,
        compute_dtype: torch.dtype,
        progress: Progress = silent,
    ) -> list[Features]:
        """Runs an encoder on `device` that ends at the recipe's layer, on all prompts at once.

        A prompt's states are those that it has alone, but for rounding. The features stay on that device.
        """
        config = self.file.config
        rows = [config.rows(len(ids), recipe.tokens, recipe.padding) for ids in prompts]
        on_layer = progress(self.depth(recipe))
        tensors = [torch.tensor(ids, device=device) for ids in prompts]
        states = encoder.batch(tensors, rows, compute_dtype=compute_dtype, on_layer=on_layer)
        return [Features(own, plan) for own, plan in zip(states, rows, strict=True)]
