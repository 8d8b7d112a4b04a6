"""The T5 v1.1 encoder (RankGen, T5 v1.1, flan-T5), computing only the rows that differ.

Why our own: LLM4GEN pads every prompt to 256 tokens and uses all 256 states, and nearly all the work goes
into the padding. Padded positions start from one embedding, are masked as keys, and differ only by their
relative-position bias towards the real tokens; those with equal bias stay equal through every layer. So one
row is computed for each distinct one and copied out at the end: exact, and several times faster
(`rows.py` finds the rows).

Norms, softmax and the residual stream are fp32 whatever the weights are. T5 leaves fp16's range and loses
accuracy in a 16-bit stream, which saves no time: the products with the weights are where it goes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from .products import project
from .rows import Rows, distinct_rows, real_rows, relative_position_bucket


@dataclass(frozen=True)
class T5Config:
    """Sizes, all measured from tensor shapes, and two numbers that shapes do not tell: `max_distance`
    (positions, 128) and `norm_eps` (1e-6) are the same in every published T5 v1.1."""

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
        """The rows that must be computed for a prompt of `real` tokens, padded to `length` or not."""
        if padding == "drop":
            return real_rows(real)
        return distinct_rows(real, length, self.buckets, self.max_distance)


class Attention(nn.Module):
    """Self-attention as T5 has it: no scaling by the head width, positions as a bias to the scores."""

    def __init__(self, config: T5Config, *, linear):
        super().__init__()
        inner = config.heads * config.head_dim
        self.heads = config.heads
        self.query = linear(config.width, inner)
        self.key = linear(config.width, inner)
        self.value = linear(config.width, inner)
        self.out = linear(inner, config.width)

    def forward(self, x: Tensor, real: int, bias: Tensor, products: torch.dtype) -> Tensor:
        """x [r, w], the first `real` rows being tokens and the only keys; bias [h, r, real] → [r, w]."""
        split = partial(rearrange, pattern="r (h d) -> 1 h r d", h=self.heads)
        query = project(x, products, self.query)
        key, value = project(x[:real], products, self.key), project(x[:real], products, self.value)
        seen = scaled_dot_product_attention(
            split(query), split(key), split(value), attn_mask=bias.unsqueeze(0), scale=1.0
        )
        return project(rearrange(seen, "1 h r d -> r (h d)"), products, self.out)


class FeedForward(nn.Module):
    """Gated GELU (tanh form): down(gelu(gate x) · up x)."""

    def __init__(self, config: T5Config, *, linear):
        super().__init__()
        self.gate = linear(config.width, config.mlp_dim)
        self.up = linear(config.width, config.mlp_dim)
        self.down = linear(config.mlp_dim, config.width)

    def forward(self, x: Tensor, products: torch.dtype) -> Tensor:
        gate, up = project(x, products, self.gate), project(x, products, self.up)
        return project(gelu(gate, approximate="tanh").mul_(up), products, self.down)


class Block(nn.Module):
    """Attention, then feed-forward, each on the normalised stream and added to it: [r, w] → [r, w]."""

    def __init__(self, config: T5Config, *, linear, norm):
        super().__init__()
        self.attention_norm = norm()
        self.attention = Attention(config, linear=linear)
        self.mlp_norm = norm()
        self.mlp = FeedForward(config, linear=linear)

    def forward(self, x: Tensor, real: int, bias: Tensor, products: torch.dtype) -> Tensor:
        x = x + self.attention(self.attention_norm(x), real, bias, products)
        return x + self.mlp(self.mlp_norm(x), products)


class T5Encoder(nn.Module):
    """T5 v1.1's encoder over a plan of rows (`rows.py`), one prompt at a time.

    depth: blocks to build, from the first; None: all. The final norm follows on the last block alone.
    Linear layers and the embedding take `dtype`; norms and the position bias are kept in fp32.
    """

    words = "embedding.weight"  # their embedding, among the weights

    def __init__(self, config: T5Config, *, depth: int | None = None, operations=nn, device=None, dtype=None):
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

    def forward(
        self,
        ids: Tensor,
        rows: Rows,
        *,
        products: torch.dtype = torch.float32,
        on_layer: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Token ids [n] → hidden states [r, width] in fp32, one for each row of the plan.

        products: dtype of the products with the weights (fp32, bf16 or fp16).
        on_layer: called after each block.

        `rows.spread` brings the result to every position.
        """
        assert ids.shape == (rows.real,)
        x = self.embedding(rows.fill(ids)).float()  # r -> r w
        bias = self.bias(rows, x.device)
        for block in self.blocks:
            x = block(x, rows.real, bias, products)
            on_layer()
        return self.final_norm(x)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights in memory, before any rounding to 8 bits."""
        return self.embedding.weight.dtype

    def bias(self, rows: Rows, device: torch.device) -> Tensor:
        """Relative-position bias of each row towards the real tokens: [heads, r, real]."""
        distance = torch.arange(rows.real) - rows.positions[:, None]
        bucket = relative_position_bucket(distance, self.config.buckets, self.config.max_distance)
        return rearrange(self.position_bias(bucket.to(device)), "r n h -> h r n").float().contiguous()
