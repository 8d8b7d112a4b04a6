"""`.gguf` files, read by the package `gguf`: a header, and tensors that stay quantised and memory-mapped.

The package is optional: it is imported when such a file is opened, and not before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import IncompleteCheckpoint, MissingPackage, UnknownCheckpoint, UnreadableFile
from .filling import is_finite
from .weights import Weights, most_of

PIECE = 1 << 18  # numbers expanded at a time: little is held beside the result, and it stays in the cache


@dataclass(frozen=True)
class Quantised:
    """A tensor as the file has it.

    label: for messages. kind: the library's name of the encoding. data: memory-mapped, [rows, bytes of a row], or
    numbers where the encoding is plain; a vector is one row. Each row is quantised by itself: any can be expanded
    alone. order: our rows → the file's, where they differ.
    """

    label: str
    kind: Any
    shape: tuple[int, ...]
    data: np.ndarray
    order: np.ndarray | None = None

    def expand(self, dtype: torch.dtype = torch.float32, rows: np.ndarray | None = None) -> Tensor:
        """The numbers, of all rows or of those that are asked for: on the CPU, new in memory.

        Raises: IncompleteCheckpoint if they are not finite.
        """
        data = self.data.reshape(-1, self.data.shape[-1])
        if self.order is not None:
            rows = self.order if rows is None else self.order[rows]
        out = torch.empty(len(data if rows is None else rows), self.shape[-1], dtype=dtype)
        step = max(1, PIECE // self.shape[-1])
        for start in range(0, len(out), step):
            part = slice(start, start + step)
            out[part] = self.numbers(data[part] if rows is None else data[rows[part]])
        return out[0] if len(self.shape) == 1 else out

    def numbers(self, data: np.ndarray) -> Tensor:
        with np.errstate(all="ignore"):  # damaged scales are found below
            numbers = library().dequantize(data, self.kind)
        numbers = torch.from_numpy(numbers if numbers.flags.writeable else numbers.copy())
        if numbers.numel() and not is_finite(numbers):
            raise IncompleteCheckpoint(
                f"{self.label} has NaN or infinite values. The file is damaged; download it again."
            )
        return numbers


@dataclass(frozen=True)
class GgufFile:
    """header: single numbers and strings, by the file's names. tensors: none is read yet."""

    path: Path
    header: dict[str, Any]
    tensors: dict[str, Quantised]

    @property
    def architecture(self) -> str:
        return str(self.header.get("general.architecture"))

    @property
    def stored(self) -> str:
        """The encoding of most of its numbers."""
        return most_of((tensor.kind.name, math.prod(tensor.shape)) for tensor in self.tensors.values())

    def outline(self) -> Weights:
        """The shapes alone, for checks: as tensors without memory."""
        return outline(self.path, self.tensors)


def outline(path: Path, tensors: dict[str, Quantised]) -> Weights:
    """Shapes as tensors without memory."""
    return Weights(path, {name: torch.zeros(()).expand(tensor.shape) for name, tensor in tensors.items()})


def library() -> ModuleType:
    """The package `gguf`. Raises: MissingPackage."""
    try:
        import gguf  # noqa: PLC0415
    except ImportError as error:
        raise MissingPackage(
            "Reading a .gguf file needs the Python package gguf, which is not installed. Install it into ComfyUI's "
            "Python (python -m pip install gguf) and restart ComfyUI."
        ) from error
    return gguf


def open_gguf(path: Path) -> GgufFile:
    """Maps a file into memory and reads its header.

    Raises: MissingPackage, UnreadableFile.
    """
    gguf = library()
    if not path.is_file():
        raise UnreadableFile(f"{path} does not exist.")
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # whatever a damaged header makes of the library
        if isinstance(error, MemoryError):
            raise
        raise UnreadableFile(
            f"{path.name} ({path.stat().st_size} bytes) is damaged, cut short, no GGUF file, or newer than the "
            f"package gguf that is installed ({type(error).__name__}: {error}). Compare its size with the original "
            "and download it again, or update the package."
        ) from error
    header = {name: value_of(field) for name, field in reader.fields.items() if len(field.types) == 1}
    tensors = {}
    for tensor in reader.tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        tensors[tensor.name] = Quantised(
            f"{path.name}: {tensor.name}", tensor.tensor_type, shape, tensor.data
        )
    return GgufFile(path, header, tensors)


def value_of(field) -> Any:
    """A number or a string in a header."""
    value = field.parts[field.data[0]]
    return bytes(value).decode("utf-8", "replace") if field.types[0].name == "STRING" else value.tolist()[0]


def check_encodings(file: GgufFile) -> None:
    """Has one row of each encoding expanded. Raises: UnknownCheckpoint, IncompleteCheckpoint."""
    for kind, tensor in {tensor.kind: tensor for tensor in file.tensors.values()}.items():
        try:
            tensor.numbers(tensor.data.reshape(-1, tensor.data.shape[-1])[:1])
        except NotImplementedError as error:
            raise UnknownCheckpoint(
                f"{file.path.name} is quantised as {kind.name}, which the package gguf that is installed cannot "
                "expand. Choose another of its publisher's files (Q8_0, Q6_K, Q5_K, Q4_K, …), or update the package."
            ) from error
