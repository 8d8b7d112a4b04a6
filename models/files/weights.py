"""Opens weight files as dictionaries of memory-mapped tensors: safetensors and PyTorch pickles, also in shards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UnreadableFile, words_of
from .folder import weight_files
from .formats import PICKLES, SUFFIXES
from .fp8 import cast, split_scales
from .pickles import read_pickle
from .texts import refuse_text
from .values import dtype_name

REMAP_BYTES = 256 << 20  # after so many bytes, `read_as` maps the file anew
CHUNK_BYTES = 32 << 20  # read at a time by `read_in_chunks`
CHUNKS_PER_MAPPING = 4
# What torch.compile, FSDP and activation checkpointing add to the names of the modules that they wrap.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

T = TypeVar("T")


@dataclass(frozen=True)
class Weights:
    """The tensors of a file or folder.

    path:     the file or folder that was asked for.
    tensors:  by name; memory-mapped where the format allows it.
    metadata: of a safetensors file, else empty.
    mapped:   whether the tensors are memory-mapped.
    scales:   for scaled fp8 weights, the factor to multiply each with, by the weight's name.
    parts:    the beginnings of the names of each model in a training checkpoint that holds several (`model.`, `ema.`).
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    mapped: bool = True
    scales: dict[str, float] = field(default_factory=dict)
    parts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return self.path.name

    @property
    def dtype_name(self) -> str:
        """The dtype that most of the file's numbers have."""
        return dtype_name(most_common((tensor.dtype, tensor.numel()) for tensor in self.tensors.values()))

    def part_of(self, name: str) -> str:
        """The one of `parts` that a tensor belongs to; empty for a file that holds one model."""
        return next((part for part in self.parts if name.startswith(part)), "")

    def only(self, names: Iterable[str]) -> Weights:
        """The same file with only these tensors."""
        return replace(self, tensors={name: self.tensors[name] for name in names})


def most_common(counts: Iterable[tuple[T, int]]) -> T:
    """The key with the largest sum, among pairs of a key and a number."""
    sums: Counter[T] = Counter()
    for key, count in counts:
        sums[key] += count
    return sums.most_common(1)[0][0]


def open_weights(path: Path) -> Weights:
    """Memory-maps a weight file, all shards of a model, or the weights that are meant in a folder.

    Raises: UnreadableFile if a file is missing, empty, cut short, a text, of an unknown format, or a pickle with code.
    """
    opened = [open_file(file) for file in weight_files(path)]
    tensors = {WRAPPERS.sub("", name): tensor for part in opened for name, tensor in part.tensors.items()}
    tensors, scales = split_scales(tensors)
    if len(opened) == 1:
        return replace(opened[0], path=path, tensors=tensors, scales=scales)
    return Weights(path, tensors, mapped=all(part.mapped for part in opened), scales=scales)


def open_file(path: Path) -> Weights:
    """One file with the names that are in it. Raises: see `open_weights`."""
    if path.suffix.lower() not in SUFFIXES:
        raise UnreadableFile(f"{path.name} is not a weight file. These can be read: {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise UnreadableFile(f"{path} does not exist.")
    if path.stat().st_size == 0:
        raise UnreadableFile(f"{path.name} is empty (0 bytes). Download it again.")
    refuse_text(path)
    if path.suffix.lower() not in PICKLES:
        return open_safetensors(path)
    found = read_pickle(path)
    return Weights(path, found.tensors, mapped=found.mapped, parts=found.parts)


def open_safetensors(path: Path) -> Weights:
    """Raises: UnreadableFile."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Weights(path, tensors, file.metadata() or {})
    except SafetensorError as error:
        raise UnreadableFile(
            f"{path.name} ({path.stat().st_size} bytes) is damaged, cut short, or not a safetensors file "
            f"({words_of(error)}). Compare its size with the original and download it again."
        ) from error


def read_as(weights: Weights, dtypes: dict[str, torch.dtype]) -> Iterator[tuple[str, Tensor, float]]:
    """Reads tensors and casts each to its dtype: yields (name, values, scale).

    dtypes: by the names of the tensors to read.

    Pages of a memory-mapped file count as used memory until the mapping is closed. The file is therefore mapped
    anew after every `REMAP_BYTES`, so that the peak is the result plus one batch instead of the result plus the
    file. A few small tensors, such as the norms of a file that stays mapped anyway, are read through the mapping
    that is there: another mapping would only count the pages around them twice.
    """
    names, tensors = list(dtypes), weights.tensors
    bytes_read = REMAP_BYTES  # so that the first batch does not use the caller's mapping, which stays open
    remap = weights.mapped and sum(tensors[name].nbytes for name in names) > REMAP_BYTES
    while names:
        if remap and bytes_read >= REMAP_BYTES:
            tensors, bytes_read = open_weights(weights.path).tensors, 0
        name = names.pop(0)
        tensor = tensors[name] if weights.mapped else tensors.pop(name)
        bytes_read += tensor.nbytes
        yield name, *cast(tensor, weights.scales.get(name, 1.0), dtypes[name])


def read_in_chunks(weights: Weights, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Reads tensors one after the other, some rows at a time: yields (name, rows).

    As in `read_as`, the file is mapped anew now and then, also in the middle of a tensor: the peak of memory is a few
    chunks, whatever the size of the file and of its tensors.
    """
    remap_bytes = CHUNKS_PER_MAPPING * CHUNK_BYTES
    tensors, bytes_read = weights.tensors, remap_bytes  # the caller's mapping, which stays open, is not used
    for name in names:
        rows, size = len(tensors[name]), tensors[name].nbytes
        step = max(1, rows * CHUNK_BYTES // size)
        for start in range(0, rows, step):
            if weights.mapped and bytes_read >= remap_bytes:
                tensors, bytes_read = open_weights(weights.path).tensors, 0
            chunk = tensors[name][start : start + step]
            bytes_read += chunk.nbytes
            yield name, chunk
