"""A process that samples for `bench.sampling`: core's KSampler on a UNet of random weights."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from bench import worker
from bench.worker import describe, enter_comfyui, memory
from sandbox.standin_models import CONTEXT_DIM, fan_in, unet_shapes

__all__ = ["describe", "memory", "prepare", "run"]  # what `bench.sampling` calls

# What SD1.5's UNet has beside the small one of the stand-ins.
SD15 = {
    "channel_mult": (1, 2, 4, 4),
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}
prepared: dict[str, Any] = {}


def prepare(sizes: dict[str, Any], device: str) -> None:
    """sizes: see `bench.sampling`."""
    enter_comfyui(device)
    import comfy.sd  # noqa: PLC0415

    import nodes as core  # noqa: PLC0415 -- ComfyUI's module

    weights = random_weights(unet_shapes() if sizes["small"] else unet_shapes(**SD15))
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model_state_dict(weights)
    prepared.update(sizes, model=model, sample=core.common_ksampler)


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """In fp16, as SD1.5 is published; each matrix keeps the scale of its input."""
    torch.manual_seed(0)
    return {
        name: torch.randn(shape).mul_(fan_in(shape) ** -0.5).half()
        if len(shape) > 1
        else torch.ones(shape).half()
        for name, shape in shapes.items()
    }


@torch.inference_mode()  # as ComfyUI runs its nodes
def run(tokens: int) -> tuple[float, int]:
    """Samples a picture with contexts of so many tokens. Returns the seconds, and how often the UNet was called."""
    calls = []

    def count(apply: Any, arguments: dict[str, Any]) -> Tensor:
        calls.append(arguments["c"]["c_crossattn"].shape)
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    model = prepared["model"].clone()
    model.set_model_unet_function_wrapper(count)
    positive, negative = ([[torch.randn(1, tokens, CONTEXT_DIM), {}]] for _ in range(2))
    latent = {"samples": torch.zeros(1, 4, prepared["side"] // 8, prepared["side"] // 8)}
    begin = time.perf_counter()
    (done,) = prepared["sample"](
        model, 1, prepared["steps"], 7.5, "euler", "normal", positive, negative, latent
    )
    done["samples"].cpu()  # so the device has finished
    seconds = time.perf_counter() - begin
    assert {shape[1] for shape in calls} == {tokens}
    return seconds, len(calls)


if __name__ == "__main__":
    worker.main(globals())
