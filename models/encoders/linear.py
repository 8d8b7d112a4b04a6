"""Linear layers of the encoders: products in a compute dtype of their own, and weights that are dequantised on use.

Everything else in an encoder (norms, softmax, residual stream) is fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

# A scaled fp8 weight is as large as 448. Inputs this much smaller than 1 keep the sums of a product within fp16.
FP8_HEADROOM = 2.0**-6
CHUNK_ELEMENTS = 1 << 19  # fp8 numbers cast at a time, which stay in the processor's cache


def project(
    x: Tensor,
    compute_dtype: torch.dtype,
    layer: nn.Module,
    multiply: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """fp32 [..., i] → fp32 [..., o] through a linear layer whose product is computed in `compute_dtype`.

    layer:    may have an attribute `scale`, a number that its fp8 weights are still to be multiplied by.
    multiply: the product; None: a call of `layer`.

    On a CPU in fp32, oneDNN computes the product: for so few rows it is faster than torch's own BLAS.

    In fp16, each row is divided by a power of two so that its values are at most 1, and multiplied back afterwards:
    the feed-forward of T5 goes beyond fp16's maximum of 65504. A bias must not be scaled with the row, so the few
    (and narrow) layers with a bias compute in fp32.
    """
    multiply, scale = multiply or layer, getattr(layer, "scale", 1.0)
    if compute_dtype is torch.float16 and layer.bias is None:
        row_scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30).log2().ceil().exp2()
        if scale != 1.0:
            row_scale = row_scale / FP8_HEADROOM
        return multiply((x / row_scale).to(compute_dtype)).float() * (row_scale * scale)
    x = x * scale if scale != 1.0 else x
    if compute_dtype is torch.bfloat16:
        return multiply(x.to(compute_dtype)).float()
    if x.is_cpu and torch.backends.mkldnn.is_available():
        return multiply(x.to_mkldnn()).to_dense()
    return multiply(x)


def dequantising_fp8(operations: Any) -> SimpleNamespace:
    """`operations` whose Linear dequantises fp8 weights itself when weight and input are on the CPU."""

    class Linear(operations.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.weight.dtype != torch.float8_e4m3fn or not (x.is_cpu and self.weight.is_cpu):
                return super().forward(x)
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return linear(x, cast_fp8(self.weight, x.dtype), bias)

    return SimpleNamespace(Linear=Linear, Embedding=operations.Embedding, RMSNorm=operations.RMSNorm)


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


class QuantisedMatrix(Protocol):
    """A matrix [rows, columns] that is dequantised on the CPU, as a whole or some rows of it."""

    def dequantise(self, dtype: torch.dtype = ..., rows: np.ndarray | None = ...) -> Tensor: ...


def dequantising_gguf(operations: Any) -> SimpleNamespace:
    """`operations` whose Linear and Embedding can also hold a quantised matrix, dequantised at each use."""

    class Linear(operations.Linear):
        matrix: QuantisedMatrix | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.matrix is None:
                return super().forward(x)
            bias = None if self.bias is None else self.bias.to(x.device, x.dtype)
            return linear(x, self.matrix.dequantise(x.dtype).to(x.device), bias)

    class Embedding(operations.Embedding):
        matrix: QuantisedMatrix | None = None

        def forward(self, ids: Tensor) -> Tensor:
            if self.matrix is None:
                return super().forward(ids)
            rows = self.matrix.dequantise(rows=ids.flatten().cpu().numpy())
            return rows.view(*ids.shape, -1).to(ids.device)

    return SimpleNamespace(Linear=Linear, Embedding=Embedding, RMSNorm=operations.RMSNorm)


def hold_matrix(layer: Any, matrix: QuantisedMatrix) -> None:
    """Gives a layer of `dequantising_gguf` its quantised matrix.

    ComfyUI's memory management does not see the matrix. The layer's own weight stays empty, in the dtype that the
    matrix is dequantised to.
    """
    assert hasattr(layer, "matrix")
    layer.matrix = matrix
    layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)
