"""Decoder-only LLMs as encoders: token ids → hidden states of one layer.

The modules are transformers' own (Llama, Mistral, Qwen, Gemma, Phi, SmolLM and others), with two changes. Linear
layers and embeddings are built from the caller's `operations`, so that ComfyUI can move and stream their weights.
Layers above the wanted one are not built. Products with the weights may be computed in 16 bits; norms, attention and
the residual stream are fp32, as in `t5.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import MODEL_MAPPING, PretrainedConfig

from ..errors import UnknownCheckpoint, words_of
from .encoder import PromptEncoder
from .linear import prepare, project
from .operations import changed, stream
from .rows import Rows, all_rows, pad_together, real_rows


@dataclass(frozen=True)
class DecoderConfig:
    """hf_config: transformers' config of the model, read without running code from the model's folder."""

    hf_config: PretrainedConfig

    @property
    def width(self) -> int:
        return self.hf_config.hidden_size

    @property
    def layers(self) -> int:
        return self.hf_config.num_hidden_layers

    @property
    def vocabulary(self) -> int:
        return self.hf_config.vocab_size

    @property
    def mlp_dim(self) -> int | None:
        """Inner width of the feed-forward; None where the family's config has another name for it."""
        found = getattr(self.hf_config, "intermediate_size", None)
        return found if type(found) is int else None

    @property
    def family(self) -> str:
        """transformers' name of the architecture, such as `llama`."""
        return self.hf_config.model_type

    def rows(self, real: int, length: int, padding: str) -> Rows:
        """The rows to compute. See `T5Config.rows`; with rotary positions all padded rows differ."""
        return real_rows(real) if padding == "drop" else all_rows(real, length)


class ParametersOnMeta(TorchFunctionMode):
    """Builds modules with their weights on the meta device and their buffers on the CPU.

    Buffers are tables such as those of the rotary positions. No file holds them, so they must be computed. Drawing
    random weights, which the file's replace, would take most of the time, on the meta device too.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is nn.init.normal_:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs | {"device": "meta"} if func is torch.empty else kwargs))


class Decoder(PromptEncoder):
    """The first `depth` layers of a decoder-only LLM.

    depth: number of layers to build; None: all. Only the last layer is followed by the final norm.

    transformers' model refuses the attribute `device` that ComfyUI's patcher sets, so it is kept in this module.
    Raises: UnknownCheckpoint for a family that cannot be cut at a layer.
    """

    def __init__(self, config: DecoderConfig, *, depth: int | None = None, operations: Any = nn):
        super().__init__()
        depth = config.layers if depth is None else depth
        assert 0 <= depth <= config.layers
        self.config = config
        self.model = build_model(config, depth)
        self.linear_layers = replace_layers(self.model, own_layers(operations))
        parent, layers = find_layers(self.model, depth)
        self.layers = list(layers)  # a plain list, so that the parameters keep one name each
        if depth < config.layers:
            remove_final_norm(parent, layers, config.family)

    def batch(
        self,
        ids: Sequence[Tensor],
        rows: Sequence[Rows],
        *,
        compute_dtype: torch.dtype = torch.float32,
        on_layer: Callable[[], None] = lambda: None,
    ) -> list[Tensor]:
        """Several prompts at once, padded at their ends: what `forward` gives for each.

        The mask hides the padding, and positions are counted from the start, so it changes no state of a token.
        """
        for linear in self.linear_layers:
            linear.compute_dtype = compute_dtype
        padded, is_token = pad_together(ids, rows)
        # Registered for this call alone: a hook that stays would keep its caller's objects alive.
        hooks = [layer.register_forward_hook(lambda *_: on_layer()) for layer in self.layers]
        try:
            output = self.model(input_ids=padded, attention_mask=is_token.long(), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        states = output.last_hidden_state
        return [own[: len(plan.positions)].float() for own, plan in zip(states, rows, strict=True)]

    @property
    def embedding_name(self) -> str:
        """The name of the parameter that is the token embedding."""
        weight = self.model.get_input_embeddings().weight
        return next(name for name, parameter in self.named_parameters() if parameter is weight)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights in memory; with fp8 weights, the wider dtype of the token embedding."""
        return self.model.get_input_embeddings().weight.dtype


