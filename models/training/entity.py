"""The entity-guided loss: an attribute looks where its entity looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import Batch, Pair

# Inside the block, the layers that a UNet computes put their attention to words into the list: [b, n, words], given
# the share of each of the context's tokens in each word, [b, tokens, words].
Watch = Callable[[Tensor], AbstractContextManager[list[Tensor]]]


@dataclass(frozen=True)
class EntityGuided:
    """An objective, plus weight · mean over layers and pairs of ½ ‖m(attribute) - m(entity)‖₁.

    m(word) is the UNet's cross-attention to the word's tokens in both halves, the mean over its heads and over the
    word's tokens, scaled to a sum of 1 over the picture. The loss is therefore from 0, where both words look at the
    same places, to 1, and does not depend on the picture's size. LLM4GEN has this loss in its AAAI version (arXiv
    2407.00737v2, section 3.3), which states neither its norm nor its weight; both are ours.

    objective: computes one prediction for a batch.
    watch:     the UNet's attention, see `Watch`.
    """

    objective: Callable[[Batch], Tensor]
    watch: Watch
    weight: float

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of each example, [b]."""
        shares, counts = shares_of(batch.pairs, batch.tokens, batch.latents.device)
        with self.watch(shares) as maps:
            losses = self.objective(batch)
        if not counts.any():
            return losses
        apart = torch.stack([distances(found) for found in maps]).mean(0)
        return losses + self.weight * apart.sum(1) / counts.clamp(min=1)


def distances(maps: Tensor) -> Tensor:
    """Attention to words [b, n, 2p], attribute and entity in turns → the distance of each pair, [b, p].

    Pairs that pad an example look nowhere, and have no distance.
    """
    shares = maps / maps.sum(1, keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    return (shares[..., 0::2] - shares[..., 1::2]).abs().sum(1) / 2


def shares_of(pairs: Sequence[Sequence[Pair]], tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """pairs: of each example → shares [b, tokens, 2p] that select each word's tokens, and the number of pairs [b]."""
    most = max(map(len, pairs), default=0)
    shares = torch.zeros(len(pairs), tokens, 2 * most)
    for example, found in enumerate(pairs):
        for place, pair in enumerate(found):
            for side, word in enumerate(pair):
                shares[example, list(word), 2 * place + side] = 1 / len(word)
    return shares.to(device), torch.tensor([len(found) for found in pairs], device=device)


def attention_to(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """query [b, n, c], key [b, tokens, c] → the weights of the attention [b, heads, n, tokens], in fp32."""
    query, key = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query.float(), key.float()))
    return (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
