"""8-bit weights (fp8 e4m3): a matrix is scaled into their range, and its products are scaled back.

Unscaled, the small numbers that an encoder's matrices are made of would fall among the coarsest of the 8 bits, or
below them. Files in ComfyUI's own layout of scaled fp8 are read, and written: beside `x.weight` lies the number
`x.scale_weight` (in newer ones `x.weight_scale`), by which its values are to be multiplied.
"""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import linear

SCALES = re.compile(r"(.*)\.(scale_weight|weight_scale)")
SCALE = "scale_weight"  # as it is written
MARK = "scaled_fp8"  # in such a file; of two values: multiply in full precision
# What such files hold for those who round the inputs of products too.
OTHERS = re.compile(rf"(.*\.)?({MARK}|comfy_quant|scale_input|input_scale)")
# To half of e4m3's 448 at most: what reaches 448 is taken for a value that did not fit.
LARGEST = 224.0
PIECE = 1 << 19  # numbers widened at a time, which stay in the processor's cache


def split_scales(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A file's tensors → the weights, and the scales by the weights' names. Scales that are no single number
    stay among the tensors, where they will be refused as unknown."""
    scales, marks = {}, set()
    for name, tensor in tensors.items():
        match = SCALES.fullmatch(name)
        if match and f"{match[1]}.weight" in tensors and tensor.numel() == 1:
            scales[f"{match[1]}.weight"] = tensor.float().item()
            marks.add(name)
        elif OTHERS.fullmatch(name):
            marks.add(name)
    return {
        name: tensor for name, tensor in tensors.items() if name not in marks
    } if scales else tensors, scales


def scale_name(weight: str) -> str:
    """The name of a weight's scale in a file."""
    return f"{weight.removesuffix('weight')}{SCALE}"


def scale_for(largest: float) -> float:
    """What values up to `largest` are divided by before they become 8 bits wide: a power of two, exact."""
    if not 0 < largest < math.inf:
        return 1.0
    mantissa, exponent = math.frexp(largest / LARGEST)
    return 2.0 ** (exponent - (mantissa == 0.5))


def magnitude(tensor: Tensor) -> float:
    """The largest absolute value; NaN if there is one."""
    low, high = torch.aminmax(tensor if tensor.dtype.itemsize > 1 else tensor.float())
    return torch.maximum(-low, high).item()


def cast(tensor: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Values and their scale → the same in another dtype: new in memory."""
    if scale != 1.0:
        tensor = tensor.float() * scale
    if dtype.itemsize > 1:
        return tensor.to(dtype, copy=True), 1.0
    new = scale_for(magnitude(tensor))
    return (tensor.float() / new).to(dtype), new


def widening(operations) -> SimpleNamespace:
    """The given layers, of which Linear, where its 8-bit weights and its input are on the CPU, widens them itself."""

    class Linear(operations.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.weight.dtype != torch.float8_e4m3fn or not (x.is_cpu and self.weight.is_cpu):
                return super().forward(x)
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return linear(x, widen(self.weight, x.dtype), bias)

    return SimpleNamespace(Linear=Linear, Embedding=operations.Embedding, RMSNorm=operations.RMSNorm)


def widen(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """An e4m3 matrix on the CPU → the same numbers in `dtype`, several times faster than torch's own cast.

    Moved to the left in 16 bits, sign, exponent and fraction are those of a bf16 number, but for the exponents'
    different zero. NaN, of which checked weights have none, becomes a number.
    """
    out = torch.empty(matrix.shape, dtype=dtype)
    rows = max(1, PIECE // matrix.shape[-1])
    for start in range(0, len(matrix), rows):
        bits = matrix[start : start + rows].view(torch.int8).to(torch.int16)
        size = bits & 0x7F
        bits &= -0x8000
        bits |= size.bitwise_left_shift_(4)
        torch.mul(bits.view(torch.bfloat16), 2.0**120, out=out[start : start + rows])
    return out


def largest_code(tensor: Tensor) -> int:
    """Of all 8-bit numbers' bits without the sign, the largest: larger magnitudes have larger ones, infinity and NaN
    the largest. Needs no memory, and a fraction of the time of torch's casts to a dtype that has such operations."""
    positive = int(tensor.view(torch.int8).amax())  # of signed bytes, the negative numbers' are the least
    negative = int(tensor.view(torch.uint8).amax()) - 0x80  # of unsigned bytes, they are the largest
    return max(positive, negative)
