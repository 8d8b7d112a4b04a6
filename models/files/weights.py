"""Opens weight files as dictionaries of memory-mapped tensors: safetensors, PyTorch pickles, folders and shards."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UnreadableFile, is_out_of_memory
from .formats import PICKLES, SUFFIXES
from .fp8 import cast, split_scales
from .values import dtype_name

# The names that transformers gives to the weights in a folder, the better format first.
FOLDER_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
REMAP_BYTES = 256 << 20  # after so many bytes, `read_as` maps the file anew
CHUNK_BYTES = 32 << 20  # read at a time by `read_in_chunks`
CHUNKS_PER_MAPPING = 4

T = TypeVar("T")


@dataclass(frozen=True)
class Weights:
    """The tensors of a file or folder.

    path:     the file or folder that was asked for.
    tensors:  by name; memory-mapped where the format allows it.
    metadata: of a safetensors file, else empty.
    mapped:   whether the tensors are memory-mapped.
    scales:   for scaled fp8 weights, the factor to multiply each with, by the weight's name.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    mapped: bool = True
    scales: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return self.path.name

    @property
    def dtype_name(self) -> str:
        """The dtype that most of the file's numbers have."""
        return dtype_name(most_common((tensor.dtype, tensor.numel()) for tensor in self.tensors.values()))

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
    """Memory-maps a weight file, or the weight file in a folder.

    Raises: UnreadableFile if the file is missing, empty, cut short, of an unknown format, or a pickle with code.
    """
    if path.is_dir():
        return replace(open_weights(weight_file_in(path)), path=path)
    if path.name.endswith(".index.json"):
        return open_shards(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UnreadableFile(f"{path.name} is not a weight file. These can be read: {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise UnreadableFile(f"{path} does not exist.")
    if path.stat().st_size == 0:
        raise UnreadableFile(f"{path.name} is empty (0 bytes). Download it again.")
    return open_pickle(path) if path.suffix.lower() in PICKLES else open_safetensors(path)


def weight_files(path: Path) -> list[Path]:
    """The files that `open_weights` reads: one file, or all shards of a folder. Raises: UnreadableFile."""
    path = weight_file_in(path) if path.is_dir() else path
    return shards_of(path) if path.name.endswith(".index.json") else [path]


def weight_file_in(folder: Path) -> Path:
    """The weight file (or the index of shards) in a folder that transformers wrote, or the folder's only one.

    Raises: UnreadableFile.
    """
    for name in FOLDER_NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if len(found) == 1:
        return found[0]
    raise UnreadableFile(
        f"The folder {folder.name} holds {len(found)} weight files and none of them is named "
        f"{' or '.join(FOLDER_NAMES)}. Keep one of them, or choose the file itself."
    )


def open_safetensors(path: Path) -> Weights:
    """Raises: UnreadableFile."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tensors, scales = split_scales(tensors)
            return Weights(path, tensors, file.metadata() or {}, scales=scales)
    except SafetensorError as error:
        raise UnreadableFile(
            f"{path.name} ({path.stat().st_size} bytes) is damaged, cut short, or not a safetensors file: {error}. "
            "Compare its size with the original and download it again."
        ) from error


def open_pickle(path: Path) -> Weights:
    """Opens a PyTorch file. Code in the file is never run: only tensors and plain containers are unpickled.

    Raises: UnreadableFile.
    """
    mapped = True
    try:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used with files saved with" not in str(error):
                raise
            mapped = False  # the file is in the format of torch before 1.6
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnreadableFile(
            f"{path.name} is refused: it is not a plain file of tensors, and loading it would run code or read "
            "damaged data. Nothing was executed. Get the file from its publisher, as .safetensors if there is "
            f"one. ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # a damaged pickle can raise any of them
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnreadableFile(
            f"{path.name} ({path.stat().st_size} bytes) is damaged, cut short, or not a PyTorch file: {reason}. "
            "Compare its size with the original and download it again."
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise UnreadableFile(
            f"{path.name} holds a {type(loaded).__name__} that is not a dictionary of named tensors. "
            "A file of weights (a state dict) is needed."
        )
    return Weights(path, loaded, mapped=mapped)


def is_legacy_pickle(path: Path) -> bool:
    """Whether a file is a pickle of torch before 1.6, which must be read whole before anything is known of it."""
    if path.suffix.lower() not in PICKLES or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(1) == pickle.PROTO


def open_shards(index: Path) -> Weights:
    """Opens the files that an `*.index.json` names, as one set of weights. Raises: UnreadableFile."""
    shards = [open_weights(file) for file in shards_of(index)]
    tensors = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
    scales = {name: scale for shard in shards for name, scale in shard.scales.items()}
    return Weights(index, tensors, mapped=all(shard.mapped for shard in shards), scales=scales)


def shards_of(index: Path) -> list[Path]:
    """The shards that an index names. They are looked for in the index's own folder only. Raises: UnreadableFile."""
    try:
        shard_of_tensor = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({Path(name).name for name in shard_of_tensor.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableFile(f"{index.name} is damaged: it names no shards. Download it again.") from error
    if any(Path(name).suffix.lower() not in SUFFIXES for name in files):
        raise UnreadableFile(
            f"{index.name} is damaged: it names shards that are not weight files. Download it again."
        )
    absent = [name for name in files if not (index.parent / name).is_file()]
    if absent:
        raise UnreadableFile(
            f"{index.parent.name} lacks {len(absent)} of {len(files)} shards: {', '.join(absent)}. "
            "Download them into the same folder."
        )
    return [index.parent / name for name in files]


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