def build_model(config: DecoderConfig, depth: int) -> Any:
    """transformers' model with only `depth` layers, its weights on the meta device. Raises: UnknownCheckpoint."""
    hf_config = copy.deepcopy(config.hf_config)
    try:
        hf_config.num_hidden_layers = depth
        if getattr(hf_config, "layer_types", None):
            hf_config.layer_types = hf_config.layer_types[:depth]
        with ParametersOnMeta():
            return MODEL_MAPPING[type(hf_config)](hf_config)
    except Exception as error:  # a family may share states between layers, or demand certain layers
        raise UnknownCheckpoint(
            f"The installed transformers cannot build {config.family} with {depth} of its {config.layers} layers "
            f"({words_of(error)}). Use an adapter for another layer or another LLM."
        ) from error


def own_layers(operations: Any) -> SimpleNamespace:
    """`operations` whose Linear computes its product in `compute_dtype`, and whose Embedding returns fp32."""

    class Linear(operations.Linear):
        compute_dtype = torch.float32

        def forward(self, x: Tensor) -> Tensor:
            return project(prepare(x, self.compute_dtype), self, super().forward)

    class Embedding(operations.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            states = super().forward(ids)
            scale = getattr(self, "embed_scale", None)
            if scale is not None:  # Gemma's, which transformers rounds to the dtype of the weights
                states = states * scale.to(states)
            return states.float()

    return changed(operations, Linear=Linear, Embedding=Embedding)


def replace_layers(model: nn.Module, layers: SimpleNamespace) -> list[Any]:
    """Replaces Linear and Embedding modules, under the same names. Returns the new Linear modules.

    Modules that compute something else, such as norms and OPT's embedding of positions, stay as they are, but their
    parameters can be streamed.
    """
    linear_layers = []
    for name, module in list(model.named_modules()):
        parent, _, child = name.rpartition(".")
        replacement = None
        if type(module) is nn.Linear:
            has_bias = module.bias is not None
            replacement = layers.Linear(module.in_features, module.out_features, bias=has_bias, device="meta")
            linear_layers.append(replacement)
        elif type(module) is nn.Embedding or (
            isinstance(module, nn.Embedding) and hasattr(module, "embed_scale")
        ):
            replacement = layers.Embedding(
                module.num_embeddings, module.embedding_dim, module.padding_idx, device="meta"
            )
            if hasattr(module, "embed_scale"):
                scale = torch.as_tensor(module.embed_scale)
                replacement.register_buffer("embed_scale", scale, persistent=False)
        if replacement is not None:
            setattr(model.get_submodule(parent), child, replacement)
        elif any(True for _ in module.parameters(recurse=False)):
            stream(module, layers)
    return linear_layers


def find_layers(model: nn.Module, depth: int) -> tuple[nn.Module, nn.ModuleList]:
    """The list of the model's layers, and the module that holds it. Raises: UnknownCheckpoint if it has none."""
    for name, module in model.named_modules():  # an outer list comes before the lists inside its items
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return model.get_submodule(name.rpartition(".")[0]), module
    raise UnknownCheckpoint(
        f"transformers' {type(model).__name__} has no list of {depth} layers to choose one from. Use another LLM."
    )


def remove_final_norm(parent: nn.Module, layers: nn.ModuleList, family: str) -> None:
    """Replaces the norm that follows the layers by the identity, if the model has one.

    It is the only norm beside the list of layers, or the only one that the model registers after the list.
    Raises: UnknownCheckpoint if several norms could be it.
    """
    children = list(parent.named_children())
    index = next(index for index, (_, child) in enumerate(children) if child is layers)
    norms = [name for name, child in children if is_norm(child)]
    after = [name for name, child in children[index + 1 :] if is_norm(child)]
    candidates = after or norms
    if len(candidates) > 1:
        raise UnknownCheckpoint(
            f"{family} has {len(candidates)} norms beside its layers ({', '.join(candidates)}), and which of them "
            "follows the last layer is not known. Use an adapter for the LLM's last layer, or another LLM."
        )
    for name in candidates:
        setattr(parent, name, nn.Identity())


def is_norm(module: nn.Module) -> bool:
    """Whether all of a module's parameters are vectors. A norm without any, as OLMo's, is known by its class's name."""
    parameters = list(module.parameters())
    return all(parameter.ndim == 1 for parameter in parameters) and (
        bool(parameters) or type(module).__name__.endswith("Norm")
    )
