"""A small random checkpoint of SDXL's kind, as ComfyUI's Load Checkpoint takes it. Wants ComfyUI importable.

Its UNet is the smallest that ComfyUI recognises. CLIP-G cannot be small: ComfyUI builds it in full size whatever a file
holds. So its layers are zeros, which pass their input on and are a hole in the file: 0.7 GB of the disk in place of 2.
"""

import json
import struct

import numpy as np
import torch

import other_models
from sandbox.standin_models import clip_shapes, fan_in, random_tensors

WIDTH, LAYERS = 1280, 32  # of CLIP-G
UNET, CLIP_L, CLIP_G, VAE = (
    *("model.diffusion_model.", "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
    "first_stage_model.",
)


def model():
    return other_models.make_model(other_models.KINDS["SDXL"])


def write(path, standin):
    """standin: the tensors of SD1.5's stand-in, whose VAE is taken over."""
    unet = model().model.diffusion_model.state_dict()
    clip_l = random_tensors(clip_shapes(), lambda _, shape: fan_in(shape) ** -0.5, torch.float16)
    values = {UNET + name: tensor for name, tensor in unet.items()}
    values |= {CLIP_L + name: tensor for name, tensor in clip_l.items()}
    values |= {CLIP_G + name: tensor for name, tensor in clip_g_ends().items()}
    values |= {name: tensor for name, tensor in standin.items() if name.startswith(VAE)}
    write_with_holes(path, values, {CLIP_G + name: shape for name, shape in clip_g_layers().items()})


def clip_g_ends():
    """CLIP-G's tensors outside of its layers, under OpenCLIP's names."""
    random = torch.Generator().manual_seed(0)
    return {
        "token_embedding.weight": torch.randn(49408, WIDTH, generator=random),
        "positional_embedding": torch.randn(77, WIDTH, generator=random) * 0.5,
        "ln_final.weight": torch.ones(WIDTH),
        "ln_final.bias": torch.zeros(WIDTH),
        "text_projection": torch.randn(WIDTH, WIDTH, generator=random) * WIDTH**-0.5,
    }


def clip_g_layers():
    """The shapes of CLIP-G's layers, under OpenCLIP's names."""
    parts = {"ln_1": (WIDTH,), "ln_2": (WIDTH,), "attn.out_proj": (WIDTH, WIDTH)}
    parts |= {"mlp.c_fc": (4 * WIDTH, WIDTH), "mlp.c_proj": (WIDTH, 4 * WIDTH)}
    layer = {f"{name}.weight": shape for name, shape in parts.items()}
    layer |= {f"{name}.bias": shape[:1] for name, shape in parts.items()}
    layer |= {"attn.in_proj_weight": (3 * WIDTH, WIDTH), "attn.in_proj_bias": (3 * WIDTH,)}
    return {
        f"transformer.resblocks.{number}.{name}": shape
        for number in range(LAYERS)
        for name, shape in layer.items()
    }


def write_with_holes(path, values, zeros):
    """Writes a safetensors file in fp16.

    values: name → tensor.
    zeros:  name → shape of a tensor of zeros, for which the disk keeps nothing.
    """
    header, end = {}, 0
    for name, shape in [*((name, tuple(tensor.shape)) for name, tensor in values.items()), *zeros.items()]:
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    described = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(described)) + described)
        for tensor in values.values():
            file.write(tensor.half().numpy().tobytes())
        file.truncate(8 + len(described) + end)
