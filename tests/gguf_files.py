"""Writes models as llama.cpp's converter does: its names, its order of rows, its encodings."""

import gguf
import numpy as np
import tiny
import torch
import transformers

Kind = gguf.GGMLQuantizationType

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
        "rope.freq_base": 1e6 if arch == "gemma3" else 1e4,
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


def write(path, arch, tensors, kind, header):
    """Matrices in an encoding; vectors, and T5's position bias, in fp32, as llama.cpp leaves them."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("Small")
    for name, value in header.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(name if name.startswith("split.") else f"{arch}.{name}", value)
    for name, tensor in tensors.items():
        plain = tensor.ndim == 1 or "rel_b" in name
        chosen = Kind.F32 if plain else kind
        writer.add_tensor(name, pack(tensor.float().contiguous().numpy(), chosen), raw_dtype=chosen)
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


def pack(matrix, kind):
    """[rows, columns] → [rows, bytes]. The library expands the K-quants and does not make them."""
    if kind is Kind.Q8_K:  # which no library expands
        return np.zeros((len(matrix), matrix.shape[1] // 256 * 292), np.uint8)
    if kind not in (Kind.Q4_K, Kind.Q5_K, Kind.Q6_K):
        return gguf.quantize(matrix, kind)
    blocks = matrix.reshape(-1, 256)
    packed = pack_6_bits(blocks) if kind is Kind.Q6_K else pack_4_or_5_bits(blocks, kind is Kind.Q5_K)
    return packed.reshape(len(matrix), -1)


def pack_4_or_5_bits(blocks, five):
    """Eight runs of 32 numbers, q · scale - least; scales and leasts in 6 bits."""
    runs, levels = blocks.reshape(-1, 8, 32), 31 if five else 15
    least = np.maximum(0, -runs.min(axis=2))
    scale = (np.maximum(0, runs.max(axis=2)) + least) / levels
    d, dmin = (np.float16(part.max(axis=1, keepdims=True) / 63) for part in (scale, least))
    s, m = (np.uint8(np.clip(np.rint(a / b), 0, 63)) for a, b in ((scale, d), (least, dmin)))
    step, base = (np.float32(a * b)[..., None] for a, b in ((d, s), (dmin, m)))
    q = np.uint8(np.clip(np.rint((runs + base) / np.maximum(step, 1e-12)), 0, levels))
    sizes = [s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6, s[:, 4:] & 15 | m[:, 4:] << 4]
    pairs = (q & 15).reshape(-1, 4, 2, 32)
    high = [np.bitwise_or.reduce([q[:, run] >> 4 << run for run in range(8)])] if five else []
    low = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    return np.hstack([d.view(np.uint8), dmin.view(np.uint8), *sizes, *high, low])


def pack_6_bits(blocks):
    """Sixteen runs of 16 numbers, (q - 32) · scale; scales in 8 bits."""
    runs = blocks.reshape(-1, 16, 16)
    scale = np.abs(runs).max(axis=2) / 31
    d = np.float16(scale.max(axis=1, keepdims=True) / 127)
    s = np.int8(np.minimum(np.rint(scale / d), 127))
    step = np.maximum(np.float32(d * s)[..., None], 1e-12)
    q = np.uint8(np.clip(np.rint(runs / step), -32, 31) + 32)
    four, two = (q & 15).reshape(-1, 2, 2, 64), (q >> 4).reshape(-1, 2, 4, 32)
    low = (four[:, :, 0] | four[:, :, 1] << 4).reshape(-1, 128)
    high = np.bitwise_or.reduce([two[:, :, run] << 2 * run for run in range(4)]).reshape(-1, 64)
    return np.hstack([low, high, s.view(np.uint8), d.view(np.uint8)])
