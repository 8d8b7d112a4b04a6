"""Checks and moves tensors from a file into a model, strictly, whatever the model is."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

from .eight_bits import largest_code
from .errors import IncompleteCheckpoint
from .progress import Progress, silent
from .weights import Weights, cast_weights
from .widths import kept_as, own_dtype

Model = TypeVar("Model", bound=nn.Module)
NOTHING = re.compile(r"(?!)")


def find_prefix(weights: Weights, mark: str) -> str | None:
    """What stands before a tell-tale name in the file, as `CrossFusionModule.0.` or `t5_encoder.`."""
    return next((name[: -len(mark)] for name in weights.tensors if name.endswith(mark)), None)


def measure(weights: Weights, name: str) -> tuple[int, int]:
    """A matrix's two sizes. Raises: IncompleteCheckpoint if it is not there or no matrix."""
    shape = weights.tensors[name].shape if name in weights.tensors else ()
    if len(shape) != 2 or 0 in shape:
        found = f"its shape is {list(shape)}" if name in weights.tensors else "it is not there"
        raise IncompleteCheckpoint(
            f"{weights.name}: {name} should be a matrix, {found}. "
            "The file is damaged or another model's; download the original again."
        )
    return tuple(shape)


def fill(
    build: Callable[..., Model],
    operations,
    weights: Weights,
    names: dict[str, str],
    dtype: torch.dtype | None,
    progress: Progress = silent,
) -> Model:
    """Builds a model with the given layers and assigns a file's tensors to it, which `check_names` has seen.

    build: makes the model on the meta device, with `operations=` for its layers.
    names: the file's names → the model's, and those of what the model is built without.
    dtype: of its matrices in memory, and so of all tensors (`widths.py`); None: the file's. Tensors that have theirs
           already stay memory-mapped; others are converted a batch at a time.
    progress: told of each tensor.
    A layer whose 8-bit weights are scaled has their scale as its `scale` (`products.py`).
    Raises: IncompleteCheckpoint, naming tensors as the file does.
    """
    blueprint = build(operations=nn)
    wanted = blueprint.state_dict()
    names = {theirs: ours for theirs, ours in names.items() if ours in wanted}
    weights = weights.only(names)
    tensors = weights.tensors
    dtypes = kept_as(blueprint, own_dtype(blueprint, names, tensors) if dtype is None else dtype)
    kept = [theirs for theirs, ours in names.items() if tensors[theirs].dtype == dtypes[ours]]
    cast = {theirs: dtypes[ours] for theirs, ours in names.items() if theirs not in kept}
    step = progress(len(names))
    state, scales, broken = {}, {}, []
    as_they_are = ((name, tensors[name], weights.scales.get(name, 1.0)) for name in kept)
    for theirs, tensor, scale in chain(as_they_are, cast_weights(weights, cast)):
        state[names[theirs]], scales[names[theirs]] = tensor, scale
        if not is_finite(tensor, scaled=theirs in weights.scales):
            broken.append(theirs)
        step()
    if broken:
        raise IncompleteCheckpoint(
            f"{weights.name} has NaN or infinite values in {describe(broken)}. "
            "The file is damaged, or its weights do not fit the chosen dtype; download it again or choose fp32."
        )
    model = build(operations=operations)
    model.load_state_dict(state, strict=True, assign=True)
    for ours, scale in scales.items():
        if scale != 1.0:
            model.get_submodule(ours.removesuffix(".weight")).scale = scale
    return model.eval().requires_grad_(False)


def check_names(
    blueprint: nn.Module, weights: Weights, names: dict[str, str], unused: re.Pattern = NOTHING
) -> None:
    """Holds the file's tensors against the model's: none missing, none surplus, all dense floating-point numbers
    of the right shape.

    blueprint: of plain layers, since with Dynamic VRAM the host's have no shapes before they are filled.
    unused: names in the file that may stay behind.
    Raises: IncompleteCheckpoint, naming tensors as the file does.
    """
    shapes = {name: tensor.shape for name, tensor in blueprint.state_dict().items()}
    assert set(names.values()) == shapes.keys()
    found = weights.tensors
    problems = {
        "lacks": [theirs for theirs in names if theirs not in found],
        "has unknown": [name for name in found if name not in names and not unused.fullmatch(name)],
        "has misshapen": [
            f"{theirs} {list(found[theirs].shape)} instead of {list(shapes[ours])}"
            for theirs, ours in names.items()
            if theirs in found and found[theirs].shape != shapes[ours]
        ],
    }
    problems["has no plain numbers in"] = [
        f"{theirs} ({found[theirs].dtype}, {found[theirs].layout}, {found[theirs].device})"
        for theirs in names
        if theirs in found and not is_plain(found[theirs])
    ]
    for problem, culprits in problems.items():
        if culprits:
            raise IncompleteCheckpoint(
                f"{weights.name} {problem} {describe(culprits)}. "
                "The file is damaged or another model's; download the original again."
            )


def is_plain(tensor: Tensor) -> bool:
    """No quantised integers, no complex numbers, not sparse, and in memory."""
    return tensor.is_floating_point() and tensor.layout is torch.strided and tensor.device.type == "cpu"


def is_finite(tensor: Tensor, *, scaled: bool = False) -> bool:
    """Whether all values are finite, by the extremes alone: much faster than a test of each. 8-bit numbers have
    no infinity: what does not fit becomes the largest of them, which only those use that were scaled to it."""
    if tensor.dtype.itemsize > 1:
        return all(bool(extreme.isfinite()) for extreme in torch.aminmax(tensor))
    limit = torch.tensor(torch.finfo(tensor.dtype).max, dtype=tensor.dtype)
    largest, most = largest_code(tensor), largest_code(limit)
    return largest <= most if scaled else largest < most


def describe(names: list[str], most: int = 4) -> str:
    """`3 tensors (a, b, c)`, cut after a few names."""
    listed = ", ".join(names[:most]) + (", …" if len(names) > most else "")
    return f"{len(names)} tensor{'s' * (len(names) != 1)}" + (f" ({listed})" if names else "")
