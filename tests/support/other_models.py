"""Small random models of SD2's and SDXL's kind, made with ComfyUI's own classes. Wants ComfyUI importable."""

from dataclasses import dataclass, field
from typing import Any

import torch

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


def make_clip(kind: Kind, embeddings: list[str]) -> Any:
    """embeddings: the folders of textual inversions."""
    return clip_of(model_config(kind).clip_target(), embeddings)


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


def make_model(kind: Kind) -> Any:
    """A MODEL with a small UNet."""
    import comfy.model_patcher  # noqa: PLC0415

    config = model_config(kind)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device="cpu")
    randomise(model.diffusion_model)
    return comfy.model_patcher.CoreModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu"))


def model_config(kind: Kind) -> Any:
    import comfy.supported_models  # noqa: PLC0415

    return getattr(comfy.supported_models, kind.family)(UNET_SIZES | {"context_dim": kind.width} | kind.unet)


def randomise(module: torch.nn.Module) -> None:
    """Matrices keep the scale of their input, norms are near the identity."""
    generator = torch.Generator().manual_seed(5)
    for name, weight in module.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            weight.data = noise * weight[0].numel() ** -0.5
        else:
            weight.data = noise * 0.1 + float("norm" in name and name.endswith("weight"))


def lora(clip: Any) -> dict[str, torch.Tensor]:
    """A random LoRA on the first layer of each of a CLIP's parts."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, weight in clip.cond_stage_model.state_dict().items():
        if name.endswith("layers.0.mlp.fc1.weight"):
            key, (out, inner) = f"text_encoders.{name.removesuffix('.weight')}", weight.shape
            tensors[f"{key}.lora_up.weight"] = torch.randn(out, 4, generator=generator) * 0.3
            tensors[f"{key}.lora_down.weight"] = torch.randn(4, inner, generator=generator) * 0.3
    return tensors
