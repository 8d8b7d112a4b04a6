"""Seeded random weights with the names and widths of the real models, but fewer layers.

Names and shapes of the SD1.5 parts are read from ComfyUI's own classes, built on the meta device. `comfy` is imported
only where it is needed, because `cross_adapter`, `rankgen_encoder` and the constants work without it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from host.dynamic_vram import without_dynamic_vram

LLM_DIM = 2048  # d_model of T5-XL
CONTEXT_DIM = 768  # width of CLIP-L's tokens, which SD1.5's UNet attends to

VAE: dict[str, Any] = {  # the arguments of ComfyUI's class for SD1.5's
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}

Shape = tuple[int, ...]
META = torch.device("meta")


def sd15_checkpoint() -> dict[str, Tensor]:
    """A checkpoint that ComfyUI detects as SD1.5: a small UNet, CLIP-L, the SD VAE with a narrow decoder; fp16."""
    shapes = {f"model.diffusion_model.{name}": shape for name, shape in unet_shapes().items()}
    shapes |= {f"cond_stage_model.transformer.{name}": shape for name, shape in clip_shapes().items()}
    shapes |= {f"first_stage_model.{name}": shape for name, shape in vae_shapes().items()}

    def std(name: str, shape: Shape) -> float:
        # The token counts for more than its position, so that different words give different pictures.
        if name.endswith("token_embedding.weight"):
            return 1.0
        if name.endswith("position_embedding.weight"):
            return 0.5
        return fan_in(shape) ** -0.5

    return random_tensors(shapes, std, torch.float16)


@without_dynamic_vram()
def unet_shapes(**changes: Any) -> dict[str, Shape]:
    """The shapes of a small UNet that ComfyUI detects as SD1.5's. changes: arguments of UNetModel to replace."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: PLC0415

    sizes = unet_sizes() | {
        "out_channels": 4,
        "transformer_depth_output": [0, 0],
        "use_linear_in_transformer": False,
    }
    unet = UNetModel(**sizes | changes)
    return {name: tensor.shape for name, tensor in unet.state_dict().items()}


def unet_sizes() -> dict[str, Any]:
    """The arguments that ComfyUI's classes for the small UNet and for a ControlNet that fits it have in common.

    The UNet has one level of SD1.5's four, and one transformer. On a CPU most of a step's time is spent on converting
    the weights from fp16, so fewer weights make a faster step.
    """
    import comfy.ops  # noqa: PLC0415

    return {
        "image_size": 32,
        "in_channels": 4,
        "model_channels": 320,
        "channel_mult": (1,),
        "num_res_blocks": [1],
        "transformer_depth": [1],
        "transformer_depth_middle": -1,  # a middle block without a transformer
        "use_spatial_transformer": True,
        "context_dim": CONTEXT_DIM,
        "num_heads": 8,
        "dtype": torch.float16,
        "device": META,
        "operations": comfy.ops.disable_weight_init,
    }


@without_dynamic_vram()
def clip_shapes() -> dict[str, Shape]:
    """CLIP-L at full size."""
    import comfy.ops  # noqa: PLC0415
    import comfy.sd1_clip  # noqa: PLC0415
    from comfy.clip_model import CLIPTextModel  # noqa: PLC0415

    config = json.loads(
        Path(comfy.sd1_clip.__file__).with_name("sd1_clip_config.json").read_text(encoding="utf-8")
    )
    clip = CLIPTextModel(config, dtype=torch.float16, device=META, operations=comfy.ops.disable_weight_init)
    # SD1.5 checkpoints do not contain the text projection.
    return {name: t.shape for name, t in clip.state_dict().items() if name.startswith("text_model.")}


@without_dynamic_vram()
def vae_shapes() -> dict[str, Shape]:
    """SD1.5's VAE, whose decoder has half the channels."""
    from comfy.ldm.models.autoencoder import AutoencoderKL  # noqa: PLC0415

    with META:
        vae = AutoencoderKL(ddconfig=VAE, embed_dim=4, decoder_ddconfig=VAE | {"ch": 64})
    return {name: tensor.shape for name, tensor in vae.state_dict().items()}


