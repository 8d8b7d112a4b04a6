"""Weights → the same model in another dtype, for a smaller file: how wide each tensor is, and that it fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from .eight_bits import MARK, magnitude, scale_for, scale_name
from .errors import IncompleteCheckpoint
from .formats import TOKENIZER_FILE, has_tokenizer
from .weights import Weights, in_pieces
from .widths import DTYPES, kept_as

HOST_TOKENIZER = "ComfyUI's T5 tokenizer"


@dataclass(frozen=True)
class Conversion:
    """What a smaller file will hold. kind: for people. dtype: one of `DTYPES`. dtypes: of the weights, by the
    names that they shall have. tokenizer: a folder, if the encoder has one of its own. furnish: puts into a folder
    what must lie beside the weights there; None: a file stands alone."""

    weights: Weights
    kind: str
    dtype: str
    dtypes: dict[str, torch.dtype]
    metadata: dict[str, str]
    tokenizer: Path | None = None
    furnish: Callable[[Path], None] | None = None

    @property
    def unused(self) -> list[str]:
        """The file's tensors that stay behind."""
        return [name for name in self.weights.tensors if name not in self.dtypes]

    @cached_property
    def scales(self) -> dict[str, float]:
        """Of the tensors that become 8 bits wide. All of them are read for it.

        Raises: IncompleteCheckpoint for values that are not finite.
        """
        largest = dict.fromkeys((name for name, dtype in self.dtypes.items() if dtype.itemsize == 1), 0.0)
        for name, piece in self.values(largest):
            check_range(f"{self.weights.name}: {name}", piece, torch.float32)
            largest[name] = max(largest[name], magnitude(piece))
        return {name: scale_for(most) for name, most in largest.items()}

    def added(self) -> dict[str, Tensor]:
        """What says that, and how, weights are scaled."""
        added = {scale_name(name): torch.tensor(scale) for name, scale in self.scales.items()}
        return added | ({MARK: torch.zeros(2)} if added else {})

    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Name → dtype and shape."""
        added = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self.added().items()}
        found = self.weights.tensors
        return added | {name: (dtype, tuple(found[name].shape)) for name, dtype in self.dtypes.items()}

    def pieces(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors in their new dtype, some rows at a time: (name, rows). What is added comes first.

        Raises: IncompleteCheckpoint for values that are not finite, or not in the new dtype.
        """
        added = self.added()
        yield from added.items()
        for name, piece in self.values(name for name in names if name not in added):
            values = piece.float() / self.scales[name] if name in self.scales else piece
            check_range(f"{self.weights.name}: {name}", values, self.dtypes[name])
            yield name, values.to(self.dtypes[name])

    def values(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The source's own, some rows at a time."""
        for name, piece in in_pieces(self.weights, names):
            scale = self.weights.scales.get(name)
            yield name, piece if scale is None else piece.float() * scale


def dtypes_of(blueprint: nn.Module, names: dict[str, str], dtype: str) -> dict[str, torch.dtype]:
    """As the loaders keep them in memory with that dtype chosen. names: the file's → the model's."""
    dtypes = kept_as(blueprint, DTYPES[dtype])
    return {theirs: dtypes[ours] for theirs, ours in names.items()}


def check_range(name: str, values: Tensor, dtype: torch.dtype) -> None:
    """Refuses values that `dtype` would make infinite, or that are not finite already.

    Raises: IncompleteCheckpoint, which says what dtype holds them.
    """
    largest = magnitude(values)
    if not math.isfinite(largest):
        raise IncompleteCheckpoint(
            f"{name} has NaN or infinite values. The file is damaged; download it again."
        )
    if largest <= torch.finfo(dtype).max:
        return
    short = {known: name for name, known in DTYPES.items()}
    wider = [short[known] for known in (torch.bfloat16, torch.float32) if largest <= torch.finfo(known).max]
    raise IncompleteCheckpoint(
        f"{name} has values up to {largest:g}, and {short[dtype]} ends at {torch.finfo(dtype).max:g}. "
        + (f"Choose {wider[0]}." if wider else "No dtype that can be chosen holds them.")
    )


def t5_tokenizer(encoder: Path) -> tuple[Path | None, str]:
    """The folder of a T5's own tokenizer, if it has one, and what a new file's metadata says of it."""
    folder = encoder if encoder.is_dir() else encoder.parent
    own = folder.resolve() if has_tokenizer(folder) else None
    return own, f"{own.name}/{TOKENIZER_FILE}" if own else HOST_TOKENIZER
