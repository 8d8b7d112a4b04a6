"""Writes a safetensors file tensor by tensor, and names it only when all of it is on the disk.

The writer of the library `safetensors` needs all tensors in memory at once. Standard library and torch only.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from files.interruptible import CannotWrite, lock

# The suffix of a file that is being written. No program takes such a file for weights.
UNFINISHED = ".unfinished"
# The names that the safetensors format gives to dtypes.
DTYPE_CODES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
}
# The disk is full, a file would exceed the largest allowed size, or the user's quota is used up.
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


@dataclass(frozen=True)
class Outline:
    """Everything that a safetensors file holds, except the values.

    tensors:  name → dtype and shape.
    metadata: the text entries of the header.
    """

    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    metadata: dict[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """The order of the tensors in the file.

        Wide dtypes come first, so that each tensor starts at a multiple of its element size. Readers rely on that.
        """
        return sorted(self.tensors, key=lambda name: -self.tensors[name][0].itemsize)

    def nbytes(self, name: str) -> int:
        """The size of a tensor, in bytes."""
        dtype, shape = self.tensors[name]
        return math.prod(shape) * dtype.itemsize

    def header(self) -> bytes:
        """The first bytes of the file: the header's length in 8 bytes, then JSON, padded to a multiple of 8 bytes."""
        entries: dict[str, object] = {"__metadata__": self.metadata} if self.metadata else {}
        end = 0
        for name in self.names():
            start, end = end, end + self.nbytes(name)
            dtype, shape = self.tensors[name]
            entries[name] = {"dtype": DTYPE_CODES[dtype], "shape": shape, "data_offsets": (start, end)}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def size(self) -> int:
        """The size of the whole file, in bytes."""
        return len(self.header()) + sum(map(self.nbytes, self.tensors))


def write_tensors(
    write: Callable[[bytes | memoryview], object], outline: Outline, chunks: Iterable[tuple[str, Tensor]]
) -> None:
    """Passes the bytes of a safetensors file to `write`, from the first to the last.

    chunks: names and values, in the outline's order and dtypes. A tensor comes whole, or some rows at a time.
    """
    write(outline.header())
    bytes_left = {name: outline.nbytes(name) for name in outline.names()}
    for name, chunk in chunks:
        assert name == next(iter(bytes_left)) and chunk.dtype == outline.tensors[name][0]
        write(chunk.contiguous().view(-1).view(torch.uint8).numpy().data)
        bytes_left[name] -= chunk.nbytes
        if bytes_left[name] == 0:
            del bytes_left[name]
    assert not bytes_left


@contextmanager
def atomic_file(path: Path, size: int) -> Iterator[BinaryIO]:
    """Yields a file to write to. It gets its name `path` when all of it is on the disk, and is removed on any error.

    A run that was killed leaves an unfinished file behind. The next run for the same path removes it.

    size: how many bytes the file will have.
    Raises: CannotWrite if the disk is too small, or if another run is writing the same file.
    """
    remove_unfinished(path)
    if shutil.disk_usage(path.parent).free < size:
        raise too_little_space(path, size)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with unfinished.open("xb") as file:
            lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in DISK_FULL_ERRORS:
            unfinished.unlink(missing_ok=True)  # so that the message counts its space as free
            raise too_little_space(path, size) from error
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Removes the unfinished files that killed runs left for `path`.

    Raises: CannotWrite if one of them cannot be removed, because it is in use or protected.
    """
    pattern = re.compile(re.escape(path.name) + r"\.[0-9a-f]{8}" + re.escape(UNFINISHED))
    for unfinished in path.parent.iterdir():
        if not pattern.fullmatch(unfinished.name):
            continue
        try:
            with unfinished.open("rb") as file:
                lock(file)
            unfinished.unlink(missing_ok=True)
        except (BlockingIOError, PermissionError) as error:
            raise CannotWrite(
                f"Another run is writing {path.name} ({unfinished.name}), or an earlier run left that file and it "
                "cannot be removed. Wait until the other run has ended, or remove the file."
            ) from error


def sync_folder(folder: Path) -> None:
    """Writes a folder's list of file names to the disk, on systems where a folder can be synced."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def too_little_space(path: Path, size: int) -> CannotWrite:
    """The error for a file that does not fit on its disk."""
    free = shutil.disk_usage(path.parent).free
    return CannotWrite(
        f"{path.name} needs {size:,} bytes in {path.parent}, where {free:,} are free, or where a single file may not "
        "be so large. Make room, or name a target on another disk."
    )
