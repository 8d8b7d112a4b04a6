"""The parts of the demo model that need no file: a VAE made by rule, and a CLIP made from a seed, without language.

Names and shapes are read from ComfyUI's own classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sandbox.standin_models import clip_shapes, fan_in

TILE = 8  # pixels along a side of what one cell of the latents shows
SCALE = 2.0  # the UNet's latents are the picture in -1..1 times this, its three colours and their mean
CORE_SCALE = 0.18215  # with which ComfyUI multiplies the latents of SD1.5's VAE
SMALL = 0.3  # values up to this pass through the decoder's first layer, 3 · tanh(x / 3), nearly as they are
CLIP_SEED = 1000
LIVE_LAYERS = 2  # of CLIP's twelve; the others pass their input on, which saves time


def checkpoint(unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint that ComfyUI recognises as SD1.5. unet: weights of 320 channels, see `narrow.widened`."""
    return {
        **{f"model.diffusion_model.{name}": weight.half() for name, weight in unet.items()},
        **{f"cond_stage_model.transformer.{name}": weight for name, weight in clip_weights().items()},
        **{f"first_stage_model.{name}": weight for name, weight in vae_weights().items()},
    }


def vae_weights() -> dict[str, Tensor]:
    """A VAE of the TAESD kind whose latents are the mean colours of tiles: exact on pictures of flat tiles.

    Its residual blocks change nothing, because their other branch is 0 and no value is negative.
    """
    from comfy.taesd.taesd import TAESD  # noqa: PLC0415

    weights = {
        name: torch.zeros_like(weight) for name, weight in TAESD(latent_channels=4).state_dict().items()
    }
    encoder = [name for name in weights if name.startswith("taesd_encoder.") and name.count(".") == 2]
    decoder = [name for name in weights if name.startswith("taesd_decoder.") and name.count(".") == 2]
    first, *halving, last = (name for name in encoder if name.endswith("weight"))
    latent = (
        2 * SCALE / CORE_SCALE
    )  # of a full colour, which goes from 0 to 1 here and from -1 to 1 in a latent
    for colour in range(3):
        weights[first][colour, colour, 1, 1] = 1.0
        for name in halving:  # the mean of 2 by 2 pixels
            weights[name][colour, colour, 1:, 1:] = 0.25
        weights[last][colour, colour, 1, 1] = 1.0
        weights[last][3, colour, 1, 1] = 1 / 3
    # ComfyUI divides by vae_scale after the encoder, and multiplies before the decoder.
    weights["vae_scale"] = torch.tensor(2 * SMALL / latent)
    weights[last] *= 2 * SMALL
    weights[last.replace("weight", "bias")] -= SMALL
    first, *others = (name for name in decoder if name.endswith("weight"))
    for colour in range(3):
        weights[first][colour, colour, 1, 1] = 0.5 / SMALL
        weights[first.replace("weight", "bias")][colour] = 0.5
        for name in others:
            weights[name][colour, colour, 1, 1] = 1.0
    return weights


def clip_weights() -> dict[str, Tensor]:
    """A CLIP-L of random weights in fp16. numpy's old generator gives the same numbers in all of its versions."""
    weights = {}
    for number, (name, shape) in enumerate(clip_shapes().items()):
        layer = name.partition("layers.")[2].partition(".")[0]
        is_norm = "norm" in name
        if (layer and int(layer) >= LIVE_LAYERS) or (len(shape) == 1 and not name.endswith("norm.weight")):
            values = np.full(shape, 1.0 if is_norm and name.endswith("weight") else 0.0)
        else:
            values = np.random.RandomState(CLIP_SEED + number).standard_normal(shape) * deviation(name, shape)
        weights[name] = torch.from_numpy(values).half()
    return weights


def deviation(name: str, shape: tuple[int, ...]) -> float:
    """Of a random weight. A token counts for more than its place, so that other words give other states."""
    if name.endswith("token_embedding.weight"):
        return 1.0
    return 0.5 if name.endswith("position_embedding.weight") else fan_in(shape) ** -0.5
