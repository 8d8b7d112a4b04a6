"""A process that trains for `bench.training`: by this pack's trainer, or as diffusers' example does it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from bench import worker
from bench.worker import describe, enter_comfyui, memory, options

__all__ = ["describe", "prepare", "run"]  # what `bench.training` calls

TOKENS, ROWS, LLM_WIDTH = 256, 60, 2048  # of a caption of T5-XL: positions, and rows that differ
SEED = 0
trainings: dict[tuple[str, str], Callable[[], Any]] = {}  # by way, and what learns


def prepare(way: str, what: str, sizes: dict[str, Any], device: str) -> None:
    """way: ours or diffusers. what: learns of the UNet. sizes: see `bench.training`."""
    torch.manual_seed(SEED)
    enter_comfyui(device)
    made = diffusers_unet(sizes).to(device)
    step = peer(made, sizes, device) if way == "diffusers" else ours(made, what, sizes)
    step()  # the first step makes AdamW's state
    trainings[way, what] = step


def run(way: str, what: str, steps: int) -> tuple[float, dict[str, float]]:
    """Does some steps. Returns their seconds, and the memory at the peak so far."""
    begin = time.perf_counter()
    for _ in range(steps):
        trainings[way, what]()  # reads its loss, so the device has finished
    return time.perf_counter() - begin, memory(None)


def diffusers_unet(sizes: dict[str, Any]) -> Any:
    from diffusers import UNet2DConditionModel  # noqa: PLC0415

    channels = sizes["channels"]
    blocks = len(channels)
    plain = plain_levels(sizes)
    return UNet2DConditionModel(
        block_out_channels=channels,
        layers_per_block=sizes["layers"],
        down_block_types=("CrossAttnDownBlock2D",) * (blocks - plain) + ("DownBlock2D",) * plain,
        up_block_types=("UpBlock2D",) * plain + ("CrossAttnUpBlock2D",) * (blocks - plain),
        cross_attention_dim=768,
        attention_head_dim=8,
    ).eval()


def peer(unet: Any, sizes: dict[str, Any], device: str) -> Callable[[], Any]:
    """A step of diffusers' example train_text_to_image: min-SNR weights, clipping, AdamW, average. fp32."""
    from diffusers import DDPMScheduler  # noqa: PLC0415
    from diffusers.training_utils import EMAModel, compute_snr  # noqa: PLC0415

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    unet.requires_grad_(True)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, weight_decay=1e-2)
    average = EMAModel(unet.parameters(), decay=0.999)
    batch, side = sizes["batch"], sizes["side"]
    latents = torch.randn(batch, 4, side, side, device=device)
    context = torch.randn(batch, 77 + TOKENS, 768, device=device)

    def step() -> float:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (batch,), device=device)
        found = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, context).sample
        snr = compute_snr(scheduler, timesteps)
        weights = snr.clamp(max=5.0) / snr
        loss = ((found - noise).square().flatten(1).mean(1) * weights).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(unet.parameters())
        return loss.item()

    return step


def ours(made: Any, what: str, sizes: dict[str, Any]) -> Callable[[], Any]:
    """A step of this pack's trainer, from the states of captions on: the adapter's own work is a part of it."""
    from llm4gen.models.cross_adapter import CrossAdapterConfig  # noqa: PLC0415
    from llm4gen.models.encoders.rows import Rows  # noqa: PLC0415
    from llm4gen.models.features.features import Features  # noqa: PLC0415
    from llm4gen.models.training.data import EncodedText, Example, TrainingData  # noqa: PLC0415
    from llm4gen.models.training.denoise import Denoise  # noqa: PLC0415
    from llm4gen.models.training.settings import Drops, Settings  # noqa: PLC0415
    from llm4gen.models.training.start import new_adapter  # noqa: PLC0415
    from llm4gen.models.training.trainer import Trainer  # noqa: PLC0415
    from llm4gen.nodes import host  # noqa: PLC0415
    from llm4gen.nodes.training.unet import UNetInTraining  # noqa: PLC0415

    model = in_comfyui(made, sizes)
    unet = UNetInTraining(model, 768, what=what, rank=32, dtype=torch.float32, seed=SEED)
    device = host.load_to_train([unet.patcher])
    adapter = new_adapter(CrossAdapterConfig(768, LLM_WIDTH, 3072, 8), SEED).to(device)
    rows = Rows(30, torch.arange(ROWS), torch.arange(TOKENS).clamp(max=ROWS - 1))
    texts = [
        EncodedText(torch.randn(77, 768), Features(torch.randn(ROWS, LLM_WIDTH).half(), rows))
        for _ in range(8)
    ]
    side, batch = sizes["side"], sizes["batch"]
    data = TrainingData([Example(torch.randn(4, side, side), text) for text in texts], texts[0])
    settings = Settings(batch_size=batch, drops=Drops(0.0, 0.0, 0.0))
    denoise = Denoise(unet.predict, unet.schedule, adapter)
    trainer = Trainer(
        denoise, data, settings, timesteps=1000, adapter=adapter, unet=unet.learns(), device=device
    )
    return trainer.step


def in_comfyui(made: Any, sizes: dict[str, Any]) -> Any:
    """The same weights as a MODEL of core's Load Diffusion Model."""
    import comfy.sd  # noqa: PLC0415
    import comfy.utils  # noqa: PLC0415

    layers, levels, plain = sizes["layers"], len(sizes["channels"]), plain_levels(sizes)
    names = comfy.utils.unet_to_diffusers(
        {
            "num_res_blocks": [layers] * levels,
            "channel_mult": [channels // sizes["channels"][0] for channels in sizes["channels"]],
            "transformer_depth": [1] * layers * (levels - plain) + [0] * layers * plain,
            "transformer_depth_output": [1] * (layers + 1) * (levels - plain) + [0] * (layers + 1) * plain,
            "transformer_depth_middle": 1,
        }
    )
    weights = made.state_dict()
    tensors = {
        ours: weights[theirs].cpu().contiguous() for theirs, ours in names.items() if theirs in weights
    }
    assert len(tensors) == len(weights)
    file = options.models / "unet.safetensors"
    save_file(tensors, file)
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(file))


def plain_levels(sizes: dict[str, Any]) -> int:
    """How many levels of the UNet have no attention: SD1.5's innermost one."""
    return int(len(sizes["channels"]) > 1)


if __name__ == "__main__":
    worker.main(globals())
