"""`.gguf` files (llama.cpp's format): a header, and tensors that stay quantised and memory-mapped.

The optional package `gguf` reads them. It is imported when such a file is opened, and not before.
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

from ..errors import IncompleteCheckpoint, MissingPackage, UnknownCheckpoint, UnreadableFile, words_of
from .texts import refuse_text
from .values import is_finite
from .weights import Weights, most_common

# Numbers dequantised at a time: they fit into the processor's cache, and need little memory beside the result.
CHUNK_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Quantised:
    """A tensor as it lies in the file.

    label:     file and tensor, for messages.
    encoding:  the library's enum value, such as Q4_K.
    data:      memory-mapped, [rows, bytes of a row]; plain numbers for F32 and F16. A vector is one row. Each row is
               quantised by itself, so that any row can be dequantised alone.
    row_order: the model's rows → the file's rows, where llama.cpp stores them in another order.
    offset:    a number to add after dequantising, where llama.cpp stores weights with a constant added.
    """

    label: str
    encoding: Any
    shape: tuple[int, ...]
    data: np.ndarray
    row_order: np.ndarray | None = None
    offset: float = 0.0

    def dequantise(self, dtype: torch.dtype = torch.float32, rows: np.ndarray | None = None) -> Tensor:
        """The numbers of all rows, or of the given rows, as a new tensor on the CPU.

        Raises: IncompleteCheckpoint if they are not finite.
        """
        data = self.data.reshape(-1, self.data.shape[-1])
        if self.row_order is not None:
            rows = self.row_order if rows is None else self.row_order[rows]
        out = torch.empty(len(data if rows is None else rows), self.shape[-1], dtype=dtype)
        step = max(1, CHUNK_ELEMENTS // self.shape[-1])
        for start in range(0, len(out), step):
            part = slice(start, start + step)
            numbers = self.dequantise_rows(data[part] if rows is None else data[rows[part]])
            out[part] = numbers + self.offset if self.offset else numbers
        return out[0] if len(self.shape) == 1 else out

    def dequantise_rows(self, data: np.ndarray) -> Tensor:
        """Bytes [r, bytes of a row] → fp32 [r, columns], without `offset`. Raises: IncompleteCheckpoint."""
        with np.errstate(all="ignore"):  # a damaged scale overflows here, and is_finite() finds it
            numbers = gguf_library().dequantize(data, self.encoding)
        tensor = torch.from_numpy(numbers if numbers.flags.writeable else numbers.copy())
        if tensor.numel() and not is_finite(tensor):
            raise IncompleteCheckpoint(
                f"{self.label} has NaN or infinite values. The file is damaged; download it again."
            )
        return tensor


@dataclass(frozen=True)
class GgufFile:
    """header: its single numbers and strings, by key. tensors: by name; nothing of them has been read yet."""

    path: Path
    header: dict[str, Any]
    tensors: dict[str, Quantised]

    @property
    def architecture(self) -> str:
        return str(self.header.get("general.architecture"))

    @property
    def dtype_name(self) -> str:
        """The encoding that most of the file's numbers have."""
        return most_common(
            (tensor.encoding.name, math.prod(tensor.shape)) for tensor in self.tensors.values()
        )

    def shapes(self) -> Weights:
        """The tensors' shapes, for checks that take `Weights`."""
        return shapes_only(self.path, self.tensors)


def shapes_only(path: Path, tensors: dict[str, Quantised]) -> Weights:
    """`Weights` whose tensors have the right shapes and take no memory."""
    return Weights(path, {name: torch.zeros(()).expand(tensor.shape) for name, tensor in tensors.items()})


def gguf_library() -> ModuleType:
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
    """Memory-maps a file and reads its header. With the words of a tokenizer in it, that takes seconds.

    Raises: MissingPackage, UnreadableFile.
    """
    gguf = gguf_library()
    if not path.is_file():
        raise UnreadableFile(f"{path} does not exist.")
    refuse_text(path)
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # a damaged header can make the library raise any of them
        if isinstance(error, MemoryError):
            raise
        raise UnreadableFile(
            f"{path.name} ({path.stat().st_size} bytes) is damaged, cut short, not a GGUF file, or newer than the "
            f"installed package gguf ({words_of(error)}). Compare its size with the original and "
            "download it again, or update the package."
        ) from error
    header = {name: field_value(field) for name, field in reader.fields.items() if len(field.types) == 1}
    tensors = {}
    for tensor in reader.tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        tensors[tensor.name] = Quantised(
            f"{path.name}: {tensor.name}", tensor.tensor_type, shape, tensor.data
        )
    return GgufFile(path, header, tensors)


def field_value(field: Any) -> Any:
    """The number or string in a header field."""
    value = field.parts[field.data[0]]
    return bytes(value).decode("utf-8", "replace") if field.types[0].name == "STRING" else value.tolist()[0]


def check_encodings(file: GgufFile) -> None:
    """Dequantises one row of each encoding in the file. Raises: UnknownCheckpoint, IncompleteCheckpoint."""
    for encoding, tensor in {tensor.encoding: tensor for tensor in file.tensors.values()}.items():
        try:
            tensor.dequantise_rows(tensor.data.reshape(-1, tensor.data.shape[-1])[:1])
        except NotImplementedError as error:
            raise UnknownCheckpoint(
                f"{file.path.name} is quantised as {encoding.name}, which the installed package gguf cannot "
                "dequantise. Choose another of its publisher's files (Q8_0, Q6_K, Q5_K, Q4_K, …), or update the "
                "package."
            ) from error
