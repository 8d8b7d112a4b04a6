"""An adapter to start from: a new one, or a trained one, refitted to an LLM of another width."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..cross_adapter import CrossAdapter, CrossAdapterConfig
from ..errors import WrongTraining
from .drawing import generator


def new_adapter(config: CrossAdapterConfig, seed: int) -> CrossAdapter:
    """A new adapter in fp32 of plain layers: each matrix keeps the scale of its input, and each norm is neutral.

    Raises: WrongTraining if the heads do not divide the width.
    """
    if config.clip_dim % config.heads:
        raise WrongTraining(
            f"{config.heads} attention heads do not divide the adapter's width of {config.clip_dim}. Choose a number "
            "of heads that does, such as 8."
        )
    adapter = CrossAdapter(config, dtype=torch.float32)
    for name, module in adapter.named_modules():
        if isinstance(module, nn.Linear):
            draw_linear(module, name, seed)
    return adapter


def adapter_from(trained: CrossAdapter, llm_dim: int, seed: int) -> CrossAdapter:
    """A copy of a trained adapter, for training. If its LLM had another width, `llm_proj` is drawn anew."""
    adapter = new_adapter(replace(trained.config, llm_dim=llm_dim), seed)
    weights = {name: weight.detach().clone() for name, weight in trained.state_dict().items()}
    if trained.config.llm_dim != llm_dim:
        weights = {name: weight for name, weight in weights.items() if not name.startswith("llm_proj.")}
    missing, unexpected = adapter.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("llm_proj.") for name in missing)
    return adapter


def draw_linear(layer: nn.Linear, name: str, seed: int) -> None:
    """Each layer has numbers of its own, so that they do not change when another layer's size does."""
    with torch.no_grad():
        layer.weight.normal_(std=layer.in_features**-0.5, generator=generator(seed, name))
        layer.bias.zero_()
