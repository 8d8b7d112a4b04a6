"""A `.gguf` file → the plan of a safetensors file with the same numbers, which needs no optional package."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ..checkpoints.decoder import ROPE_FACTORS
from ..checkpoints.gguf import recognise_gguf
from ..checkpoints.rotary import old_spelling
from ..checkpoints.t5 import published_names
from ..encoders.decoder import DecoderConfig
from ..encoders.t5 import T5Config
from ..errors import UnknownCheckpoint
from ..files.gguf import Quantised, shapes_only
from ..files.weights import CHUNK_BYTES
from ..tokens import load_tokenizer
from .conversion import Conversion, new_dtypes, t5_tokenizer

FP32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class GgufConversion(Conversion):
    """tensors: the source's, by the names that they will have."""

    tensors: dict[str, Quantised]

    def source_values(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            tensor = self.tensors[name]
            if len(tensor.shape) == 1:
                yield name, tensor.values()
                continue
            rows, columns = tensor.shape
            step = max(1, CHUNK_BYTES // (FP32_BYTES * columns))
            for start in range(0, rows, step):
                yield name, tensor.values(slice(start, start + step))


def plan_gguf(path: Path, dtype: str) -> Conversion:
    """Raises: MissingPackage, UnreadableFile, UnknownCheckpoint, IncompleteCheckpoint."""
    model = recognise_gguf(path)
    config = model.found.config
    if model.rope_factors is not None:
        raise UnknownCheckpoint(
            f"{path.name} has rotary frequencies of its own ({ROPE_FACTORS}), which would have to be told by the new "
            "folder's config.json. Load the .gguf file as it is, or convert the original folder."
        )
    companions, tokenizer_folder = None, None
    if isinstance(config, T5Config):
        kind = "T5 encoder"
        new_names = {ours: theirs for theirs, ours in published_names(config.layers).items()}
        tokenizer_folder, tokenizer = t5_tokenizer(path)
    else:
        kind = config.family
        new_names = {ours: ours for ours in model.tensors}
        tokenizer = path.name  # the tokenizer is inside the file
        companions = partial(write_companions, path, config)
    tensors = {new_names[ours]: tensor for ours, tensor in model.tensors.items()}
    return GgufConversion(
        shapes_only(path, tensors),
        f"{kind}, {config.layers} layers of width {config.width}",
        dtype,
        new_dtypes(model.found.build(), {new: ours for ours, new in new_names.items()}, dtype),
        {"tokenizer": tokenizer},
        tokenizer_folder,
        companions,
        tensors=tensors,
    )


def write_companions(path: Path, config: DecoderConfig, folder: Path) -> None:
    """Writes the config.json and the tokenizer that a `.gguf` file has inside. Raises: MissingTokenizer.

    The config.json says the rotary positions twice, as transformers 5 and as older versions read them.
    """
    load_tokenizer(path, config.vocabulary).save_pretrained(str(folder))
    config.hf_config.save_pretrained(str(folder))
    file = folder / "config.json"
    entries = json.loads(file.read_text(encoding="utf-8"))
    if entries.get("rope_parameters"):
        entries |= old_spelling(entries["rope_parameters"])
        file.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
