"""The Cross-Adapter Module, CAM (LLM4GEN, arXiv 2407.00737, section 3.2).

Each LLM token attends to all CLIP tokens and is brought into the UNet's context space. LLM tokens are queries only,
so each is fused on its own. The CLIP tokens pass through unchanged, outside this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class CrossAdapterConfig:
    """The sizes of a Cross-Adapter.

    clip_dim: width of CLIP's states and of the UNet's context (768 for SD1.5).
    llm_dim:  width of the LLM's hidden states (2048 for RankGen-T5-XL).
    mlp_dim:  inner width of the feed-forward (3072 as published).
    heads:    attention heads (8 as published).
    """

    clip_dim: int
    llm_dim: int
    mlp_dim: int
    heads: int


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class CrossAdapter(nn.Module):
    """Turns LLM states, fused with CLIP states by cross-attention, into extra context tokens for the UNet.

    The published names are crossed: the checkpoint's `kv_norm` normalises the queries (LLM), its `q_norm` the keys and
    values (CLIP). `checkpoints/adapter.py` translates them to the names used here.
    """

    def __init__(
        self,
        config: CrossAdapterConfig,
        *,
        operations: Any = nn,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.config = config
        linear = partial(operations.Linear, device=device, dtype=dtype)
        norm = partial(operations.LayerNorm, config.clip_dim, eps=1e-5, device=device, dtype=dtype)

        self.llm_proj = linear(config.llm_dim, config.clip_dim)
        self.llm_norm = norm()
        self.clip_norm = norm()
        self.query = linear(config.clip_dim, config.clip_dim)
        self.key = linear(config.clip_dim, config.clip_dim)
        self.value = linear(config.clip_dim, config.clip_dim)
        self.out = linear(config.clip_dim, config.clip_dim)
        self.mlp_norm = norm()
        self.mlp = nn.Sequential(
            linear(config.clip_dim, config.mlp_dim), QuickGELU(), linear(config.mlp_dim, config.clip_dim)
        )

    def forward(self, clip: Tensor, llm: Tensor) -> Tensor:
        """clip [b, n, clip_dim] and llm [b, l, llm_dim] → fused LLM tokens [b, l, clip_dim].

        The published module appends these to the CLIP tokens; here the caller does that.
        """
        llm = self.llm_proj(llm)  # b l d -> b l c
        llm = llm + self.attend(self.llm_norm(llm), self.clip_norm(clip))
        return llm + self.mlp(self.mlp_norm(llm))

    def attend(self, llm: Tensor, clip: Tensor) -> Tensor:
        """Cross-attention of each LLM token over all CLIP tokens, without a mask: [b, l, c], [b, n, c] → [b, l, c]."""
        query, key = self.queries_and_keys(llm, clip)
        mixed = scaled_dot_product_attention(query, key, self.split_heads(self.value(clip)))
        return self.out(rearrange(mixed, "b h n d -> b n (h d)"))

    def attention_weights(self, clip: Tensor, llm: Tensor) -> Tensor:
        """The cross-attention weights: `forward`'s inputs → [b, heads, l, n] in fp32. Each row sums to 1."""
        query, key = self.queries_and_keys(self.llm_norm(self.llm_proj(llm)), self.clip_norm(clip))
        # With the identity as values, the result of the attention is its weights.
        identity = torch.eye(clip.shape[1], device=key.device).expand(*key.shape[:2], -1, -1)
        return scaled_dot_product_attention(query.float(), key.float(), identity)

    def queries_and_keys(self, llm: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised states → queries [b, heads, l, d] and keys [b, heads, n, d]."""
        return self.split_heads(self.query(llm)), self.split_heads(self.key(clip))

    def split_heads(self, states: Tensor) -> Tensor:
        """[b, n, heads · d] → [b, heads, n, d]."""
        return rearrange(states, "b n (h d) -> b h n d", h=self.config.heads)
