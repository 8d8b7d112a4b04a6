"""Random models beyond the demo's stand-ins, made to fit them: ControlNet, LoRA, other checkpoints, a tuned UNet.

Where a recipe takes `checkpoint`, that is the stand-in's tensors.
"""

import shutil
import zlib

import torch
from safetensors.torch import load_file, save_file

import decoders
import sdxl_checkpoint
import tiny
from host.dynamic_vram import without_dynamic_vram
from other_models import SDXL, unet_lora
from paths import T5_TOKENIZER
from sandbox.standin_models import CONTEXT_DIM, fan_in, random_tensors, unet_sizes
from sandbox.standins import ADAPTER, CHECKPOINT, ENCODER

UNET, CLIP = "model.diffusion_model.", "cond_stage_model.transformer."


@without_dynamic_vram()
def controlnet():
    """A random SD1.5 ControlNet that fits the stand-in's UNet. Wants ComfyUI importable."""
    from comfy.cldm.cldm import ControlNet  # noqa: PLC0415

    net = ControlNet(hint_channels=3, **unet_sizes())
    shapes = {f"control_model.{name}": tensor.shape for name, tensor in net.state_dict().items()}
    return random(shapes)


def lora(checkpoint):
    """A random LoRA on CLIP's and the UNet's attention, under the names that trainers write."""
    random = torch.Generator().manual_seed(3)
    tensors = {}
    for name, tensor in checkpoint.items():
        part, place = next(
            (p for p in (("lora_unet_", UNET), ("lora_te_", CLIP)) if name.startswith(p[1])), (None, "")
        )
        if part is None or not name.endswith(("attn2.to_k.weight", "q_proj.weight", "mlp.fc1.weight")):
            continue
        key = part + name.removeprefix(place).removesuffix(".weight").replace(".", "_")
        tensors[f"{key}.lora_up.weight"] = torch.randn(tensor.shape[0], 4, generator=random) * 0.1
        tensors[f"{key}.lora_down.weight"] = torch.randn(4, tensor.shape[1], generator=random) * 0.1
        tensors[f"{key}.alpha"] = torch.tensor(4.0)
    return tensors


def inpainting_checkpoint(checkpoint):
    """The stand-in with nine input channels: besides the noisy picture its UNet sees the mask and the masked one."""
    first = f"{UNET}input_blocks.0.0.weight"
    shape = (checkpoint[first].shape[0], 9, *checkpoint[first].shape[2:])
    return checkpoint | random({first: shape})


def another_checkpoint(checkpoint):
    """A checkpoint tuned from the stand-in to something else: its UNet is moved, CLIP and VAE are the same."""
    return checkpoint | moved({k: v for k, v in checkpoint.items() if k.startswith(UNET)}, "another")


def tuned_unet(checkpoint):
    """A UNet tuned from the stand-in's, alone in its file and without the checkpoint's prefix."""
    unet = {k.removeprefix(UNET): v for k, v in checkpoint.items() if k.startswith(UNET)}
    return moved(unet, "tuned")


def moved(tensors, seed):
    """Every weight moved a little, each by its own name; norms and biases as well."""

    def move(name, tensor):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        spread = 0.1 * (fan_in(tensor.shape) ** -0.5 if tensor.ndim > 1 else 1.0)
        return (tensor + torch.randn(tensor.shape, generator=generator) * spread).to(tensor.dtype)

    return {name: move(name, tensor) for name, tensor in tensors.items()}


@without_dynamic_vram()
def t2i_adapter(kind):
    """A T2I-Adapter for a UNet of a kind (SD15 or SDXL) with ALL_BLOCKS, see `other_models`."""
    from comfy.t2i_adapter.adapter import Adapter  # noqa: PLC0415

    channels, is_sdxl = kind.unet["model_channels"], kind is SDXL
    levels = [channels, 2 * channels, 4 * channels, 4 * channels]
    pixels = 16 if is_sdxl else 8  # along a side of what becomes one cell; the loader tells the family by it
    net = Adapter(levels, 2, 3 * pixels**2, ksize=1, sk=True, use_conv=False, xl=is_sdxl)
    return random({name: tensor.shape for name, tensor in net.state_dict().items()})


@without_dynamic_vram()
def gligen():
    """GLIGEN's layers for the four transformers of `other_models.SD15`, all 128 wide, with their gates open."""
    from comfy.gligen import GatedSelfAttentionDense, PositionNet  # noqa: PLC0415

    parts = {"position_net": PositionNet(CONTEXT_DIM, CONTEXT_DIM)}
    for place in ("input_blocks.3.1", "middle_block.1", "output_blocks.0.1", "output_blocks.1.1"):
        fuser = GatedSelfAttentionDense(128, CONTEXT_DIM, 8, 16)
        parts[f"{place}.transformer_blocks.0.fuser"] = fuser
    shapes = {f"{place}.{n}": t.shape for place, part in parts.items() for n, t in part.state_dict().items()}
    gates = {name: torch.tensor(1.0) for name, shape in shapes.items() if not shape}
    return gates | random({name: shape for name, shape in shapes.items() if shape})


def small_llm(folder):
    """A random decoder with T5's tokenizer, in a folder as transformers writes one."""
    shutil.copytree(T5_TOKENIZER, folder)
    decoders.make("Llama", folder, vocab_size=tiny.VOCABULARY)


def random(shapes):
    """Weights for every shape."""
    return random_tensors(shapes, lambda _, shape: fan_in(shape) ** -0.5, torch.float16)


def write_published(standins, target):
    """A models directory in which a random model lies under every name that the example workflows use.

    Wants ComfyUI importable.
    """
    checkpoint = load_file(standins / "checkpoints" / CHECKPOINT)
    files = {
        "checkpoints/v1-5-pruned-emaonly-fp16.safetensors": checkpoint,
        "checkpoints/sd-v1-5-inpainting.safetensors": inpainting_checkpoint(checkpoint),
        "checkpoints/dreamshaper_8.safetensors": another_checkpoint(checkpoint),
        "diffusion_models/llm4gen_sd15_unet.safetensors": tuned_unet(checkpoint),
        "controlnet/control_v11p_sd15_canny_fp16.safetensors": controlnet(),
        "loras/my_sd15_lora.safetensors": lora(checkpoint),
        "text_encoders/rankgen-t5-xl-all-bf16.safetensors": {
            name: tensor.bfloat16()
            for name, tensor in load_file(standins / "text_encoders" / ENCODER).items()
        },
        "llm4gen/projector.pth": torch.load(standins / "llm4gen" / ADAPTER),
        "llm4gen/my_sdxl_adapter_00001_.safetensors": tiny.adapter_tensors(clip=2048),
        "loras/my_sdxl_lora_1000_steps_00001_.safetensors": unet_lora(sdxl_checkpoint.model()),
    }
    small_llm(target / "text_encoders" / "SmolLM2-135M-Instruct")
    for name, tensors in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        write = save_file if name.endswith(".safetensors") else torch.save
        write(tensors, target / name)
    sdxl_checkpoint.write(target / "checkpoints" / "sd_xl_base_1.0.safetensors", checkpoint)
