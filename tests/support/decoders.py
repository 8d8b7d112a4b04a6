"""Makes small random decoder-only LLMs of many families, as transformers saves them."""

import pytest
import torch
import transformers

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": 3},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma": {},
    "Gemma2": {"sliding_window": 3},
    "Gemma3Text": {"sliding_window": 3},
    "Phi": {},
    "Phi3": {},
    "GPTNeoX": {},
    # Their layers have other names. They learn positions, use Conv1D for Linear, or have a norm before the layers.
    "GPT2": {},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "Bloom": {},
}
# Families whose norms have no weights, or whose linear layers are of a class of their own.
PECULIAR = {"Olmo": {}, "Falcon": {"head_dim": None}}


def make(family, folder, **changes):
    """Saves a tiny random model of a family in a folder. Returns transformers' model of it, without its head."""
    if not hasattr(transformers, f"{family}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {family} yet")
    torch.manual_seed(0)
    sizes = SIZES | (FAMILIES | PECULIAR).get(family, {}) | changes
    sizes = {name: size for name, size in sizes.items() if size is not None}
    config = getattr(transformers, f"{family}Config")(**sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():  # norm weights of 1 would hide a missing norm
        if weight.ndim == 1 and ("norm" in name or "ln_" in name):
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    return model.base_model
