"""Makes small random models, and writes them as `.gguf` files."""

import gguf
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

import tiny
from bench.gguf_pack import Kind, pack
from bench.gguf_write import arch_of, decoder_header, decoder_tensors, t5_tensors, write_gguf

FAMILIES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 128},
    "Gemma2": {"head_dim": 256, "sliding_window": 3},
    "Gemma3Text": {"head_dim": 256, "sliding_window": 3, "num_hidden_layers": 7},
    "Phi3": {"vocab_size": 32064},
}


def make(family, **changes):
    """A small random decoder of transformers. changes: of its family's config."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "pad_token_id": 0,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**(sizes | FAMILIES[family] | changes))
    model = transformers.AutoModel.from_config(config).eval().requires_grad_(False)
    # With norms of one and biases of zero, tests would not notice that they are skipped.
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            torch.nn.init.uniform_(weight, *((0.5, 1.5) if "norm" in name else (-0.1, 0.1)))
    return model


def t5(**changes):
    """A small random T5 encoder whose rows divide into the blocks of every encoding."""
    return tiny.t5_encoder(
        **({"d_model": 256, "d_ff": 512, "d_kv": 64, "vocab_size": 64, "num_layers": 1} | changes)
    )


def write_t5(path, oracle, kind=Kind.F32, arch="t5encoder", without="nothing", **header):
    """Writes transformers' T5 encoder. without: tensors with this text in their names are left out."""
    tensors = t5_tensors(oracle.state_dict().items(), oracle.config.num_layers)
    written = ((name, tensor) for name, tensor in tensors if without not in name)
    write_gguf(path, arch, written, kind, {"attention.layer_norm_epsilon": 1e-6} | header)


def write_decoder(path, oracle, kind=Kind.F32, extra=None, **header):
    """Writes a decoder of transformers, without its head. extra: more tensors, by their names in the file."""
    tensors = [*(extra or {}).items(), *decoder_tensors(oracle.state_dict().items(), oracle.config)]
    write_gguf(path, arch_of(oracle.config), tensors, kind, decoder_header(oracle.config) | header)


def own_tokenizer(*words):
    """The header entries of a tokenizer whose tokens are all bytes, all beginnings of the words, and the end token."""
    starts = [word[:length] for word in words for length in range(2, len(word) + 1)]
    tokens = [*sorted(ByteLevel.alphabet()), *starts, "<|endoftext|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 1) + [3],  # 3: the end token is a control token
        "tokenizer.ggml.merges": [f"{start[:-1]} {start[-1]}" for start in starts],
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }


def expanded(model, kind):
    """Replaces a model's matrices by their values after quantising and dequantising. Returns the model."""
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "relative_attention_bias" not in name:
            weight.data = torch.from_numpy(gguf.dequantize(pack(weight.data.numpy(), kind), kind).copy())
    return model
