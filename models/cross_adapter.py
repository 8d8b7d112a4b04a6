"""The Cross-Adapter Module (LLM4GEN, arXiv 2407.00737, section 3.2).

Each LLM token looks at all CLIP tokens and is brought into the UNet's context space. LLM tokens are queries
only, so each is fused on its own; the CLIP tokens themselves pass through unchanged, outside this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class CrossAdapterConfig:
    """clip_dim: width of the UNet's context (768 for SD1.5). llm_dim: width of the LLM's states (2048 for
    RankGen-T5-XL). mlp_dim: inner width of the feed-forward (3072). heads: attention heads (8)."""

    clip_dim: int
    llm_dim: int
    mlp_dim: int
    heads: int


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class CrossAdapter(nn.Module):
    """LLM states, seen against CLIP states, as extra context tokens for the UNet.

    The published names are crossed: the checkpoint's `kv_norm` normalises the queries (LLM) and its `q_norm`
    the keys and values (CLIP); `checkpoint.py` translates them to the names here.
    """

    def __init__(self, config: CrossAdapterConfig, *, operations=nn, device=None, dtype=None):
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

        The published module appends these to the raw CLIP tokens; that is left to the caller.
        """
        llm = self.llm_proj(llm)  # b l d -> b l c
        llm = llm + self.attend(self.llm_norm(llm), self.clip_norm(clip))
        return llm + self.mlp(self.mlp_norm(llm))

    def attend(self, llm: Tensor, clip: Tensor) -> Tensor:
        """Attention of each LLM token over all CLIP tokens, no mask: [b, l, c], [b, n, c] → [b, l, c]."""
        seen = scaled_dot_product_attention(*self.asked(llm, clip), self.split(self.value(clip)))
        return self.out(rearrange(seen, "b h n d -> b n (h d)"))

    def attention(self, clip: Tensor, llm: Tensor) -> Tensor:
        """How much of each CLIP token each LLM token sees: `forward`'s inputs → [b, heads, l, n], fp32; a row
        adds up to 1."""
        query, key = self.asked(self.llm_norm(self.llm_proj(llm)), self.clip_norm(clip))
        each = torch.eye(clip.shape[1], device=key.device)  # as values, the CLIP tokens themselves
        return scaled_dot_product_attention(query.float(), key.float(), each.expand(*key.shape[:2], -1, -1))

    def asked(self, llm: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [b, heads, l, d] and keys [b, heads, n, d] of the normalised states."""
        return self.split(self.query(llm)), self.split(self.key(clip))

    def split(self, states: Tensor) -> Tensor:
        return rearrange(states, "b n (h d) -> b h n d", h=self.config.heads)
