"""Seeded random models of the real ones' kind, for running the workflow where no real weights are.

Laid out as a ComfyUI models directory. Imported where ComfyUI is importable, or run by the host's Python:

    python tools/standins.py --comfyui .host/ComfyUI .host/standins
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT = "llm4gen_standin_sd15.safetensors"
ENCODER = "rankgen-t5-xl-standin.safetensors"
ADAPTER = "projector_standin.pth"
# Goes up with every change of a recipe below, so that files of an older one are made anew.
VERSION = 1
STAMP = "standins.json"

LLM_DIM = 2048  # d_model of T5-XL
CONTEXT_DIM = 768  # the width of CLIP-L's tokens, and of the context that SD1.5's UNet attends to


def ensure_standins(target: Path) -> bool:
    """Makes the stand-ins in `target` unless they are there; says whether it made any.

    The folder appears in one step: an interrupted run leaves no half of it.
    """
    if is_current(target):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=target.name + "-"))
    try:
        fresh = scratch / target.name
        _write_all(fresh)
        (fresh / STAMP).write_text(json.dumps({"version": VERSION}), encoding="utf-8")
        return put_in_place(fresh, target, scratch / "old")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def put_in_place(fresh: Path, target: Path, old: Path) -> bool:
    """Says whether it did. Another process, another of the tests' workers say, may have been faster: its files are
    in use by now, and stay."""
    if is_current(target):
        return False
    if target.exists():
        target.replace(old)
    try:
        fresh.replace(target)
    except OSError:
        if not is_current(target):
            raise
        return False
    return True


def is_current(target: Path) -> bool:
    """Whether `target` holds the stand-ins of today's recipe."""
    try:
        return json.loads((target / STAMP).read_text(encoding="utf-8")) == {"version": VERSION}
    except (OSError, ValueError):
        return False


def _write_all(folder: Path) -> None:
    import torch  # noqa: PLC0415 -- a caller may only want the names
    from safetensors.torch import save_file  # noqa: PLC0415

    for name in ("checkpoints", "text_encoders", "llm4gen"):
        (folder / name).mkdir(parents=True)
    save_file(sd15_checkpoint(), folder / "checkpoints" / CHECKPOINT)
    save_file(rankgen_encoder(), folder / "text_encoders" / ENCODER)
    torch.save(cross_adapter(), folder / "llm4gen" / ADAPTER)


