"""Tells whether tensors came back from the disk as they were written."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor


def sum_of(tensors: Mapping[str, Tensor]) -> int:
    """A CRC-32 of names, kinds, shapes and bytes of tensors in main memory, in whatever order they come."""
    found = 0
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data, found)
    return found
