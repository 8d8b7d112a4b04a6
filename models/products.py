"""Products of an encoder's states with its weights, in a dtype of their own. All else is fp32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Scaled 8-bit weights reach 448. A row this much smaller than 1 keeps their sums within fp16.
BELOW_EIGHT_BITS = 2.0**-6


def project(
    x: Tensor, products: torch.dtype, layer: nn.Module, multiply: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """fp32 [..., i] → fp32 [..., o] by a linear layer, the product itself in `products`.

    layer: may have a `scale`, which its 8-bit weights are still to be multiplied by. multiply: what the layer does;
    None: its call.

    In fp32 on a CPU, oneDNN makes them, which for these few rows is faster than the BLAS that torch would ask.
    For fp16, each row is first scaled by a power of two to at most 1, and back after: the feed-forward of T5
    reaches beyond fp16's 65504. A bias would be scaled with it: such layers, which are few and narrow, then
    compute in fp32.
    """
    multiply, scale = multiply or layer, getattr(layer, "scale", 1.0)
    if products is torch.float16 and layer.bias is None:
        most = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30).log2().ceil().exp2()
        if scale != 1.0:
            most = most / BELOW_EIGHT_BITS
        return multiply((x / most).to(products)).float() * (most * scale)
    x = x * scale if scale != 1.0 else x
    if products is torch.bfloat16:
        return multiply(x.to(products)).float()
    if x.is_cpu and torch.backends.mkldnn.is_available():
        return multiply(x.to_mkldnn()).to_dense()
    return multiply(x)
