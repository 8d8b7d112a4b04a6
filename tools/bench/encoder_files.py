"""Two LLMs of real sizes with random weights, in every kind of file that the pack reads. Each is made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from torch import Tensor

from bench.gguf_pack import Kind
from bench.gguf_write import decoder_header, decoder_tensors, t5_tensors, write_gguf
from bench.process import say
from bench.transformers_t5 import config_of
from bench.weights import VOCABULARY, ensure_files, t5_shapes, write_safetensors
from convert import convert
from files.safetensors_writer import atomic_file

CONVERTED = ("bf16", "fp16", "fp8")  # by `convert.py`
PACKED = {"GGUF Q8_0": Kind.Q8_0, "GGUF Q4_K": Kind.Q4_K}
PICKLE, WHOLE = "fp32 pickle", "fp32"
WEIGHTS = "model.safetensors"


def t5_files(models: Path, layers: int) -> dict[str, Path]:
    """T5-XL under RankGen's names: kind → file."""
    made = ensure_files(models, layers)
    files = {PICKLE: made.pickle} if made.pickle else {}
    files |= {WHOLE: made.fp32, "bf16": made.bf16}
    stem = made.fp32.stem.removesuffix("-fp32")
    for kind in CONVERTED[1:]:
        named = made.fp32.with_name(f"{stem}-{kind}.safetensors")
        files[kind] = ensure(named, partial(converted, made.fp32, kind))
    for kind, encoding in PACKED.items():
        named = made.fp32.with_name(f"{stem}-{encoding.name}.gguf")
        files[kind] = ensure(named, partial(packed_t5, made.fp32, layers, encoding))
    return files


def plain_t5(models: Path, source: Path, layers: int) -> Path:
    """A folder that transformers loads a T5's file from: its config, and the file by the name that is wanted."""
    folder = models / "plain" / source.stem
    shapes = t5_shapes(layers)
    config_of({ours: shapes[theirs][0] for theirs, ours in t5_names(layers).items()}).save_pretrained(folder)
    (folder / WEIGHTS).unlink(missing_ok=True)
    (folder / WEIGHTS).hardlink_to(source)
    return folder


def t5_names(layers: int) -> dict[str, str]:
    """RankGen's → transformers'."""
    prefix = "t5_encoder."
    return {name: name.removeprefix(prefix) for name in t5_shapes(layers) if name.startswith(prefix)}


def llama_files(models: Path, layers: int, tokenizer: Path) -> dict[str, Path]:
    """A Llama of 1.1 billion weights, with a tokenizer that fits its vocabulary: kind → folder or file."""
    folder, stem = models / "text_encoders", f"bench-v1-llama-{layers}-layers"
    config = llama_config(layers)
    files = {WHOLE: ensure(folder / f"{stem}-fp32", partial(made_llama, config, tokenizer))}
    for kind in CONVERTED:
        files[kind] = ensure(folder / f"{stem}-{kind}", partial(converted, files[WHOLE], kind))
    for kind, encoding in PACKED.items():
        # Beside the tokenizer's files: the one inside a .gguf file takes seconds to read, whatever the weights.
        named = folder / f"{stem}-{encoding.name}" / f"llama-{encoding.name}.gguf"
        files[kind] = ensure(named, partial(packed_llama, files[WHOLE], config, tokenizer, encoding))
    return files


def ensure(place: Path, make: Callable[[Path], None]) -> Path:
    if not place.exists():
        say(f"Making {place.name} …")
        make(place)
    return place


def converted(source: Path, kind: str, target: Path) -> None:
    convert(source, target, kind, False, lambda: None)


def llama_config(layers: int) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=VOCABULARY,
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
        std = None if tensor.ndim == 1 else 1.0 if "embed" in name else tensor.shape[-1] ** -0.5
        shapes[f"model.{name}"] = tuple(tensor.shape), std
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
    with atomic_file(target, source.stat().st_size) as file:
        tensors = t5_tensors(read(source, t5_names(layers)), layers)
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
