"""A .gguf file → the same numbers as a safetensors file that needs no package to be read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from .checkpoint import t5_names
from .conversion import Conversion, dtypes_of, t5_tokenizer
from .decoder import Decoder, DecoderConfig
from .errors import UnknownCheckpoint
from .gguf_checkpoint import ROTATION, in_our_order, names_of, recognise_gguf, vector_of
from .gguf_file import GgufFile, Quantised, outline
from .llm import load_tokenizer
from .t5 import T5Config, T5Encoder
from .weights import PIECE


@dataclass(frozen=True, kw_only=True)
class GgufConversion(Conversion):
    """matrices: by the names that they shall have. vectors: norms and biases, likewise."""

    matrices: dict[str, Quantised]
    vectors: dict[str, Tensor]

    def values(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            if name in self.vectors:
                yield name, self.vectors[name]
                continue
            matrix = self.matrices[name]
            step = max(1, PIECE // (4 * matrix.shape[1]))
            for start in range(0, matrix.shape[0], step):
                yield name, matrix.expand(rows=np.arange(start, min(start + step, matrix.shape[0])))


def plan_gguf(path: Path, dtype: str) -> Conversion:
    """Raises: MissingPackage, UnreadableFile, UnknownCheckpoint, IncompleteCheckpoint."""
    config, file = recognise_gguf(path)
    if ROTATION in file.tensors:
        raise UnknownCheckpoint(
            f"{path.name} has a rotation of its own ({ROTATION}), which its config.json elsewhere would have to tell. "
            "Load the .gguf file as it is, or convert the original folder."
        )
    if isinstance(config, T5Config):
        blueprint, kind = T5Encoder(config, device="meta"), "T5 encoder"
        own, tokenizer = t5_tokenizer(path)
        published = {ours: theirs for theirs, ours in t5_names("", config.layers).items()}
    else:
        blueprint, kind = Decoder(config), config.transformers.model_type
        own, tokenizer = None, path.name  # inside the file
        published = {ours: ours for ours in blueprint.state_dict()}
    found = {
        published[ours]: in_our_order(file.tensors[theirs], ours, file.architecture, config)
        for theirs, ours in names_of(file, config).items()
    }
    return GgufConversion(
        outline(path, found),
        f"{kind}, {config.layers} layers of width {config.width}",
        dtype,
        dtypes_of(blueprint, {theirs: ours for ours, theirs in published.items()}, dtype),
        {"tokenizer": tokenizer},
        own,
        furnish=partial(furnish, file, config) if isinstance(config, DecoderConfig) else None,
        matrices={name: tensor for name, tensor in found.items() if len(tensor.shape) > 1},
        vectors={
            name: vector_of(tensor, name, file.architecture)
            for name, tensor in found.items()
            if len(tensor.shape) == 1
        },
    )


def furnish(file: GgufFile, config: DecoderConfig, folder: Path) -> None:
    """Writes the config.json and the tokenizer that the file has inside. Raises: MissingTokenizer."""
    load_tokenizer(file.path, config.vocabulary).save_pretrained(str(folder))
    config.transformers.save_pretrained(str(folder))
