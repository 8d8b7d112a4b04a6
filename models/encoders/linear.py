"""Linear layers of the encoders: products in a compute dtype of their own, and weights that are dequantised on use.

Everything else in an encoder (norms, softmax, residual stream) is fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import linear

from .operations import changed, weights_on_of

# A scaled fp8 weight is as large as 448. Inputs this much smaller than 1 keep the sums of a product within fp16.
FP8_HEADROOM = 2.0**-6
CHUNK_ELEMENTS = 1 << 19  # fp8 numbers cast at a time, which stay in the processor's cache
# A matrix that is larger when dequantised is dequantised and multiplied in pieces on a CPU. The system would take back
# so much memory after each use (from 32 MB on, with glibc), and to be given it anew takes longer than to dequantise.
WHOLE_BYTES, PIECE_BYTES = 24 << 20, 2 << 20


class Input(NamedTuple):
    """What linear layers multiply with their weights, prepared once for all layers that take the same input.

    x:     fp32 [..., i].
    rows:  x in the compute dtype. In fp16, each row is divided by its largest magnitude: the feed-forward of T5 goes
           beyond fp16's maximum of 65504.
    scale: in fp16 what each row was divided by, fp32 [..., 1]; None in other dtypes.
    """

    x: Tensor
    rows: Tensor
    scale: Tensor | None = None

    def first(self, rows: int) -> Input:
        """The first rows of [..., r, i]."""
        scale = None if self.scale is None else self.scale[..., :rows, :]
        return Input(self.x[..., :rows, :], self.rows[..., :rows, :], scale)


def prepare(x: Tensor, compute_dtype: torch.dtype) -> Input:
    """fp32 [..., i] → the input of layers whose product is computed in `compute_dtype`."""
    if compute_dtype is not torch.float16:
        return Input(x, x.to(compute_dtype))
    scale = vector_norm(x, torch.inf, dim=-1, keepdim=True).clamp_(min=1e-30)  # a row may be all zeros
    return Input(x, (x / scale).to(torch.float16), scale)


def project(x: Input, layer: nn.Module, multiply: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """[..., i] → fp32 [..., o] through a linear layer.

    layer:    may have an attribute `scale`, a number that its fp8 weights are still to be multiplied by.
    multiply: the product; None: a call of `layer`.

    On a CPU in fp32, oneDNN computes the product: for so few rows it is faster than torch's own BLAS.
    A bias must not be scaled with the rows, so where fp16 is wanted, the few (and narrow) layers with a bias compute
    in fp32.
    """
    multiply, scale = multiply or layer, getattr(layer, "scale", 1.0)
    if x.scale is not None and layer.bias is None:
        if scale == 1.0:
            return multiply(x.rows) * x.scale
        return multiply(x.rows * FP8_HEADROOM) * (x.scale * (scale / FP8_HEADROOM))
    wide = x.x * scale if scale != 1.0 else x.x
    if x.rows.dtype is torch.bfloat16:
        return multiply(x.rows if scale == 1.0 else wide.to(torch.bfloat16)).float()
    if wide.is_cpu and torch.backends.mkldnn.is_available():
        return multiply(wide.to_mkldnn()).to_dense()
    return multiply(wide)


def in_pieces(
    x: Tensor, data: Tensor, bias: Tensor | None, dequantise: Callable[[Tensor, torch.dtype], Tensor]
) -> Tensor:
    """[..., i] times a quantised matrix on the CPU → [..., o], a piece of a large matrix at a time (`WHOLE_BYTES`)."""
    row_bytes = x.dtype.itemsize * x.shape[-1]
    rows = len(data) if len(data) * row_bytes <= WHOLE_BYTES else max(1, PIECE_BYTES // row_bytes)
    pieces = []
    for start in range(0, len(data), rows):
        part = slice(start, start + rows)
        part_bias = None if bias is None else bias[part].to(x.dtype)
        pieces.append(linear(x, dequantise(data[part], x.dtype), part_bias).to_dense())
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)


def dequantising_fp8(operations: Any) -> SimpleNamespace:
    """`operations` whose Linear dequantises fp8 weights itself when weight and input are on the CPU."""

    class Linear(operations.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.weight.dtype != torch.float8_e4m3fn or not (x.is_cpu and self.weight.is_cpu):
                return super().forward(x)
            return in_pieces(x, self.weight, self.bias, cast_fp8)

    return changed(operations, Linear=Linear)


def cast_fp8(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts an e4m3 matrix [rows, columns] on the CPU to `dtype`, several times faster than torch does.

    Shifted left by 4 in 16 bits, the e4m3 exponent and mantissa line up with bf16's; only the exponent bias differs
    (7, not 127), hence the product with 2^120. A NaN would become a number, but loaded weights contain none.
    """
    out = torch.empty(matrix.shape, dtype=dtype)
    rows = max(1, CHUNK_ELEMENTS // matrix.shape[-1])
    for start in range(0, len(matrix), rows):
        bits = matrix[start : start + rows].view(torch.int8).to(torch.int16)
        magnitude = bits & 0x7F
        bits &= -0x8000  # the sign
        bits |= magnitude.bitwise_left_shift_(4)
        torch.mul(bits.view(torch.bfloat16), 2.0**120, out=out[start : start + rows])
    return out


class Dequantise(Protocol):
    """Turns rows of a quantised matrix [r, bytes of a row] into numbers [r, columns], on the device of the rows."""

    def __call__(self, data: Tensor, dtype: torch.dtype = ...) -> Tensor: ...


def dequantising_gguf(operations: Any) -> SimpleNamespace:
    """`operations` whose Linear and Embedding can also hold a quantised matrix, dequantised at each use.

    The quantised matrix is an ordinary parameter, so ComfyUI counts, moves and streams it like any other.
    """
    weights_on = weights_on_of(operations)

    class Linear(operations.Linear):
        dequantise: Dequantise | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.dequantise is None:
                return super().forward(x)
            with weights_on(self, x.device) as (data, bias):
                if x.is_cpu:
                    return in_pieces(x, data, bias, self.dequantise)
                return linear(x, self.dequantise(data, x.dtype), None if bias is None else bias.to(x.dtype))

    class Embedding(operations.Embedding):
        dequantise: Dequantise | None = None

        def forward(self, ids: Tensor) -> Tensor:
            rows = super().forward(ids)
            if self.dequantise is None:
                return rows
            return self.dequantise(rows.flatten(0, -2)).unflatten(0, ids.shape)

    return changed(operations, Linear=Linear, Embedding=Embedding)


def hold_matrix(layer: Any, data: Tensor, dequantise: Dequantise) -> None:
    """Gives a layer of `dequantising_gguf` its quantised matrix [rows, bytes of a row]."""
    assert hasattr(layer, "dequantise")
    layer.dequantise = dequantise
    layer.weight = nn.Parameter(data, requires_grad=False)
