"""A process that trains for `bench.training` on features from the disk, or on features that each step computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench import worker
from bench.files import FP32, QUICK, Model, Sizes
from bench.training import IN_STEP, ON_DISK
from bench.training_worker import SEED, diffusers_unet, in_comfyui
from bench.worker import enter_comfyui, options
from demo_model.parts import clip_shapes
from sandbox.standin_models import VAE

__all__ = ["prepare", "run"]  # what `bench.training` calls

LLM = Sizes(width=768, t5_layers=12, t5_mlp=2048, llama_layers=0, llama_mlp=0)  # T5-base's encoder
CELL = 8  # pixels along a side of one cell of a latent
CAPTIONS = Path(__file__).with_name("dense_prompts.txt")
trainings: dict[str, Callable[[], Any]] = {}


def prepare(sizes: dict[str, Any], device: str, quick: bool) -> None:
    """sizes: see `bench.training`."""
    torch.manual_seed(SEED)
    enter_comfyui(device)
    from llm4gen.models.cross_adapter import CrossAdapterConfig  # noqa: PLC0415
    from llm4gen.models.recipe import Recipe  # noqa: PLC0415
    from llm4gen.models.training.start import new_adapter  # noqa: PLC0415
    from llm4gen.nodes import host  # noqa: PLC0415
    from llm4gen.nodes.fused_clip import FusedCLIP  # noqa: PLC0415
    from llm4gen.nodes.fusion import Fusion  # noqa: PLC0415
    from llm4gen.nodes.managed import ManagedAdapter  # noqa: PLC0415
    from llm4gen.nodes.training.reading import Reader  # noqa: PLC0415
    from llm4gen.nodes.training.unet import UNetInTraining  # noqa: PLC0415

    with torch.inference_mode():
        model, clip, vae, llm = (
            in_comfyui(diffusers_unet(sizes), sizes),
            clip_l(),
            sd15_vae(),
            language(quick),
        )
    config = CrossAdapterConfig(768, llm.width, 3072, 8)
    drawn = new_adapter(config, SEED)
    fused = FusedCLIP.around(clip, Fusion(llm, ManagedAdapter.holding(drawn.state_dict(), config, Recipe())))
    unet = UNetInTraining(model, 768, what="frozen", rank=1, dtype=torch.float32, seed=SEED)
    device = host.load_to_train([unet.patcher])
    for where, limit in ((ON_DISK, 1 << 40), (IN_STEP, 0)):
        data = features(Reader(fused), vae, unet, sizes, options.models / where, limit)
        adapter = new_adapter(config, SEED).to(device)
        trainings[where] = step_of(unet, adapter, data, sizes["batch"], device)
        trainings[where]()  # the first step makes AdamW's state


def run(where: str, steps: int) -> float:
    """Does some steps. Returns their seconds."""
    begin = time.perf_counter()
    for _ in range(steps):
        trainings[where]()  # reads its loss, so the device has finished
    return time.perf_counter() - begin


def features(reader: Any, vae: Any, unet: Any, sizes: dict[str, Any], folder: Path, limit: int) -> Any:
    """The trainer's data, of which the disk may hold `limit` bytes."""
    from llm4gen.models.recipe import Recipe  # noqa: PLC0415
    from llm4gen.models.training.stored import Store, StoredLatents, StoredTexts  # noqa: PLC0415
    from llm4gen.nodes import host  # noqa: PLC0415
    from llm4gen.nodes.training.data import TrainingSet  # noqa: PLC0415

    lines = (line.strip() for line in CAPTIONS.read_text(encoding="utf-8").splitlines())
    captions = [line for line in lines if line and not line.startswith("#")][: sizes["pictures"]]
    store, side = Store(folder, limit), sizes["side"]
    texts, latents = StoredTexts(store, lambda text: [text], reader), StoredLatents(store)
    texts.add_all(["", *captions])
    for number in range(len(captions)):
        latents.add([str(number)], partial(latent, vae, number, side * CELL), lambda: (4, side, side))
    found = TrainingSet(latents, captions, texts, Recipe(), {}, None, "bench")
    assert limit == 0 or (not texts.lacking and not latents.lacking), "there is too little room on the disk"
    aside = partial(host.undisturbed, [unet.patcher])
    return found.data(unet.patcher.model.process_latent_in, found.standard(), None, aside)


@torch.inference_mode()
def latent(vae: Any, number: int, side: int) -> Tensor:
    """Of a picture of random colours. side: in pixels."""
    from llm4gen.nodes.training.reading import ordinary  # noqa: PLC0415

    pixels = torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(number))
    return ordinary(vae.encode(pixels)[0])


def step_of(unet: Any, adapter: Any, data: Any, batch: int, device: torch.device) -> Callable[[], Any]:
    from llm4gen.models.training.denoise import Denoise  # noqa: PLC0415
    from llm4gen.models.training.settings import Drops, Settings  # noqa: PLC0415
    from llm4gen.models.training.trainer import Trainer  # noqa: PLC0415

    settings = Settings(batch_size=batch, drops=Drops(0.0, 0.0, 0.0))
    objective = Denoise(unet.predict, unet.schedule, adapter)
    return Trainer(objective, data, settings, timesteps=1000, adapter=adapter, device=device).step


def clip_l() -> Any:
    """CLIP-L in its own size, as Load CLIP gives it."""
    import comfy.sd  # noqa: PLC0415

    file = options.models / "clip_l.safetensors"
    save_file({name: drawn_weight(name, shape).half() for name, shape in clip_shapes().items()}, file)
    return comfy.sd.load_clip([str(file)], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION)


def sd15_vae() -> Any:
    import comfy.sd  # noqa: PLC0415
    from comfy.ldm.models.autoencoder import AutoencoderKL  # noqa: PLC0415

    shapes = AutoencoderKL(ddconfig=VAE, embed_dim=4).state_dict()
    return comfy.sd.VAE(sd={name: drawn_weight(name, weight.shape) for name, weight in shapes.items()})


def drawn_weight(name: str, shape: Sequence[int]) -> Tensor:
    """Norms are 1, biases 0, others keep the size of what they multiply."""
    if len(shape) == 1:
        return torch.full(tuple(shape), float("norm" in name and name.endswith("weight")))
    return torch.randn(tuple(shape)) * prod(shape[1:]) ** -0.5


def language(quick: bool) -> Any:
    """The LLM as Load LLM Encoder gives it."""
    from bench import making  # noqa: PLC0415 -- needs the pack, which `worker.main` makes importable
    from llm4gen.nodes.load import LoadLLMEncoder  # noqa: PLC0415

    model: Model = (QUICK if quick else LLM).models(options.models)["t5"]
    for folder in ("text_encoders", "llm4gen"):
        (options.models / folder).mkdir(exist_ok=True)
    tokenizer = options.comfyui / "comfy" / "text_encoders" / "t5_tokenizer"
    making.make(model, FP32, tokenizer, options.models / "llm4gen" / "unused.pth")
    return LoadLLMEncoder.execute(model.file(FP32).parent.name, "fp32").result[0]


if __name__ == "__main__":
    worker.main(globals())
