"""Writes models as llama.cpp's converter does, for tests and the benchmark: its names, order of rows and header."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor
from transformers import PretrainedConfig

from bench.gguf_pack import Kind, pack, packable

Tensors = Iterable[tuple[str, Tensor]]


def t5_tensors(tensors: Tensors, layers: int) -> Tensors:
    """transformers' names of an encoder → llama.cpp's."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, layers)
    for name, tensor in tensors:
        if "embed_tokens" not in name:  # which is another name of `shared`
            yield f"{names.get_name(name.removesuffix('.weight'))}.weight", tensor


def decoder_tensors(tensors: Tensors, config: PretrainedConfig) -> Tensors:
    """Of a model without its head; transformers' names → llama.cpp's, and its order and offsets."""
    arch, head = arch_of(config), head_of(config)
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    for name, tensor in tensors:
        module, _, part = f"model.{name}".rpartition(".")
        if arch == "llama" and module.endswith(("q_proj", "k_proj")):  # the two halves of a head, interleaved
            tensor = tensor.unflatten(0, (-1, 2, head // 2)).transpose(1, 2).flatten(0, 2)  # noqa: PLW2901
        if arch.startswith("gemma") and module.endswith("norm"):
            tensor = tensor + 1  # noqa: PLW2901
        yield f"{names.get_name(module)}.{part}", tensor


def decoder_header(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_of(config),
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.sliding_window": getattr(config, "sliding_window", None) or 4096,
        "rope.dimension_count": head_of(config),
        "rope.freq_base": theta_of(config),
        "vocab_size": config.vocab_size,
    }


def write_gguf(path: Path | str, arch: str, tensors: Tensors, kind: Kind, header: Mapping[str, Any]) -> None:
    """Matrices in an encoding; vectors, and T5's position bias, in fp32, as llama.cpp leaves them."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("Small")
    for name, value in header.items():
        add = {
            str: writer.add_string,
            int: writer.add_uint32,
            float: writer.add_float32,
            list: writer.add_array,
        }[type(value)]
        add(name if name.startswith(("split.", "tokenizer.")) else f"{arch}.{name}", value)
    for name, tensor in tensors:
        plain = tensor.ndim == 1 or "rel_b" in name
        chosen = Kind.F32 if plain else packable(kind, tensor.shape[-1])
        matrix = tensor.float().contiguous().numpy()
        if chosen is Kind.Q8_K:  # which no library expands
            data = np.zeros((len(matrix), matrix.shape[1] // 256 * 292), np.uint8)
        else:
            data = pack(matrix, chosen)
        writer.add_tensor(name, data, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def arch_of(config: PretrainedConfig) -> str:
    return {"gemma3_text": "gemma3"}.get(config.model_type, config.model_type)


def head_of(config: PretrainedConfig) -> int:
    """Width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def theta_of(config: PretrainedConfig) -> float:
    """The base of the rotation, where Gemma 3 has two; older versions of transformers keep it elsewhere."""
    told = getattr(config, "rope_parameters", None) or {}
    told = told.get("full_attention", told)
    return float(told.get("rope_theta") or config.rope_theta)
