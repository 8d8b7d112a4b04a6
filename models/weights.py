"""Weight files as dictionaries of memory-mapped tensors: formats, shards, and what may be wrong with them."""

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

from .eight_bits import cast, split_scales
from .errors import UnreadableFile
from .formats import PICKLES, SUFFIXES
from .widths import DTYPES

# What transformers calls the weights in a folder, the better format first.
FOLDER_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
CAST_BATCH = 256 << 20
PIECE = 32 << 20

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Weights:
    """path: what was asked for, a file or a folder. tensors: memory-mapped, unless the format does not allow
    it. metadata: a safetensors file's, else empty. scales: what 8-bit tensors are to be multiplied by, where
    the file says so."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    mapped: bool = True
    scales: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For messages."""
        return self.path.name

    @property
    def stored(self) -> str:
        """What most of its numbers are kept as."""
        kinds = ((tensor.dtype, tensor.numel()) for tensor in self.tensors.values())
        dtype = most_of(kinds)
        return next(
            (name for name, known in DTYPES.items() if known == dtype), str(dtype).removeprefix("torch.")
        )

    def only(self, names: Iterable[str]) -> Weights:
        """Without the tensors that are not wanted."""
        return replace(self, tensors={name: self.tensors[name] for name in names})


def most_of(counts: Iterable[tuple[Kind, int]]) -> Kind:
    """The kind that has the most, of pairs of a kind and how many."""
    sums: Counter = Counter()
    for kind, count in counts:
        sums[kind] += count
    return sums.most_common(1)[0][0]


def open_weights(path: Path) -> Weights:
    """Maps a weights file, or the one in a folder, into memory.

    Raises: UnreadableFile if it is missing, empty, cut short, no known format, or a pickle with code in it.
    """
    if path.is_dir():
        return replace(open_weights(weights_in(path)), path=path)
    if path.name.endswith(".index.json"):
        return open_shards(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UnreadableFile(f"{path.name} is no weights file; {', '.join(SUFFIXES)} can be read.")
    if not path.is_file():
        raise UnreadableFile(f"{path} does not exist.")
    if path.stat().st_size == 0:
        raise UnreadableFile(f"{path.name} is empty (0 bytes). Download it again.")
    return open_pickle(path) if path.suffix.lower() in PICKLES else open_safetensors(path)


def files_of(path: Path) -> list[Path]:
    """The files that `open_weights` reads: one, or a folder's shards. Raises: UnreadableFile."""
    path = weights_in(path) if path.is_dir() else path
    return shards_of(path) if path.name.endswith(".index.json") else [path]


def weights_in(folder: Path) -> Path:
    """The weights file of a transformers folder, or the only one that it has."""
    for name in FOLDER_NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if len(found) == 1:
        return found[0]
    raise UnreadableFile(
        f"The folder {folder.name} holds {len(found)} weights files and none named "
        f"{' or '.join(FOLDER_NAMES)}. Keep one, or choose the file itself."
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
            f"{path.name} ({path.stat().st_size} bytes) is damaged, cut short or no safetensors file: {error}. "
            "Compare its size with the original and download it again."
        ) from error


def open_pickle(path: Path) -> Weights:
    """Only tensors and plain containers are unpickled (`weights_only`): code in the file is never run.

    Raises: UnreadableFile.
    """
    mapped = True
    try:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used with files saved with" not in str(error):
                raise
            mapped = False  # torch's format before 1.6
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnreadableFile(
            f"{path.name} is refused: it is no plain file of tensors, and loading it would run code or read "
            "damaged data. Nothing was executed. Get the file from its publisher, as .safetensors if there is "
            f"one. ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # a damaged pickle can end in any of them
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise
        raise UnreadableFile(
            f"{path.name} ({path.stat().st_size} bytes) is damaged, cut short or no PyTorch file: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}. "
            "Compare its size with the original and download it again."
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise UnreadableFile(
            f"{path.name} holds a {type(loaded).__name__} that is no dictionary of named tensors. "
            "A file of weights (a state dict) is needed."
        )
    return Weights(path, loaded, mapped=mapped)


def is_headless(path: Path) -> bool:
    """Whether a file is a pickle of torch before 1.6, of which nothing is known before all of it was read."""
    if path.suffix.lower() not in PICKLES or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(1) == pickle.PROTO


def open_shards(index: Path) -> Weights:
    """Several files under one `*.index.json`."""
    shards = [open_weights(file) for file in shards_of(index)]
    tensors = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
    scales = {name: scale for shard in shards for name, scale in shard.scales.items()}
    return Weights(index, tensors, mapped=all(shard.mapped for shard in shards), scales=scales)


def shards_of(index: Path) -> list[Path]:
    """The shards that an index names, looked for beside it and nowhere else. Raises: UnreadableFile."""
    try:
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({Path(name).name for name in placed.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableFile(f"{index.name} is damaged: it names no shards. Download it again.") from error
    if any(Path(name).suffix.lower() not in SUFFIXES for name in files):
        raise UnreadableFile(
            f"{index.name} is damaged: it names shards that are no weights. Download it again."
        )
    absent = [name for name in files if not (index.parent / name).is_file()]
    if absent:
        raise UnreadableFile(
            f"{index.parent.name} lacks {len(absent)} of {len(files)} shards: {', '.join(absent)}. "
            "Download them into the same folder."
        )
    return [index.parent / name for name in files]


def cast_weights(weights: Weights, wanted: dict[str, torch.dtype]) -> Iterator[tuple[str, Tensor, float]]:
    """Reads tensors in other dtypes than the file's, a batch at a time: (name, values, their scale).

    The file is mapped anew for each batch, so that the pages which were read go with the mapping: the memory
    held is that of the result and one batch, not that of the file as well. Less than a batch, such as the norms of
    a file that stays mapped, is read as it is: around each, another mapping would touch pages again.
    """
    names, tensors = list(wanted), weights.tensors
    read = CAST_BATCH  # so that the first batch is not read through the caller's mapping either, which stays
    anew = weights.mapped and sum(tensors[name].nbytes for name in names) > CAST_BATCH
    while names:
        if anew and read >= CAST_BATCH:
            tensors, read = open_weights(weights.path).tensors, 0
        name = names.pop(0)
        tensor = tensors[name] if weights.mapped else tensors.pop(name)
        read += tensor.nbytes
        yield name, *cast(tensor, weights.scales.get(name, 1.0), wanted[name])


def in_pieces(weights: Weights, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Reads tensors some rows at a time, one tensor after the other: (name, rows).

    The file is mapped anew after some pieces, as in `cast_weights`, also in the middle of a tensor: the memory
    held is that of a few pieces, whatever the size of the file and of its tensors.
    """
    tensors, read = weights.tensors, 4 * PIECE  # not through the caller's mapping, which stays
    for name in names:
        rows, size = len(tensors[name]), tensors[name].nbytes
        step = max(1, rows * PIECE // size)
        for start in range(0, rows, step):
            if weights.mapped and read >= 4 * PIECE:
                tensors, read = open_weights(weights.path).tensors, 0
            piece = tensors[name][start : start + step]
            read += piece.nbytes
            yield name, piece
