"""The encoder of T5 v1.1 (RankGen, T5 v1.1, flan-T5), computing only the rows that differ.

LLM4GEN pads every prompt to 256 tokens and uses all 256 hidden states, so an ordinary T5 spends nearly all of its
time on padding. Padded positions start from one embedding and are masked as keys; they differ only by their
relative-position bias towards the real tokens, and those with equal bias stay equal through every layer. This
encoder computes one row for each distinct one (`rows.py`) and copies it out at the end. The result is exact, and
several times faster.

Norms, softmax and the residual stream are fp32, whatever dtype the weights have: T5's states leave the range of
fp16, and a 16-bit residual stream loses accuracy without saving time, since the products with the weights take it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, scaled_dot_product_attention

from .encoder import PromptEncoder
from .linear import prepare, project
from .rows import Rows, distinct_rows, pad_together, real_rows, relative_position_bucket


@dataclass(frozen=True)
class T5Config:
    """The sizes of a T5 encoder, measured from the shapes of its tensors.

    Shapes do not tell `max_distance` (in positions) and `norm_eps`; every published T5 v1.1 has these values.
    """

    vocabulary: int
    width: int
    mlp_dim: int
    heads: int
    head_dim: int
    layers: int
    buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6

    def rows(self, real: int, length: int, padding: str) -> Rows:
        """The rows to compute for a prompt of `real` tokens in a sequence of `length`.

        padding: the recipe's, `keep` or `drop`.
        """
        if padding == "drop":
            return real_rows(real)
        return distinct_rows(real, length, self.buckets, self.max_distance)


class Attention(nn.Module):
    """T5's self-attention: scores are not scaled by the head width, and positions enter as a bias to the scores."""

    def __init__(self, config: T5Config, *, linear: Callable[..., nn.Module]):
        super().__init__()
        inner = config.heads * config.head_dim
        self.heads = config.heads
        self.query = linear(config.width, inner)
        self.key = linear(config.width, inner)
        self.value = linear(config.width, inner)
        self.out = linear(inner, config.width)

    def forward(self, x: Tensor, bias: Tensor, compute_dtype: torch.dtype) -> Tensor:
        """x [b, r, w], whose first n rows are the keys; bias [b, h, r, n] → [b, r, w]."""
        split = partial(rearrange, pattern="b r (h d) -> b h r d", h=self.heads)
        rows = prepare(x, compute_dtype)
        keys = rows.first(bias.shape[-1])
        query, key, value = project(rows, self.query), project(keys, self.key), project(keys, self.value)
        mixed = scaled_dot_product_attention(
            split(query), split(key), split(value), attn_mask=bias, scale=1.0
        )
        return project(prepare(rearrange(mixed, "b h r d -> b r (h d)"), compute_dtype), self.out)


class FeedForward(nn.Module):
    """Gated GELU in its tanh form: down(gelu(gate x) · up x)."""

    def __init__(self, config: T5Config, *, linear: Callable[..., nn.Module]):
        super().__init__()
        self.gate = linear(config.width, config.mlp_dim)
        self.up = linear(config.width, config.mlp_dim)
        self.down = linear(config.mlp_dim, config.width)

    def forward(self, x: Tensor, compute_dtype: torch.dtype) -> Tensor:
        rows = prepare(x, compute_dtype)
        gate, up = project(rows, self.gate), project(rows, self.up)
        return project(prepare(gelu(gate, approximate="tanh").mul_(up), compute_dtype), self.down)


class Block(nn.Module):
    """Adds attention, then feed-forward, to the residual stream, each computed on the normalised stream."""

    def __init__(self, config: T5Config, *, linear: Callable[..., nn.Module], norm: Callable[[], nn.Module]):
        super().__init__()
        self.attention_norm = norm()
        self.attention = Attention(config, linear=linear)
        self.mlp_norm = norm()
        self.mlp = FeedForward(config, linear=linear)

    def forward(self, x: Tensor, bias: Tensor, compute_dtype: torch.dtype) -> Tensor:
        """x [b, r, w] → [b, r, w]. See `Attention`."""
        x = x + self.attention(self.attention_norm(x), bias, compute_dtype)
        return x + self.mlp(self.mlp_norm(x), compute_dtype)


class T5Encoder(PromptEncoder):
    """The encoder of T5 v1.1 over a plan of rows (`rows.py`).

    depth: number of blocks to build, from the first; None: all. Only the last block is followed by the final norm.
    Linear layers and the token embedding take `dtype`; norms and the position bias are always fp32.
    """

    embedding_name = "embedding.weight"  # the parameter that is the token embedding

    def __init__(
        self,
        config: T5Config,
        *,
        depth: int | None = None,
        operations: Any = nn,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        depth = config.layers if depth is None else depth
        assert 0 <= depth <= config.layers
        self.config = config
        linear = partial(operations.Linear, bias=False, device=device, dtype=dtype)
        norm = partial(
            operations.RMSNorm, config.width, eps=config.norm_eps, device=device, dtype=torch.float32
        )
        self.embedding = operations.Embedding(config.vocabulary, config.width, device=device, dtype=dtype)
        self.position_bias = operations.Embedding(
            config.buckets, config.heads, device=device, dtype=torch.float32
        )
        self.blocks = nn.ModuleList(Block(config, linear=linear, norm=norm) for _ in range(depth))
        self.final_norm = norm() if depth == config.layers else nn.Identity()

    def batch(
        self,
        ids: Sequence[Tensor],
        rows: Sequence[Rows],
        *,
        compute_dtype: torch.dtype = torch.float32,
        on_layer: Callable[[], None] = lambda: None,
    ) -> list[Tensor]:
        """Several prompts at once: what `forward` gives for each. Rows that a shorter one lacks are keys of none."""
        padded, _ = pad_together(ids, rows)
        x = self.embedding(padded).float()  # b r -> b r w
        bias = self.bias(rows, padded.shape[1], x.device)
        for block in self.blocks:
            x = block(x, bias, compute_dtype)
            on_layer()
        states = self.final_norm(x)
        return [own[: len(plan.positions)] for own, plan in zip(states, rows, strict=True)]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights in memory; with fp8 weights, the wider dtype of the token embedding."""
        return self.embedding.weight.dtype

    def bias(self, rows: Sequence[Rows], most: int, device: torch.device) -> Tensor:
        """The relative-position bias of each row towards the real tokens: [b, heads, r, n].

        most: r, the largest number of rows. n: the largest number of real tokens.
        """
        positions = torch.stack([pad(plan.positions, (0, most - len(plan.positions))) for plan in rows])
        real = torch.tensor([plan.real for plan in rows])
        keys = torch.arange(int(real.max()))
        distance = keys - positions[..., None]  # b r n
        bucket = relative_position_bucket(distance, self.config.buckets, self.config.max_distance)
        bias = rearrange(self.position_bias(bucket.to(device)), "b r n h -> b h r n").float()
        if int(real.min()) < len(keys):
            absent = (keys >= real[:, None]).to(device)
            bias = bias.masked_fill(absent[:, None, None], -torch.inf)
        return bias.contiguous()
