"""`.gguf` files → models whose matrices stay quantised. The spellings are in `t5.py` and `decoder.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..encoders.decoder import DecoderConfig
from ..encoders.linear import dequantising_gguf, hold_matrix
from ..encoders.t5 import T5Config
from ..errors import UnknownCheckpoint
from ..files.gguf import Quantised, check_encodings, open_gguf
from ..progress import Progress, silent
from . import decoder, t5
from .fill import Recognised


@dataclass(frozen=True)
class GgufModel:
    """A recognised `.gguf` file, kept open: reading its header again, with all words of a tokenizer, takes seconds.

    tensors:      by the model's parameter names, as the model has them.
    rope_factors: divisors of the rotary frequencies; None: they are all 1.
    dtype_name:   the encoding of most of the file's numbers.
    """

    path: Path
    found: Recognised[T5Config] | Recognised[DecoderConfig]
    tensors: dict[str, Quantised]
    rope_factors: Tensor | None
    dtype_name: str


def recognise_gguf(path: Path) -> GgufModel:
    """Opens a `.gguf` file and checks its tensors: all present, of the right shape, in encodings that can be read.

    Raises: MissingPackage, UnreadableFile, UnknownCheckpoint, IncompleteCheckpoint.
    """
    file = open_gguf(path)
    architecture = file.architecture
    if file.header.get("split.count", 1) > 1:
        raise UnknownCheckpoint(
            f"{path.name} is one of {file.header['split.count']} parts. Join them with llama.cpp's "
            "`llama-gguf-split --merge`, and load the result."
        )
    found: Recognised[T5Config] | Recognised[DecoderConfig]
    if architecture in t5.GGUF_ARCHITECTURES:
        found = t5.recognise_gguf_t5(file)
    elif architecture in decoder.GGUF_ARCHITECTURES:
        found = decoder.recognise_gguf_decoder(file)
    else:
        known = ", ".join((*t5.GGUF_ARCHITECTURES, *decoder.GGUF_ARCHITECTURES))
        raise UnknownCheckpoint(
            f"{path.name} holds a model of the architecture {architecture}. As .gguf files, {known} can be read; "
            "other models can be read from a folder of safetensors with its config.json."
        )
    check_encodings(file)
    tensors = {ours: file.tensors[theirs] for theirs, ours in found.names.items()}
    if isinstance(config := found.config, DecoderConfig):
        tensors = {
            name: decoder.from_gguf(tensor, name, architecture, config) for name, tensor in tensors.items()
        }
    factors = file.tensors.get(decoder.ROPE_FACTORS)
    return GgufModel(path, found, tensors, None if factors is None else factors.values(), file.dtype_name)


def load_gguf(model: GgufModel, *, depth: int, operations: Any = nn, progress: Progress = silent) -> Any:
    """Builds the first `depth` layers. Matrices stay as they are in the file; norms and biases become fp32.

    Raises: IncompleteCheckpoint.
    """
    wanted = model.found.build(depth=depth, operations=nn).state_dict()
    built = model.found.build(depth=depth, operations=dequantising_gguf(operations))
    vectors: dict[str, Tensor] = {}
    step = progress(len(wanted))
    for name in wanted:
        tensor = model.tensors[name]
        if len(tensor.shape) == 1:
            vectors[name] = tensor.values()
        else:
            hold_matrix(built.get_submodule(name.removesuffix(".weight")), tensor.stored(), tensor.dequantise)
        step()
    built.load_state_dict(vectors, strict=False, assign=True)
    assert not any(parameter.is_meta for parameter in built.parameters())
    if model.rope_factors is not None:
        built.model.rotary_emb.inv_freq /= model.rope_factors
    return built.eval().requires_grad_(False)
