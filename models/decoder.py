"""Any LLM that transformers knows, as a reader: ids in, hidden states of one layer out.

Llama, Mistral, Qwen, Gemma, Phi, SmolLM and their like are transformers' own modules. Two things are changed:
linear layers and the embedding become those that the host can stream, and the run ends at the layer that is
asked for. Products with the weights may be 16 bits wide; norms, attention and the residual stream are fp32, as
in `t5.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import MODEL_MAPPING, PretrainedConfig

from .products import project
from .rows import Rows, all_rows, real_rows


@dataclass(frozen=True)
class DecoderConfig:
    """transformers: its own config of the model, without remote code."""

    transformers: PretrainedConfig

    @property
    def width(self) -> int:
        return self.transformers.hidden_size

    @property
    def layers(self) -> int:
        return self.transformers.num_hidden_layers

    @property
    def vocabulary(self) -> int:
        return self.transformers.vocab_size

    def rows(self, real: int, length: int, padding: str) -> Rows:
        """Rotary positions set every padded row apart: all are computed."""
        return real_rows(real) if padding == "drop" else all_rows(real, length)


class ParametersOnMeta(TorchFunctionMode):
    """Modules built under it have their weights on the meta device, and their tables (of positions and the like,
    which no file holds) where they belong."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        return func(*args, **(kwargs | {"device": "meta"} if func is torch.empty else kwargs))


class Reached(Exception):
    """The layer that was asked for; `states` is what would go into the next."""

    def __init__(self, states: Tensor):
        super().__init__()
        self.states = states


class Decoder(nn.Module):
    """The first `depth` layers of an LLM, one prompt at a time; the last norm follows on the last layer alone.

    transformers refuses that the host writes to its modules: theirs is kept inside this plain one.
    """

    def __init__(self, config: DecoderConfig, *, depth: int | None = None, operations=nn):
        super().__init__()
        self.config = config
        with ParametersOnMeta():
            self.model = MODEL_MAPPING[type(config.transformers)](config.transformers)
        self.products = torch.float32
        self.on_layer: Callable[[], None] = lambda: None
        self.end_at(config.layers if depth is None else depth)
        self.use_layers_of(operations)

    def end_at(self, depth: int) -> None:
        layers = next(
            module
            for module in self.model.modules()
            if isinstance(module, nn.ModuleList) and len(module) == self.config.layers
        )
        for layer in layers[:depth]:
            layer.register_forward_hook(lambda *_: self.on_layer())
        for layer in layers[depth:]:  # emptied, but there: models ask layers what kind they are
            layer._modules.clear()
            layer._parameters.clear()
            layer.register_forward_pre_hook(reached, with_kwargs=True)

    def use_layers_of(self, operations) -> None:
        decoder = self

        class Linear(operations.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return project(x, decoder.products, self, super().forward)

        for module in self.model.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear
            elif isinstance(module, nn.Embedding):  # Gemma 3 has one of its own kind, which scales
                own = type(module)
                module.__class__ = (
                    operations.Embedding
                    if own is nn.Embedding
                    else type(own.__name__, (own, operations.Embedding), {})
                )
                module.bias = None  # which the host's embedding looks for
        self.model.get_input_embeddings().register_forward_hook(lambda _, __, states: states.float())

    def forward(
        self,
        ids: Tensor,
        rows: Rows,
        *,
        products: torch.dtype = torch.float32,
        on_layer: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Token ids [n] → hidden states [r, width] in fp32. See T5Encoder.forward."""
        self.products, self.on_layer = products, on_layer
        filled = rows.fill(ids)[None]
        mask = (torch.arange(filled.shape[1], device=ids.device) < rows.real).long()[None]
        try:
            states = self.model(input_ids=filled, attention_mask=mask, use_cache=False).last_hidden_state
        except Reached as end:
            states = end.states
        return states[0].float()

    @property
    def words(self) -> str:
        """The name of the words' embedding among the weights."""
        weight = self.model.get_input_embeddings().weight
        return next(name for name, tensor in self.named_parameters() if tensor is weight)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights in memory, before any rounding to 8 bits."""
        return self.model.get_input_embeddings().weight.dtype


def reached(_: nn.Module, args: tuple, kwargs: dict) -> None:
    raise Reached(args[0] if args else kwargs["hidden_states"])
