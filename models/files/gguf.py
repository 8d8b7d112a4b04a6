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

from ..errors import (
    IncompleteCheckpoint,
    MissingPackage,
    UnknownCheckpoint,
    UnreadableFile,
    is_out_of_memory,
    words_of,
)
from .gguf_blocks import LAYOUTS
from .texts import refuse_text
from .values import is_finite
from .weights import Weights, most_common

PLAIN = ("F32", "F16", "BF16")  # encodings that are dtypes of torch


@dataclass(frozen=True)
class Quantised:
    """A tensor as it lies in the file.

    label:     file and tensor, for messages.
    encoding:  the library's enum value, such as Q4_K.
    data:      memory-mapped, [rows, bytes of a row]; plain numbers for F32, F16 and BF16. A vector is one row. Each
               row is quantised by itself, so that any row can be dequantised alone.
    row_order: the model's rows → the file's rows, where llama.cpp stores them in another order.
    offset:    a number to add after dequantising, where llama.cpp stores weights with a constant added.
    """

    label: str
    encoding: Any
    shape: tuple[int, ...]
    data: Tensor
    row_order: Tensor | None = None
    offset: float = 0.0

    def stored(self, rows: slice = slice(None)) -> Tensor:
        """`data` in the model's order of rows, or the given rows of it. Raises: IncompleteCheckpoint."""
        data = self.data[rows] if self.row_order is None else self.data[self.row_order[rows]]
        self.check(data)
        return data

    def values(self, rows: slice = slice(None)) -> Tensor:
        """The numbers of a vector, or of all or the given rows of a matrix, in fp32. Raises: IncompleteCheckpoint."""
        if len(self.shape) == 1:
            self.check(self.data)
            return self.dequantise(self.data)[0] + self.offset
        return self.dequantise(self.stored(rows)) + self.offset

    def dequantise(self, data: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows of `data`, on any device → their numbers [r, columns] on the same device, without `offset`.

        Encodings that only the library knows are dequantised on the CPU, which waits for the device. They are also
        the ones whose numbers are checked here, since `check` cannot know them. Raises: IncompleteCheckpoint.
        """
        if self.encoding.name in PLAIN:
            return data.to(dtype)
        if layout := LAYOUTS.get(self.encoding.name):
            return layout.dequantise(data, dtype)
        with np.errstate(all="ignore"):  # a damaged scale overflows here, and `check_numbers` finds it
            numbers = torch.from_numpy(gguf_library().dequantize(data.cpu().numpy(), self.encoding))
        self.check_numbers(numbers)
        return numbers.to(data.device, dtype)

    def check(self, data: Tensor) -> None:
        """Checks that the numbers in rows of `data` are finite, without dequantising them.

        Raises: IncompleteCheckpoint.
        """
        if self.encoding.name in PLAIN:
            self.check_numbers(data)
        elif layout := LAYOUTS.get(self.encoding.name):
            self.check_numbers(layout.fp16_numbers(data))

    def check_numbers(self, numbers: Tensor) -> None:
        """Raises: IncompleteCheckpoint."""
        if numbers.numel() and not is_finite(numbers):
            raise IncompleteCheckpoint(
                f"{self.label} has NaN or infinite values. The file is damaged; download it again."
            )


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
        # Copy on write, as safetensors are mapped: ComfyUI may lock pages for the GPU only if they can be written.
        reader = gguf.GGUFReader(path, "c")
    except Exception as error:  # a damaged header can make the library raise any of them
        if is_out_of_memory(error):
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
        data = torch.from_numpy(tensor.data)
        if tensor.tensor_type.name == "BF16":
            data = data.view(torch.bfloat16)
        data = data.reshape(-1, data.shape[-1])
        tensors[tensor.name] = Quantised(f"{path.name}: {tensor.name}", tensor.tensor_type, shape, data)
    return GgufFile(path, header, tensors)


def field_value(field: Any) -> Any:
    """The number or string in a header field."""
    value = field.parts[field.data[0]]
    return bytes(value).decode("utf-8", "replace") if field.types[0].name == "STRING" else value.tolist()[0]


def check_encodings(file: GgufFile) -> None:
    """Dequantises one row of each encoding in the file. Raises: UnknownCheckpoint, IncompleteCheckpoint."""
    for encoding, tensor in {tensor.encoding: tensor for tensor in file.tensors.values()}.items():
        try:
            tensor.dequantise(tensor.data[:1])
        except NotImplementedError as error:
            raise UnknownCheckpoint(
                f"{file.path.name} is quantised as {encoding.name}, which the installed package gguf cannot "
                "dequantise. Choose another of its publisher's files (Q8_0, Q6_K, Q5_K, Q4_K, …), or update the "
                "package."
            ) from error
