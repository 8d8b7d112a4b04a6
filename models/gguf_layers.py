"""Layers whose matrix stays quantised in memory and is expanded when it is used, one layer at a time."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .gguf_file import Quantised


def expanding(operations) -> SimpleNamespace:
    """The given layers, of which Linear and Embedding can also hold a quantised matrix."""

    class Linear(operations.Linear):
        matrix: Quantised | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.matrix is None:
                return super().forward(x)
            bias = None if self.bias is None else self.bias.to(x.device, x.dtype)
            return linear(x, self.matrix.expand(x.dtype).to(x.device), bias)

    class Embedding(operations.Embedding):
        matrix: Quantised | None = None

        def forward(self, ids: Tensor) -> Tensor:
            if self.matrix is None:
                return super().forward(ids)
            found = self.matrix.expand(rows=ids.flatten().cpu().numpy())
            return found.view(*ids.shape, -1).to(ids.device)

    return SimpleNamespace(Linear=Linear, Embedding=Embedding, RMSNorm=operations.RMSNorm)


def hold(layer: nn.Module, matrix: Quantised) -> None:
    """Gives a layer its matrix, which no patcher sees: the layer's weight is left empty, in the dtype that the
    matrix expands to."""
    assert hasattr(layer, "matrix")
    layer.matrix = matrix
    layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)
