"""A plan to write a model's weights in another dtype, and the numbers to write, checked on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoints.fill import dtypes_of
from ..files.formats import TOKENIZER_FILE, has_tokenizer
from ..files.fp8 import SCALED_FP8, scale_for, scale_name
from ..files.values import DTYPES, check_range, largest_magnitude
from ..files.weights import Weights, read_in_chunks

HOST_TOKENIZER = "ComfyUI's T5 tokenizer"


@dataclass(frozen=True)
class Conversion:
    """What the new file will hold.

    weights:   the source.
    kind:      the model, for people.
    dtype:     one of `DTYPE_NAMES`.
    dtypes:    of each tensor, by the name that it will have.
    metadata:  of the new file.
    tokenizer: the folder of the encoder's own tokenizer, if it has one.
    companions: writes the files that must lie beside the weights into a folder; None: the new file stands alone.
    """

    weights: Weights
    kind: str
    dtype: str
    dtypes: dict[str, torch.dtype]
    metadata: dict[str, str]
    tokenizer: Path | None = None
    companions: Callable[[Path], None] | None = None

    @property
    def left_out(self) -> list[str]:
        """The source's tensors that are not written."""
        return [name for name in self.weights.tensors if name not in self.dtypes]

    @cached_property
    def scales(self) -> dict[str, float]:
        """The scale of each tensor that becomes fp8. To find it, all of these tensors are read.

        Raises: IncompleteCheckpoint for values that are not finite.
        """
        largest = dict.fromkeys((name for name, dtype in self.dtypes.items() if dtype.itemsize == 1), 0.0)
        for name, chunk in self.source_values(largest):
            check_range(f"{self.weights.name}: {name}", chunk, torch.float32)
            largest[name] = max(largest[name], largest_magnitude(chunk))
        return {name: scale_for(most) for name, most in largest.items()}

    def scale_tensors(self) -> dict[str, Tensor]:
        """The tensors that say that weights are scaled, and by how much."""
        tensors = {scale_name(name): torch.tensor(scale) for name, scale in self.scales.items()}
        return {**tensors, SCALED_FP8: torch.zeros(2)} if tensors else {}

    def outline(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """The dtype and shape of each tensor of the new file."""
        outline = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self.scale_tensors().items()}
        shapes = self.weights.tensors
        return outline | {name: (dtype, tuple(shapes[name].shape)) for name, dtype in self.dtypes.items()}

    def chunks(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yields (name, rows) in the new dtypes, some rows at a time; the scale tensors come first.

        Raises: IncompleteCheckpoint for values that are not finite, or not in the new dtype.
        """
        scale_tensors = self.scale_tensors()
        yield from scale_tensors.items()
        for name, chunk in self.source_values(name for name in names if name not in scale_tensors):
            values = chunk.float() / self.scales[name] if name in self.scales else chunk
            check_range(f"{self.weights.name}: {name}", values, self.dtypes[name])
            yield name, values.to(self.dtypes[name])

    def source_values(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yields (name, rows) of the source, some rows at a time, with its fp8 scales applied."""
        for name, chunk in read_in_chunks(self.weights, names):
            scale = self.weights.scales.get(name)
            yield name, chunk if scale is None else chunk.float() * scale


def new_dtypes(blueprint: nn.Module, names: Mapping[str, str], dtype: str) -> dict[str, torch.dtype]:
    """The dtypes that the loaders would keep the tensors in with that dtype chosen, by the file's names.

    names: the file's → the model's.
    """
    dtypes = dtypes_of(blueprint, DTYPES[dtype])
    return {theirs: dtypes[ours] for theirs, ours in names.items()}


def t5_tokenizer(encoder: Path) -> tuple[Path | None, str]:
    """The folder of a T5's own tokenizer, if it has one, and what the new file's metadata says of the tokenizer."""
    folder = encoder if encoder.is_dir() else encoder.parent
    own = folder.resolve() if has_tokenizer(folder) else None
    return own, f"{own.name}/{TOKENIZER_FILE}" if own else HOST_TOKENIZER
