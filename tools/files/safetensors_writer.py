"""Writes a safetensors file tensor by tensor, and gives it its name when all of it is on the disk.

The library's own writer wants all tensors in memory at once. Standard library and torch only.
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

# Ends the name of a file that is being written: no program takes it for weights.
UNFINISHED = ".unfinished"
STORED = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
}
# What writing to a full disk ends in: no space, none for this user, none in one file.
FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


@dataclass(frozen=True)
class Outline:
    """All of a file but its values. tensors: name → dtype and shape."""

    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    metadata: dict[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """The tensors' order in the file. Wide ones first, so that every tensor lies at a multiple of its
        values' size, which readers rely on."""
        return sorted(self.tensors, key=lambda name: -self.tensors[name][0].itemsize)

    def nbytes(self, name: str) -> int:
        dtype, shape = self.tensors[name]
        return math.prod(shape) * dtype.itemsize

    def header(self) -> bytes:
        """Its length as 8 bytes, JSON, and spaces up to a multiple of 8."""
        entries: dict[str, object] = {"__metadata__": self.metadata} if self.metadata else {}
        end = 0
        for name in self.names():
            start, end = end, end + self.nbytes(name)
            dtype, shape = self.tensors[name]
            entries[name] = {"dtype": STORED[dtype], "shape": shape, "data_offsets": (start, end)}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header()) + sum(map(self.nbytes, self.tensors))


def write_tensors(
    write: Callable[[bytes | memoryview], object], outline: Outline, pieces: Iterable[tuple[str, Tensor]]
) -> None:
    """Gives `write` a file's bytes. pieces: names and values in the outline's order and dtypes, a tensor whole
    or some rows at a time."""
    write(outline.header())
    left = {name: outline.nbytes(name) for name in outline.names()}
    for name, piece in pieces:
        assert name == next(iter(left)) and piece.dtype == outline.tensors[name][0]
        write(piece.contiguous().view(-1).view(torch.uint8).numpy().data)
        left[name] -= piece.nbytes
        if left[name] == 0:
            del left[name]
    assert not left


@contextmanager
def in_one_step(path: Path, needed: int) -> Iterator[BinaryIO]:
    """A file to write to, that is named `path` when all is on the disk, and is gone if anything goes wrong.

    A run that was killed leaves a file behind, which the next one for the same path removes.
    needed: bytes that the file will have.
    Raises: CannotWrite if the disk has no room, or another run is writing the same file.
    """
    remove_unfinished(path)
    if shutil.disk_usage(path.parent).free < needed:
        raise no_room(path, needed)
    scratch = path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with scratch.open("xb") as file:
            lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        keep_name(path.parent)
    except OSError as error:
        if error.errno in FULL:
            scratch.unlink(missing_ok=True)  # so that the room that it took counts as free
            raise no_room(path, needed) from error
        raise
    finally:
        scratch.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Removes what killed runs left of `path`. Raises: CannotWrite if one of them still runs."""
    left_over = re.compile(re.escape(path.name) + r"\.[0-9a-f]{8}" + re.escape(UNFINISHED))
    for scratch in path.parent.iterdir():
        if left_over.fullmatch(scratch.name):
            try:
                with scratch.open("rb") as file:
                    lock(file)
                scratch.unlink(missing_ok=True)
            except (BlockingIOError, PermissionError) as error:
                raise CannotWrite(
                    f"{path.name} is being written by another run ({scratch.name}), or what that left cannot be "
                    "removed. Wait for it, or remove that file."
                ) from error


def keep_name(folder: Path) -> None:
    """Brings a folder's names to the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def no_room(path: Path, needed: int) -> CannotWrite:
    free = shutil.disk_usage(path.parent).free
    return CannotWrite(
        f"{path.name} needs {needed:,} bytes in {path.parent}, where {free:,} are free or one file may have fewer. "
        "Make room, or name a target on another disk."
    )
