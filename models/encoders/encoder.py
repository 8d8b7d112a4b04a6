"""How every encoder of prompts is called: with one prompt, or with several at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .rows import Rows


class PromptEncoder(nn.Module):
    """Token ids → hidden states, over a plan of rows (`rows.py`)."""

    def forward(self, ids: Tensor, rows: Rows, **how: Any) -> Tensor:
        """Token ids [n] → hidden states [r, width] in fp32, one for each row of the plan. how: see `batch`.

        `rows.expand` copies the result to every position.
        """
        (states,) = self.batch([ids], [rows], **how)
        return states

    def batch(
        self,
        ids: Sequence[Tensor],
        rows: Sequence[Rows],
        *,
        compute_dtype: torch.dtype = torch.float32,
        on_layer: Callable[[], None] = lambda: None,
    ) -> list[Tensor]:
        """Several prompts at once: what `forward` gives for each.

        compute_dtype: of the products with the weights: fp32, bf16 or fp16.
        on_layer:      called after each layer.
        """
        raise NotImplementedError
