"""Small random models of SD2's and SDXL's kind, made with ComfyUI's own classes. Wants ComfyUI importable."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from host.dynamic_vram import without_dynamic_vram

CLIP_SIZES = {"num_hidden_layers": 3, "intermediate_size": 64}
UNET_SIZES = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": (1,),
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
}
# Vega is the smallest of SDXL's kind: ComfyUI tells the kind by the number of transformer blocks at each level. Only
# the channels do not grow from level to level here.
VEGA_SIZES = {
    "channel_mult": (1, 1, 1),
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "transformer_depth_middle": 2,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
}
# The smallest refiner that ComfyUI would recognise has 160 million parameters, so this one is of that kind by its class
# alone.
REFINER_SIZES = {"model_channels": 64, "adm_in_channels": 2560, "num_classes": "sequential"}


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    name:   as the pack's messages have it.
    family: ComfyUI's class of it.
    width:  of the states of its CLIPs.
    unet:   what its UNet has beside UNET_SIZES and the width.
    """

    name: str
    family: str
    width: int
    unet: dict[str, Any] = field(default_factory=dict)


KINDS = {
    kind.name: kind
    for kind in (
        Kind("SD2", "SD20", 1024),
        Kind("SDXL", "Segmind_Vega", 2048, VEGA_SIZES),
        Kind("SDXL refiner", "SDXLRefiner", 1280, REFINER_SIZES),
    )
}
# Smaller, for what runs many times: ComfyUI would not recognise it in a file. The second of the levels has twice the
# channels, which is where FreeU looks.
SMALL_SIZES = {
    "model_channels": 64,
    "channel_mult": (1, 2),
    "num_res_blocks": [1, 1],
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
}
SD15 = Kind("SD1.5", "SD15", 768, SMALL_SIZES | {"use_linear_in_transformer": False})
SDXL = replace(
    KINDS["SDXL"],
    unet=SMALL_SIZES | {name: VEGA_SIZES[name] for name in ("adm_in_channels", "num_classes")},
)
# What gives them all blocks of the family's own UNet, some of which T2I-Adapters add to.
ALL_BLOCKS = {
    SD15.name: {
        "channel_mult": (1, 2, 4, 4),
        "num_res_blocks": [2] * 4,
        "transformer_depth": [1] * 6 + [0] * 2,
        "transformer_depth_output": [1] * 9 + [0] * 3,
    },
    SDXL.name: {
        "channel_mult": (1, 2, 4),
        "num_res_blocks": [2] * 3,
        "transformer_depth": [0] * 2 + [1] * 4,
        "transformer_depth_output": [0] * 3 + [1] * 6,
    },
}
WIDTHS = {kind.name: kind.width for kind in (SD15, SDXL)}
# For tests of laws that hold for both. See tests/laws/conftest.py.
FAMILIES = pytest.mark.parametrize("family", WIDTHS, indirect=True, scope="module")


def make_clip(kind: Kind, embeddings: list[str]) -> Any:
    """embeddings: the folders of textual inversions."""
    return clip_of(model_config(kind).clip_target(), embeddings)


@without_dynamic_vram()
def clip_of(target: Any, embeddings: list[str] | None = None) -> Any:
    """A CLIP of a tokenizer's and a text encoder's class, which ComfyUI calls a ClipTarget."""
    import comfy.sd  # noqa: PLC0415

    options = {f"clip_{part}_model_config": CLIP_SIZES for part in "lhg"} | {"dtype": torch.float32}
    clip = comfy.sd.CLIP(target, embedding_directory=embeddings, model_options=options)
    # ComfyUI ignores sizes under a name that no part has, and a CLIP of full size would slow the tests down.
    beyond = f".layers.{CLIP_SIZES['num_hidden_layers']}."
    assert not any(beyond in name for name in clip.cond_stage_model.state_dict())
    randomise(clip.cond_stage_model)
    return clip


@without_dynamic_vram()
def make_model(kind: Kind, seed: int = 5, **changes: Any) -> Any:
    """A MODEL with a small UNet. changes: other sizes of it."""
    import comfy.model_patcher  # noqa: PLC0415

    config = model_config(kind, changes)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device="cpu")
    randomise(model.diffusion_model, seed)
    return comfy.model_patcher.CoreModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu"))


@without_dynamic_vram()
def make_controlnet(kind: Kind) -> Any:
    """A ControlNet for `make_model`'s UNet, as core's loader gives it."""
    import comfy.cldm.cldm  # noqa: PLC0415
    import comfy.controlnet  # noqa: PLC0415

    net = comfy.cldm.cldm.ControlNet(hint_channels=3, **model_config(kind).unet_config)
    randomise(net)
    return comfy.controlnet.ControlNet(net.eval(), load_device=torch.device("cpu"))


def model_config(kind: Kind, changes: dict[str, Any] | None = None) -> Any:
    import comfy.supported_models  # noqa: PLC0415

    return getattr(comfy.supported_models, kind.family)(
        UNET_SIZES | {"context_dim": kind.width} | kind.unet | (changes or {})
    )


def randomise(module: torch.nn.Module, seed: int = 5) -> None:
    """Matrices keep the scale of their input, norms are near the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            weight.data = noise * weight[0].numel() ** -0.5
        else:
            weight.data = noise * 0.1 + float("norm" in name and name.endswith("weight"))


def lora(clip: Any) -> dict[str, torch.Tensor]:
    """A random LoRA on the first layer of each of a CLIP's parts."""
    return random_lora(clip.cond_stage_model, "text_encoders.", "layers.0.mlp.fc1.weight", 0.3)


def unet_lora(model: Any) -> dict[str, torch.Tensor]:
    """A random LoRA on what a MODEL's UNet reads of the text, under the names that core's Save LoRA writes."""
    return random_lora(model.model.diffusion_model, "diffusion_model.", "attn2.to_k.weight", 0.1)


def random_lora(module: torch.nn.Module, prefix: str, end: str, scale: float) -> dict[str, torch.Tensor]:
    """A LoRA on the weights whose names have this end. prefix: what their names begin with in the file."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, weight in module.state_dict().items():
        if name.endswith(end):
            key, (out, inner) = prefix + name.removesuffix(".weight"), weight.shape
            tensors[f"{key}.lora_up.weight"] = torch.randn(out, 4, generator=generator) * scale
            tensors[f"{key}.lora_down.weight"] = torch.randn(4, inner, generator=generator) * scale
    return tensors
