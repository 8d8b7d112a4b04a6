"""How the UNet computes its attention while it is trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from comfy.cli_args import args
from comfy.ldm.modules import attention as core
from torch import Tensor

from ...models.errors import UntrainableModel
from .. import host

OVERRIDE = "optimized_attention_override"  # ComfyUI's name in its transformer options

Attention = Callable[..., Tensor]


def attention_options(patcher: Any) -> dict[str, Any]:
    """ComfyUI's transformer options for the attention of a MODEL's UNet.

    What a node patched into the MODEL comes first. Else ComfyUI's own choice stays, but for one case: on a CPU it
    computes attention in pieces, which saves memory while it samples. With gradients all pieces are kept, so nothing is
    saved, and a step takes about a tenth more time than with torch's attention, which keeps less besides. A user who
    chose a kind of attention at ComfyUI's start keeps it.
    """
    own = patcher.model_options.get("transformer_options", {}).get(OVERRIDE)
    if own is not None:
        return {OVERRIDE: partial(with_gradients, own)}
    if host.is_on_cpu(patcher) and computes_in_pieces():
        return {OVERRIDE: of_torch}
    return {}


def computes_in_pieces() -> bool:
    """Whether ComfyUI computes attention in pieces without having been told to."""
    return core.optimized_attention is core.attention_sub_quad and not args.use_quad_cross_attention


def of_torch(_: Attention, *inputs: Any, **options: Any) -> Tensor:
    return core.attention_pytorch(*inputs, **options)


def with_gradients(
    own: Callable[..., Tensor],
    usual: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *inputs: Any,
    **options: Any,
) -> Tensor:
    """An attention that a node patched into the MODEL. Raises: UntrainableModel if gradients end there.

    Kernels made for sampling, such as SageAttention's, compute no gradients, and what learns would not notice.
    """
    found = own(usual, query, key, value, *inputs, **options)
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    if wanted and not found.requires_grad:
        raise UntrainableModel(
            f"A node has patched the MODEL's attention with {name_of(own)}, which computes no gradients. Connect the "
            "MODEL as it is before that node."
        )
    return found


def name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
