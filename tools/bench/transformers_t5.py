"""transformers' T5 encoder, of tensors under RankGen's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import T5Config, T5EncoderModel


def config_of(shapes: Mapping[str, Sequence[int]]) -> T5Config:
    """shapes: by transformers' names."""
    vocabulary, width = shapes["shared.weight"]
    return T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=64,
        d_ff=shapes["encoder.block.0.layer.1.DenseReluDense.wo.weight"][1],
        num_heads=width // 64,
        num_layers=sum(name.endswith("SelfAttention.q.weight") for name in shapes),
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )


def encoder_of(loaded: Mapping[str, Tensor]) -> T5EncoderModel:
    """The tensors themselves become its weights."""
    tensors = {name.removeprefix("t5_encoder."): tensor for name, tensor in loaded.items()}
    del tensors["projection.weight"]
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    config = config_of({name: tensor.shape for name, tensor in tensors.items()})
    with torch.device("meta"):
        model = T5EncoderModel(config)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval()
