"""Two LLMs of real sizes with random weights, in every kind of file that the pack reads. Each is made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import transformers
from bench_process import say
from bench_weights import D_FF, D_KV, D_MODEL, HEADS, VOCABULARY, ensure_files, t5_shapes, write_safetensors
from convert import convert
from gguf_pack import Kind
from gguf_write import decoder_header, decoder_tensors, t5_tensors, write_gguf
from safetensors import safe_open
from safetensors_writer import in_one_step
from torch import Tensor

# In words → `convert.py`'s dtype, and what `.gguf` files call their encoding.
CONVERTED = {"bf16": "bf16", "fp16": "fp16", "fp8": "fp8"}
PACKED = {"GGUF Q8_0": Kind.Q8_0, "GGUF Q4_K": Kind.Q4_K}
PICKLE, WHOLE = "fp32 pickle", "fp32"
WEIGHTS = "model.safetensors"


def t5_files(models: Path, layers: int) -> dict[str, Path]:
    """T5-XL under RankGen's names: kind → file."""
    made = ensure_files(models, layers)
    files = {PICKLE: made.pickle} if made.pickle else {}
    files |= {WHOLE: made.fp32, "bf16": made.bf16}
    stem = made.fp32.with_name(made.fp32.stem.removesuffix("-fp32"))
    for kind in ("fp16", "fp8"):
        files[kind] = ensure(
            stem.with_name(f"{stem.name}-{kind}.safetensors"), partial(converted, made.fp32, kind)
        )
    for kind, encoding in PACKED.items():
        named = stem.with_name(f"{stem.name}-{encoding.name}.gguf")
        files[kind] = ensure(named, partial(packed_t5, made.fp32, layers, encoding))
    return files


def plain_t5(models: Path, source: Path) -> Path:
    """A folder that transformers loads a T5's file from: its config, and the file by the name that is wanted."""
    with safe_open(source, framework="pt") as file:
        layers = sum(name.endswith("SelfAttention.q.weight") for name in file.keys())  # noqa: SIM118
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=D_MODEL,
        d_kv=D_KV,
        d_ff=D_FF,
        num_heads=HEADS,
        num_layers=layers,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    folder = models / "plain" / source.stem
    config.save_pretrained(folder)
    (folder / WEIGHTS).unlink(missing_ok=True)
    (folder / WEIGHTS).hardlink_to(source)
    return folder


def llama_files(models: Path, layers: int, tokenizer: Path) -> dict[str, Path]:
    """A Llama of 1.1 billion weights, with a tokenizer that fits its vocabulary: kind → folder or file."""
    stem = models / "text_encoders" / f"bench-v1-llama-{layers}-layers"
    config = llama_config(layers)
    files = {WHOLE: ensure(stem.with_name(f"{stem.name}-fp32"), partial(made_llama, config, tokenizer))}
    for kind in CONVERTED:
        files[kind] = ensure(stem.with_name(f"{stem.name}-{kind}"), partial(converted, files[WHOLE], kind))
    for kind, encoding in PACKED.items():
        # Beside the tokenizer's files: the one inside a .gguf file takes seconds to read, whatever the weights.
        named = stem.with_name(f"{stem.name}-{encoding.name}") / f"llama-{encoding.name}.gguf"
        files[kind] = ensure(named, partial(packed_llama, files[WHOLE], config, tokenizer, encoding))
    return files


def ensure(place: Path, make: Callable[[Path], None]) -> Path:
    if not place.exists():
        say(f"Making {place.name} …")
        make(place)
    return place


def converted(source: Path, kind: str, target: Path) -> None:
    convert(source, target, CONVERTED[kind], False, lambda: None)


def llama_config(layers: int) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=32128,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )


def made_llama(config: transformers.LlamaConfig, tokenizer: Path, target: Path) -> None:
    """Every value is one that bf16 holds, as in the T5."""
    with torch.device("meta"):
        state = transformers.LlamaModel(config).state_dict()
    shapes: dict[str, tuple[tuple[int, ...], float | None]] = {}
    for name, tensor in state.items():
        shape = tuple(tensor.shape)
        shapes[f"model.{name}"] = (
            shape,
            None if len(shape) == 1 else 1.0 if "embed" in name else shape[-1] ** -0.5,
        )
    fresh = new_folder(target, tokenizer)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(fresh)
    write_safetensors(fresh / WEIGHTS, shapes, torch.float32)
    fresh.replace(target)


def new_folder(target: Path, tokenizer: Path) -> Path:
    """With a tokenizer's files, under a name that is not yet the target's."""
    fresh = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(tokenizer, fresh)
    return fresh


def packed_t5(source: Path, layers: int, kind: Kind, target: Path) -> None:
    names = {name: name.removeprefix("t5_encoder.") for name in t5_shapes(layers) if "t5_encoder" in name}
    with in_one_step(target, source.stat().st_size) as file:
        tensors = t5_tensors(read(source, names), layers)
        write_gguf(file.name, "t5encoder", tensors, kind, {"attention.layer_norm_epsilon": 1e-6})


def packed_llama(
    source: Path, config: transformers.LlamaConfig, tokenizer: Path, kind: Kind, target: Path
) -> None:
    weights = source / WEIGHTS
    with safe_open(weights, framework="pt") as file:
        names = {name: name.removeprefix("model.") for name in file.keys()}  # noqa: SIM118
    fresh = new_folder(target.parent, tokenizer)
    tensors = decoder_tensors(read(weights, names), config)
    write_gguf(fresh / target.name, "llama", tensors, kind, decoder_header(config))
    fresh.replace(target.parent)


def read(source: Path, names: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """One tensor after the other, under other names."""
    with safe_open(source, framework="pt") as file:
        for theirs, ours in names.items():
            yield ours, file.get_tensor(theirs)
