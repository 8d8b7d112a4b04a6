"""Writes models as llama.cpp's converter does: its names, its order of rows, its encodings."""

import sys

import gguf
import numpy as np
import tiny
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from paths import TOOLS

sys.path.insert(0, str(TOOLS))
from gguf_pack import Kind, pack, packable

FAMILIES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 128},
    "Gemma2": {"head_dim": 256, "sliding_window": 3},
    "Gemma3Text": {"head_dim": 256, "sliding_window": 3, "num_hidden_layers": 7},
    "Phi3": {"vocab_size": 32064},
}


def make(family, **changes):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "pad_token_id": 0,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**(sizes | FAMILIES[family] | changes))
    model = transformers.AutoModel.from_config(config).eval().requires_grad_(False)
    # Norms of one and biases of zero would hide what is done to them.
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            torch.nn.init.uniform_(weight, *((0.5, 1.5) if "norm" in name else (-0.1, 0.1)))
    return model


def t5(**changes):
    return tiny.t5_encoder(
        **({"d_model": 256, "d_ff": 512, "d_kv": 64, "vocab_size": 64, "num_layers": 1} | changes)
    )


def write_t5(path, oracle, kind=Kind.F32, arch="t5encoder", without="nothing", **header):
    """The encoder of a transformers T5. without: part of the names that are left out."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, oracle.config.num_layers)
    tensors = {}
    for name, tensor in oracle.state_dict().items():
        ours = f"{names.get_name(name.removesuffix('.weight'))}.weight"
        if without not in ours and "embed_tokens" not in name:  # which is another name of the first
            tensors[ours] = tensor
    write(path, arch, tensors, kind, {"attention.layer_norm_epsilon": 1e-6} | header)


def write_decoder(path, oracle, kind=Kind.F32, extra=None, **header):
    """A transformers model without its head."""
    config = oracle.config
    arch = {"gemma3_text": "gemma3"}.get(config.model_type, config.model_type)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.sliding_window": getattr(config, "sliding_window", None) or 4096,
        "rope.dimension_count": head,
        "rope.freq_base": theta_of(config),
        "vocab_size": config.vocab_size,
    }
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names, tensors = gguf.get_tensor_name_map(number, config.num_hidden_layers), dict(extra or {})
    for name, tensor in oracle.state_dict().items():
        module, _, part = f"model.{name}".rpartition(".")
        ours = f"{names.get_name(module)}.{part}"
        tensors[ours] = tensor
        if arch == "llama" and module.endswith(("q_proj", "k_proj")):  # the two halves of a head, interleaved
            tensors[ours] = tensor.unflatten(0, (-1, 2, head // 2)).transpose(1, 2).flatten(0, 2)
        if arch.startswith("gemma") and module.endswith("norm"):
            tensors[ours] = tensor + 1
    write(path, arch, tensors, kind, sizes | header)


def own_tokenizer(*words):
    """A tokenizer as a file has it in its header: a piece for each byte, each beginning of a word, and the end."""
    starts = [word[:length] for word in words for length in range(2, len(word) + 1)]
    pieces = [*sorted(ByteLevel.alphabet()), *starts, "<|endoftext|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [1] * (len(pieces) - 1) + [3],  # the last is no text
        "tokenizer.ggml.merges": [f"{start[:-1]} {start[-1]}" for start in starts],
        "tokenizer.ggml.eos_token_id": len(pieces) - 1,
    }


def write(path, arch, tensors, kind, header):
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
    for name, tensor in tensors.items():
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


def expanded(model, kind):
    """Gives a model the numbers that its matrices have once they were quantised."""
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "relative_attention_bias" not in name:
            weight.data = torch.from_numpy(gguf.dequantize(pack(weight.data.numpy(), kind), kind).copy())
    return model


def theta_of(config):
    """The base of the rotation, where Gemma 3 has two; older versions of transformers keep it elsewhere."""
    told = getattr(config, "rope_parameters", None) or {}
    told = told.get("full_attention", told)
    return float(told.get("rope_theta") or config.rope_theta)