def sd15_checkpoint() -> dict[str, Tensor]:
    """A checkpoint that ComfyUI takes for SD1.5: a small UNet, CLIP-L, the SD VAE with a slim decoder; fp16.

    The tensors' names and shapes are asked of ComfyUI's own classes, built without memory.
    """
    import comfy.ops  # noqa: PLC0415
    import comfy.sd1_clip  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from comfy.clip_model import CLIPTextModel  # noqa: PLC0415
    from comfy.ldm.models.autoencoder import AutoencoderKL  # noqa: PLC0415

    meta = torch.device("meta")
    build = {"dtype": torch.float16, "device": meta, "operations": comfy.ops.disable_weight_init}
    clip_config = Path(comfy.sd1_clip.__file__).with_name("sd1_clip_config.json")
    clip = CLIPTextModel(json.loads(clip_config.read_text(encoding="utf-8")), **build)
    vae_config = {
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
    with meta:
        vae = AutoencoderKL(ddconfig=vae_config, embed_dim=4, decoder_ddconfig=vae_config | {"ch": 64})

    shapes = {f"model.diffusion_model.{name}": shape for name, shape in unet_shapes().items()}
    for name, tensor in clip.state_dict().items():
        if name.startswith("text_model."):  # published checkpoints hold no text projection
            shapes[f"cond_stage_model.transformer.{name}"] = tensor.shape
    shapes |= {f"first_stage_model.{name}": tensor.shape for name, tensor in vae.state_dict().items()}

    def std(name: str, shape: tuple[int, ...]) -> float:
        if name.endswith("token_embedding.weight"):
            return 1.0  # so that the words decide what comes out, and positions less
        if name.endswith("position_embedding.weight"):
            return 0.5
        return fan_in(shape) ** -0.5

    return draw(shapes, std, torch.float16)


def unet_shapes(first_blocks: int = 1) -> dict[str, tuple[int, ...]]:
    """A small UNet that ComfyUI takes for SD1.5's. first_blocks: how many residual blocks the first level has."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: PLC0415

    unet = UNetModel(
        out_channels=4,
        transformer_depth_output=[*[0] * (first_blocks + 1), 1, 1],
        use_linear_in_transformer=False,
        **unet_sizes(first_blocks),
    )
    return {name: tensor.shape for name, tensor in unet.state_dict().items()}


def unet_sizes(first_blocks: int = 1) -> dict[str, Any]:
    """What the small UNet and a ControlNet for it have in common: their classes' arguments."""
    import comfy.ops  # noqa: PLC0415
    import torch  # noqa: PLC0415

    return {
        "image_size": 32,
        "in_channels": 4,
        "model_channels": 320,
        "channel_mult": (1, 2),
        "num_res_blocks": [first_blocks, 1],
        # No attention at full resolution, where it would take two thirds of a step's time on a CPU.
        "transformer_depth": [*[0] * first_blocks, 1],
        "transformer_depth_middle": 1,
        "use_spatial_transformer": True,
        "context_dim": CONTEXT_DIM,
        "num_heads": 8,
        "dtype": torch.float16,
        "device": torch.device("meta"),
        "operations": comfy.ops.disable_weight_init,
    }


def rankgen_encoder() -> dict[str, Tensor]:
    """RankGen-T5-XL under its own names and widths, with T5's real vocabulary, but two layers; fp16."""
    import torch  # noqa: PLC0415

    layers, heads, d_kv, d_ff, vocabulary, buckets = 2, 32, 64, 5120, 32128, 32
    inner = heads * d_kv
    shapes: dict[str, tuple[int, ...]] = {
        "projection.weight": (LLM_DIM, LLM_DIM),
        "t5_encoder.shared.weight": (vocabulary, LLM_DIM),
        "t5_encoder.encoder.final_layer_norm.weight": (LLM_DIM,),
    }
    for i in range(layers):
        attention, mlp = (f"t5_encoder.encoder.block.{i}.layer.{j}." for j in (0, 1))
        for name in "qkv":
            shapes[f"{attention}SelfAttention.{name}.weight"] = (inner, LLM_DIM)
        shapes[f"{attention}SelfAttention.o.weight"] = (LLM_DIM, inner)
        shapes[f"{mlp}DenseReluDense.wi_0.weight"] = (d_ff, LLM_DIM)
        shapes[f"{mlp}DenseReluDense.wi_1.weight"] = (d_ff, LLM_DIM)
        shapes[f"{mlp}DenseReluDense.wo.weight"] = (LLM_DIM, d_ff)
        shapes[f"{attention}layer_norm.weight"] = shapes[f"{mlp}layer_norm.weight"] = (LLM_DIM,)
    shapes["t5_encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (
        buckets,
        heads,
    )

    def std(name: str, shape: tuple[int, ...]) -> float:
        if name.endswith(("shared.weight", "relative_attention_bias.weight")):
            return 1.0
        if name.endswith(".q.weight"):
            return (LLM_DIM * d_kv) ** -0.5  # T5 does not scale its attention; its weights do
        return fan_in(shape) ** -0.5

    return draw(shapes, std, torch.float16)


def cross_adapter() -> dict[str, Tensor]:
    """A projector.pth: the published names and shapes, fp32."""
    import torch  # noqa: PLC0415

    linears = {
        "llm_proj": (CONTEXT_DIM, LLM_DIM),
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), (CONTEXT_DIM, CONTEXT_DIM)),
        "FFN.0": (4 * CONTEXT_DIM, CONTEXT_DIM),
        "FFN.2": (CONTEXT_DIM, 4 * CONTEXT_DIM),
    }
    norms = dict.fromkeys(("kv_norm", "q_norm", "norm"), (CONTEXT_DIM,))
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in (linears | norms).items():
        shapes[f"CrossFusionModule.0.{name}.weight"] = shape
        shapes[f"CrossFusionModule.0.{name}.bias"] = shape[:1]
    return draw(shapes, lambda _, shape: fan_in(shape) ** -0.5, torch.float32)


def fan_in(shape: tuple[int, ...]) -> int:
    """How many inputs one output of a linear or convolution weight sums."""
    size = 1
    for length in shape[1:]:
        size *= length
    return size


def draw(
    shapes: dict[str, tuple[int, ...]], std: Callable[[str, tuple[int, ...]], float], dtype: object
) -> dict[str, Tensor]:
    """Fills every shape: zero biases, norms of one, the rest normal; each seeded by its own name."""
    import torch  # noqa: PLC0415

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="the models directory to make")
    parser.add_argument("--comfyui", type=Path, required=True, help="the ComfyUI folder")
    options = parser.parse_args()
    sys.argv = sys.argv[:1]  # ComfyUI reads the command line too when it is asked to
    sys.path.insert(0, str(options.comfyui.resolve()))
    from comfy.cli_args import args  # noqa: PLC0415

    args.cpu = True  # before all of comfy is imported, which would look for a device
    ensure_standins(options.target.resolve())


if __name__ == "__main__":
    main()