def rankgen_encoder() -> dict[str, Tensor]:
    """RankGen-T5-XL with its own names, widths and vocabulary, but only two layers; fp16."""
    heads, d_kv, vocabulary, buckets = 32, 64, 32128, 32
    shapes: dict[str, Shape] = {
        "projection.weight": (LLM_DIM, LLM_DIM),
        "t5_encoder.shared.weight": (vocabulary, LLM_DIM),
        "t5_encoder.encoder.final_layer_norm.weight": (LLM_DIM,),
    }
    for i in range(2):
        block = f"t5_encoder.encoder.block.{i}.layer"
        shapes |= {f"{block}.{name}": shape for name, shape in t5_layer_shapes(heads * d_kv).items()}
    position_bias = "t5_encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    shapes[position_bias] = (buckets, heads)

    def std(name: str, shape: Shape) -> float:
        if name.endswith(("shared.weight", "relative_attention_bias.weight")):
            return 1.0
        if name.endswith(".q.weight"):
            # T5's attention does not divide by sqrt(d_kv); its weights are smaller instead.
            return (LLM_DIM * d_kv) ** -0.5
        return fan_in(shape) ** -0.5

    return random_tensors(shapes, std, torch.float16)


def t5_layer_shapes(inner: int, d_ff: int = 5120) -> dict[str, Shape]:
    """One layer of T5-XL. inner: width of queries, keys and values over all heads. d_ff: width of the MLP."""
    return {
        **{f"0.SelfAttention.{name}.weight": (inner, LLM_DIM) for name in "qkv"},
        "0.SelfAttention.o.weight": (LLM_DIM, inner),
        "0.layer_norm.weight": (LLM_DIM,),
        "1.DenseReluDense.wi_0.weight": (d_ff, LLM_DIM),
        "1.DenseReluDense.wi_1.weight": (d_ff, LLM_DIM),
        "1.DenseReluDense.wo.weight": (LLM_DIM, d_ff),
        "1.layer_norm.weight": (LLM_DIM,),
    }


def cross_adapter() -> dict[str, Tensor]:
    """The tensors of a projector.pth, with the published names and shapes; fp32."""
    linears = {
        "llm_proj": (CONTEXT_DIM, LLM_DIM),
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), (CONTEXT_DIM, CONTEXT_DIM)),
        "FFN.0": (4 * CONTEXT_DIM, CONTEXT_DIM),
        "FFN.2": (CONTEXT_DIM, 4 * CONTEXT_DIM),
    }
    norms = dict.fromkeys(("kv_norm", "q_norm", "norm"), (CONTEXT_DIM,))
    shapes: dict[str, Shape] = {}
    for name, shape in (linears | norms).items():
        shapes[f"CrossFusionModule.0.{name}.weight"] = shape
        shapes[f"CrossFusionModule.0.{name}.bias"] = shape[:1]
    return random_tensors(shapes, lambda _, shape: fan_in(shape) ** -0.5, torch.float32)


def fan_in(shape: Shape) -> int:
    """The number of inputs that one output of a linear or convolution weight sums."""
    size = 1
    for length in shape[1:]:
        size *= length
    return size


def random_tensors(
    shapes: dict[str, Shape], std: Callable[[str, Shape], float], dtype: torch.dtype
) -> dict[str, Tensor]:
    """A tensor for each name: 0 for biases, 1 for norm weights, else normal values seeded by the name.

    std: name and shape → standard deviation of the normal values.
    """
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            tensors[name] = torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=dtype)
        elif not shape or name.endswith("position_ids"):
            raise AssertionError(f"{name}: no recipe for the shape {tuple(shape)}")
        else:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            values = torch.randn(shape, generator=generator) * std(name, tuple(shape))
            tensors[name] = values.to(dtype)
    return tensors
