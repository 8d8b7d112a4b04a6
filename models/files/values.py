"""Checks on the numbers in a tensor: dtype, range, finiteness."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import IncompleteCheckpoint
from .formats import DTYPE_NAMES

DTYPES = dict(
    zip(DTYPE_NAMES, (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn), strict=True)
)


def dtype_name(dtype: torch.dtype) -> str:
    """Our name of a dtype, or torch's name for one that a user cannot choose."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype).removeprefix("torch."))


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds dense floating-point numbers in main memory: not quantised, complex or sparse."""
    return tensor.is_floating_point() and tensor.layout is torch.strided and tensor.device.type == "cpu"


def is_finite(tensor: Tensor, *, scaled: bool = False) -> bool:
    """Whether all values are finite.

    scaled: whether an fp8 tensor was divided by a scale, so that the largest fp8 number is an ordinary value.
            e4m3 has no infinity: in an unscaled tensor the largest number stands for all that did not fit.

    Looking at the minimum and maximum alone is much faster than testing each value.
    """
    if tensor.dtype.itemsize > 1:
        return all(bool(extreme.isfinite()) for extreme in torch.aminmax(tensor))
    limit = torch.tensor(torch.finfo(tensor.dtype).max, dtype=tensor.dtype)
    largest, limit_code = largest_fp8_code(tensor), largest_fp8_code(limit)
    return largest <= limit_code if scaled else largest < limit_code


def largest_fp8_code(tensor: Tensor) -> int:
    """The largest bit pattern, sign bit aside, in an fp8 tensor.

    A larger magnitude has a larger bit pattern, and NaN has the largest. Comparing bits needs no extra memory and
    a fraction of the time that torch's cast to a wider dtype takes.
    """
    positive = int(tensor.view(torch.int8).amax())  # as signed bytes, negative numbers are the smallest
    negative = int(tensor.view(torch.uint8).amax()) - 0x80  # as unsigned bytes, they are the largest
    return max(positive, negative)


def largest_magnitude(tensor: Tensor) -> float:
    """The largest absolute value, or NaN if the tensor contains one."""
    low, high = torch.aminmax(tensor if tensor.dtype.itemsize > 1 else tensor.float())
    return torch.maximum(-low, high).item()


def check_range(name: str, values: Tensor, dtype: torch.dtype) -> None:
    """Checks that values are finite and stay finite in `dtype`.

    name: of the tensor, for messages.
    Raises: IncompleteCheckpoint, which says which dtype holds the values.
    """
    largest = largest_magnitude(values)
    if not math.isfinite(largest):
        raise IncompleteCheckpoint(
            f"{name} has NaN or infinite values. The file is damaged; download it again."
        )
    if largest <= torch.finfo(dtype).max:
        return
    wider = [known for known in (torch.bfloat16, torch.float32) if largest <= torch.finfo(known).max]
    advice = (
        f"Choose {dtype_name(wider[0])}." if wider else "None of the dtypes to choose from can hold them."
    )
    raise IncompleteCheckpoint(
        f"{name} has values up to {largest:g}, but {dtype_name(dtype)} ends at {torch.finfo(dtype).max:g}. "
        f"{advice}"
    )
