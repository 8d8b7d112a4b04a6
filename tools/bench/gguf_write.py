"""Writes `.gguf` files with llama.cpp's names, order of rows and header, as its converter does. For tests and the
benchmarks."""

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
    """Gives an encoder's tensors llama.cpp's names instead of transformers'."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, layers)
    for name, tensor in tensors:
        if "embed_tokens" not in name:  # a second name of `shared`
            yield f"{names.get_name(name.removesuffix('.weight'))}.weight", tensor


def decoder_tensors(tensors: Tensors, config: PretrainedConfig) -> Tensors:
    """Gives the tensors of a model without its head llama.cpp's names, order of rows and offsets."""
    arch, head = arch_of(config), head_of(config)
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    for name, tensor in tensors:
        module, _, part = f"model.{name}".rpartition(".")
        if arch == "llama" and module.endswith(
            ("q_proj", "k_proj")
        ):  # interleaves the two halves of each head
            tensor = tensor.unflatten(0, (-1, 2, head // 2)).transpose(1, 2).flatten(0, 2)  # noqa: PLW2901
        if arch.startswith("gemma") and module.endswith("norm"):
            tensor = tensor + 1  # noqa: PLW2901
        yield f"{names.get_name(module)}.{part}", tensor


def decoder_header(config: PretrainedConfig) -> dict[str, Any]:
    """The header entries of a decoder, without the architecture in front of their names."""
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
    """Writes matrices in an encoding. Vectors and T5's position bias stay fp32, as llama.cpp leaves them."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("Small")
    add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
    for name, value in header.items():
        full_name = name if name.startswith(("split.", "tokenizer.")) else f"{arch}.{name}"
        add[type(value)](full_name, value)
    for name, tensor in tensors:
        stays_fp32 = tensor.ndim == 1 or "rel_b" in name
        chosen = Kind.F32 if stays_fp32 else packable(kind, tensor.shape[-1])
        matrix = tensor.float().contiguous().numpy()
        if chosen is Kind.Q8_K:  # no library dequantises it, so its bytes do not matter
            data = np.zeros((len(matrix), matrix.shape[1] // 256 * 292), np.uint8)
        else:
            data = pack(matrix, chosen)
        writer.add_tensor(name, data, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def arch_of(config: PretrainedConfig) -> str:
    """llama.cpp's name of the architecture."""
    return {"gemma3_text": "gemma3"}.get(config.model_type, config.model_type)


def head_of(config: PretrainedConfig) -> int:
    """The width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def theta_of(config: PretrainedConfig) -> float:
    """The base of the rotary frequencies. Gemma 3 has two, of which this is the one of full attention. Older versions
    of transformers have it in another place."""
    parameters = getattr(config, "rope_parameters", None) or {}
    parameters = parameters.get("full_attention", parameters)
    return float(parameters.get("rope_theta") or config.rope_theta)
