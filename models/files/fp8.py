"""fp8 (e4m3) weights with a scale for each matrix: weight = stored value · scale.

Without a scale, the small numbers that an encoder's matrices consist of would fall into e4m3's coarsest range or
below it. The layout is ComfyUI's own: beside `x.weight` the file holds one number, `x.scale_weight` (or
`x.weight_scale` in newer files), which the stored values are to be multiplied by.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from .values import largest_magnitude

SCALE_NAMES = re.compile(r"(.*)\.(scale_weight|weight_scale)")
WRITTEN_SCALE_NAME = "scale_weight"
# An entry that marks such a file. With two values it asks for full-precision products.
SCALED_FP8 = "scaled_fp8"
# Entries for programs that also quantise the inputs of a product. They are ignored here.
IGNORED = re.compile(rf"(.*\.)?({SCALED_FP8}|comfy_quant|scale_input|input_scale)")
# Half of e4m3's maximum of 448: a stored 448 would be taken for a value that did not fit.
LARGEST_STORED = 224.0


def split_scales(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A file's tensors → (the weights, the scales by the names of their weights).

    A scale that is not a single number stays among the weights, where it is refused as an unknown tensor.
    """
    scales, markers = {}, set()
    for name, tensor in tensors.items():
        match = SCALE_NAMES.fullmatch(name)
        if match and f"{match[1]}.weight" in tensors and tensor.numel() == 1:
            scales[f"{match[1]}.weight"] = tensor.float().item()
            markers.add(name)
        elif IGNORED.fullmatch(name):
            markers.add(name)
    if not scales:
        return tensors, scales
    return {name: tensor for name, tensor in tensors.items() if name not in markers}, scales


def scale_name(weight: str) -> str:
    """The name that a weight's scale is written under."""
    return f"{weight.removesuffix('weight')}{WRITTEN_SCALE_NAME}"


def scale_for(largest: float) -> float:
    """The scale for a tensor whose largest magnitude is `largest`: a power of two, so that scaling is exact."""
    if not 0 < largest < math.inf:
        return 1.0
    mantissa, exponent = math.frexp(largest / LARGEST_STORED)
    return 2.0 ** (exponent - (mantissa == 0.5))


def cast(tensor: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Stored values and their scale → the same numbers in another dtype, as (new values, new scale).

    The result is always a copy. Its scale is 1 unless `dtype` is fp8.
    """
    if tensor.dtype == dtype and (dtype.itemsize == 1 or scale == 1.0):
        return tensor.clone(), scale
    if scale != 1.0:
        tensor = tensor.float() * scale
    if dtype.itemsize > 1:
        return tensor.to(dtype, copy=True), 1.0
    new_scale = scale_for(largest_magnitude(tensor))
    return (tensor.float() / new_scale).to(dtype), new_scale
