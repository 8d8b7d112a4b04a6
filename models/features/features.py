"""An LLM's hidden states of one prompt, as the adapter gets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..encoders.rows import Rows


@dataclass(frozen=True)
class Features:
    """states [r, width]: fp32, one row for each that differs. rows: which of them stands at which position."""

    states: Tensor
    rows: Rows

    def weighted(self, weights: Sequence[float], empty: Features) -> Features:
        """Applies prompt weights as ComfyUI's emphasis does: scales the difference to the empty prompt's states.

        weights: one for each token. States with weight 1 stay the same to the bit.
        empty:   the features of the empty prompt. Where an adapter drops the padding, it has fewer positions, and its
                 last state stands in for those that it lacks.
        """
        weight = torch.tensor(weights, dtype=self.states.dtype, device=self.states.device)[:, None]
        origin = empty.rows.expand(empty.states)
        origin = origin[torch.arange(len(weights)).clamp(max=len(origin) - 1)]
        tokens, padding = self.states[: len(weights)], self.states[len(weights) :]
        scaled = torch.where(weight == 1, tokens, (tokens - origin) * weight + origin)
        return Features(torch.cat([scaled, padding]), self.rows)

    def moved(self, move: Callable[[Tensor], Tensor]) -> Features:
        """The same features with their states where `move` puts them."""
        return Features(move(self.states), self.rows)
