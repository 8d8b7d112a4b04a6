"""The demo model's UNet: trained with few channels, because that is quick, and used with as many as SD1.5 has.

ComfyUI recognises SD1.5 by its 320 channels. A UNet with a fifth of them becomes one with all of them that computes the
same (Net2Net, Chen et al. 2016, arXiv 1511.05641, section 2.2.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from host.dynamic_vram import without_dynamic_vram

CHANNELS, TIMES = 64, 5  # while it is trained, and how often each stands in the model that is used
SIZES = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "channel_mult": (1,),
    "num_res_blocks": [3],
    "transformer_depth": [1, 0, 1],
    "transformer_depth_output": [0, 0, 0, 0],
    "transformer_depth_middle": -2,  # no middle block
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "context_dim": 768,
    "adm_in_channels": None,
    "num_heads": 8,
    "num_head_channels": -1,
    "legacy": False,
    "dtype": torch.float32,
}
# The last layer of each branch, and the UNet's own, start at 0, as is usual for a UNet that learns from nothing.
ENDS = ("out_layers.3.weight", "proj_out.weight", "out.2.weight")


@without_dynamic_vram()
def build(channels: int = CHANNELS) -> Any:
    """ComfyUI's module of the UNet, whose weights are not set."""
    import comfy.ops  # noqa: PLC0415
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: PLC0415

    return UNetModel(**SIZES, model_channels=channels, operations=comfy.ops.disable_weight_init)


def new_weights(seed: int) -> dict[str, Tensor]:
    """Weights to start training from: each matrix keeps the scale of its input, and each norm is neutral."""
    unet = build()
    source = torch.Generator().manual_seed(seed)
    weights = {}
    for name, weight in unet.state_dict().items():
        if weight.ndim == 1:
            weights[name] = torch.full_like(weight, 0.0 if name.endswith("bias") else 1.0)
        elif name.endswith(ENDS):
            weights[name] = torch.zeros_like(weight)
        else:
            weights[name] = torch.randn(weight.shape, generator=source) * weight[0].numel() ** -0.5
    return weights


def load(path: str, disable_dynamic: bool = False) -> Any:
    """A file of narrow weights as a MODEL. ComfyUI's loaders would not recognise it.

    disable_dynamic: as ComfyUI asks its own loaders, when it needs a copy.
    """
    import comfy.model_management as management  # noqa: PLC0415
    import comfy.model_patcher  # noqa: PLC0415
    from comfy.supported_models import SD15  # noqa: PLC0415

    config = SD15({**SIZES, "model_channels": CHANNELS})
    config.set_inference_dtype(torch.float32, None)
    weights = load_file(path)
    model = config.get_model(weights, "")
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(
        model, load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )
    model.load_model_weights({name: weight.float() for name, weight in weights.items()}, "")
    patcher.cached_patcher_init = (load, (str(Path(path)),))
    return patcher


def widened(weights: Mapping[str, Tensor], times: int = TIMES) -> dict[str, Tensor]:
    """A UNet's weights → those of one with `times` as many channels that computes the same, up to rounding.

    Every channel stands there `times` in a row. Norms see the same statistics, and what reads channels that stand there
    more often weighs each of them less. The time embedding of the wider UNet has the narrow one's frequencies among its
    own, and only these are read.
    """
    return {name: widened_weight(name, weight, times) for name, weight in weights.items()}


def widened_weight(name: str, weight: Tensor, times: int) -> Tensor:
    if name == "time_embed.0.weight":
        spread = torch.zeros(*weight.shape, times)
        spread[..., 0] = weight
        return spread.flatten(1).repeat_interleave(times, 0)
    wide = weight
    if not name.startswith("out.2."):  # the UNet's own outputs stay four
        wide = wide.repeat_interleave(times, 0)
    reads_channels = weight.ndim > 1 and name != "input_blocks.0.0.weight"
    if reads_channels and not name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
        wide = wide.repeat_interleave(times, 1) / times
    # Heads that are `times` as wide sum each product so often, and divide by √times as much.
    return wide / times**0.5 if name.endswith("to_q.weight") else wide
