"""Small random models of SD2's and SDXL's kind, made with ComfyUI's own classes. Wants ComfyUI importable."""

from dataclasses import dataclass, field
from typing import Any

import torch

CLIP_SIZES = {"num_hidden_layers": 3, "intermediate_size": 64}
UNET_SIZES = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "channel_mult": (1,),
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
}


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    family: ComfyUI's class of it.
    width:  of the states of its CLIPs.
    unet:   what its UNet has beside UNET_SIZES and the width.
    """

    family: str
    width: int
    unet: dict[str, Any] = field(default_factory=dict)


KINDS = {
    "SD2": Kind("SD20", 1024),
    "SDXL": Kind("SDXL", 2048, {"adm_in_channels": 2816, "num_classes": "sequential"}),
    "SDXL refiner": Kind("SDXLRefiner", 1280, {"adm_in_channels": 2560, "num_classes": "sequential"}),
}


def make_clip(kind: Kind, embeddings: list[str]) -> Any:
    """embeddings: the folders of textual inversions."""
    import comfy.sd  # noqa: PLC0415

    # ComfyUI takes other sizes by the name of the model, and SD2's has none.
    names = ("_model_config", "clip_l_model_config", "clip_g_model_config")
    options = {name: CLIP_SIZES for name in names} | {"dtype": torch.float32}
    clip = comfy.sd.CLIP(
        model_config(kind).clip_target(), embedding_directory=embeddings, model_options=options
    )
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
