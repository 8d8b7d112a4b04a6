"""Weights to measure with: T5-XL's sizes under RankGen's names, seeded random values, made once.

Laid out as a ComfyUI models directory. Every value is one that bf16 holds exactly, so the fp32 and the bf16
file are the same model and whatever differs is the computation's doing.
"""

from __future__ import annotations

import math
import shutil
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from files.safetensors_writer import Outline, atomic_file, write_tensors

D_MODEL, D_FF, D_KV, HEADS, VOCABULARY, BUCKETS = 2048, 5120, 64, 32, 32128, 32
CONTEXT_DIM = 768
LAYERS = 24
# Goes up with every change of the values, so that older files are not taken for these.
VERSION = 1
SPARE = 1 << 30  # bytes of disk left to others


@dataclass(frozen=True)
class Files:
    """fp32, bf16: safetensors. pickle: fp32 as RankGen is published, None where the disk has no room for it.
    adapter: a projector.pth."""

    fp32: Path
    bf16: Path
    pickle: Path | None
    adapter: Path


def ensure_files(models: Path, layers: int = LAYERS) -> Files:
    """The files in the models directory `models`; those that are not there yet are made.

    Each appears in one step: an interrupted run leaves no half of one.
    Raises: SystemExit, saying how much is wanted, if the disk has no room for the safetensors files.
    """
    encoders, adapters = models / "text_encoders", models / "llm4gen"
    encoders.mkdir(parents=True, exist_ok=True)
    adapters.mkdir(parents=True, exist_ok=True)
    stem = f"bench-v{VERSION}-t5-xl-{layers}-layers"
    fp32, bf16 = (encoders / f"{stem}-{name}.safetensors" for name in ("fp32", "bf16"))
    pickle, adapter = encoders / f"{stem}-fp32.bin", adapters / f"bench-v{VERSION}-projector.pth"

    size = 4 * sum(math.prod(shape) for shape, _ in t5_shapes(layers).values())
    for path, needed in ((fp32, size), (bf16, size // 2)):
        if not path.is_file():
            if not has_room(models, needed):
                raise SystemExit(
                    f"{path.name} needs {needed / 1e9:.1f} GB in {models}, where "
                    f"{shutil.disk_usage(models).free / 1e9:.1f} GB are free (1 GB is left to others). Make room, "
                    "or try --quick, which needs a fifth of it."
                )
            print(f"Making {path.name} ({needed / 1e9:.2f} GB) …", flush=True)
            write_safetensors(path, t5_shapes(layers), torch.float32 if path is fp32 else torch.bfloat16)
    if not pickle.is_file() and has_room(models, size):
        print(f"Making {pickle.name} ({size / 1e9:.2f} GB) …", flush=True)
        with safe_open(fp32, framework="pt") as file:
            save_pickle(pickle, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    if not adapter.is_file():
        save_pickle(adapter, adapter_tensors())
    return Files(fp32, bf16, pickle if pickle.is_file() else None, adapter)


def has_room(folder: Path, needed: int) -> bool:
    return shutil.disk_usage(folder).free > needed + SPARE


def t5_shapes(layers: int) -> dict[str, tuple[tuple[int, ...], float | None]]:
    """RankGen's tensors: name → shape and standard deviation as T5 is initialised; None: all ones."""
    inner = HEADS * D_KV
    shapes: dict[str, tuple[tuple[int, ...], float | None]] = {
        "t5_encoder.shared.weight": ((VOCABULARY, D_MODEL), 1.0),
        "t5_encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (
            (BUCKETS, HEADS),
            1.0,
        ),
        "t5_encoder.encoder.final_layer_norm.weight": ((D_MODEL,), None),
        "projection.weight": ((D_MODEL, D_MODEL), D_MODEL**-0.5),
    }
    for index in range(layers):
        attention, mlp = (f"t5_encoder.encoder.block.{index}.layer.{part}." for part in (0, 1))
        shapes[f"{attention}SelfAttention.q.weight"] = ((inner, D_MODEL), (D_MODEL * D_KV) ** -0.5)
        shapes[f"{attention}SelfAttention.k.weight"] = ((inner, D_MODEL), D_MODEL**-0.5)
        shapes[f"{attention}SelfAttention.v.weight"] = ((inner, D_MODEL), D_MODEL**-0.5)
        shapes[f"{attention}SelfAttention.o.weight"] = ((D_MODEL, inner), inner**-0.5)
        shapes[f"{attention}layer_norm.weight"] = ((D_MODEL,), None)
        shapes[f"{mlp}DenseReluDense.wi_0.weight"] = ((D_FF, D_MODEL), D_MODEL**-0.5)
        shapes[f"{mlp}DenseReluDense.wi_1.weight"] = ((D_FF, D_MODEL), D_MODEL**-0.5)
        shapes[f"{mlp}DenseReluDense.wo.weight"] = ((D_MODEL, D_FF), D_FF**-0.5)
        shapes[f"{mlp}layer_norm.weight"] = ((D_MODEL,), None)
    return shapes


def adapter_tensors() -> dict[str, Tensor]:
    """A Cross-Adapter under the published names. Its norms and biases differ from one another: were two of
    them swapped, the result would show it."""
    linears = {
        "llm_proj": (CONTEXT_DIM, D_MODEL),
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), (CONTEXT_DIM, CONTEXT_DIM)),
        "FFN.0": (4 * CONTEXT_DIM, CONTEXT_DIM),
        "FFN.2": (CONTEXT_DIM, 4 * CONTEXT_DIM),
    }
    tensors = {}
    for name, (out, inner) in linears.items():
        tensors[f"{name}.weight"] = draw(f"{name}.weight", (out, inner), inner**-0.5)
        tensors[f"{name}.bias"] = draw(f"{name}.bias", (out,), 0.1)
    for name in ("kv_norm", "q_norm", "norm"):
        tensors[f"{name}.weight"] = 1 + draw(f"{name}.weight", (CONTEXT_DIM,), 0.2)
        tensors[f"{name}.bias"] = draw(f"{name}.bias", (CONTEXT_DIM,), 0.1)
    return {f"CrossFusionModule.0.{name}": tensor for name, tensor in tensors.items()}


def draw(name: str, shape: Iterable[int], std: float | None) -> Tensor:
    """fp32 values seeded by the tensor's own name."""
    if std is None:
        return torch.ones(*shape)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(*shape, generator=generator).mul_(std)


def write_safetensors(
    path: Path, shapes: dict[str, tuple[tuple[int, ...], float | None]], dtype: torch.dtype
) -> None:
    """Draws and writes one tensor after the other."""
    outline = Outline({name: (dtype, shape) for name, (shape, _) in shapes.items()})
    values = ((name, draw(name, *shapes[name]).bfloat16().to(dtype)) for name in outline.names())
    with atomic_file(path, outline.size()) as file:
        write_tensors(file.write, outline, values)


def save_pickle(path: Path, tensors: dict[str, Tensor]) -> None:
    with atomic_file(path, sum(tensor.nbytes for tensor in tensors.values())) as file:
        torch.save(tensors, file)
