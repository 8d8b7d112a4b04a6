"""What the encoders need of `operations`, the layers that the caller gives: `torch.nn`'s, or the host's.

Linear, Embedding, RMSNorm: layers, made and called as torch's are.
weights_on(layer, device):  a context manager, for layers that compute something else with their weights than the
                            host's do: their weight and bias on a device, in their own dtypes, while they are used.
may_stream(module):         tells the host that a module which is not one of its layers gets its weight and bias so.

The last two are only there if the host can keep weights away from the device that computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

NAMES = ("Linear", "Embedding", "RMSNorm", "weights_on", "may_stream")
WeightsOn = Callable[[nn.Module, torch.device], AbstractContextManager[tuple[Tensor, Tensor | None]]]


def changed(operations: Any, **layers: Any) -> SimpleNamespace:
    """`operations` with some of its layers replaced."""
    kept = {name: getattr(operations, name) for name in NAMES if hasattr(operations, name)}
    return SimpleNamespace(**(kept | layers))


def weights_on_of(operations: Any) -> WeightsOn:
    """The caller's `weights_on`, or one for layers whose weights are where they are used."""
    return getattr(operations, "weights_on", in_place)


@contextmanager
def in_place(layer: Any, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    """A layer's weight and bias, which are on the device already."""
    yield layer.weight, layer.bias


def stream(module: nn.Module, operations: Any) -> None:
    """Brings a module's own parameters to the device of its input while it runs, if the host may keep them elsewhere.

    For modules that are none of the host's layers, such as transformers' norms: the host cannot bring their weights,
    and on a card that is nearly full it leaves them in RAM.
    """
    if hasattr(operations, "may_stream"):
        if getattr(module, "weight", None) is not None:
            module.register_parameter("bias", getattr(module, "bias", None))
            operations.may_stream(module)
        bring = Bring(operations.weights_on)
        module.register_forward_pre_hook(bring.before, with_kwargs=True)
        module.register_forward_hook(bring.after, always_call=True)


class Bring:
    """The hooks around a module's forward. They do not refer to the module, which would keep it in memory."""

    def __init__(self, weights_on: WeightsOn):
        self.weights_on = weights_on
        self.until_after = ExitStack()

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        device = next(x.device for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        own = dict(module.named_parameters(recurse=False))
        if all(parameter.device == device for parameter in own.values()):
            return
        moved = {
            name: parameter.to(device) for name, parameter in own.items() if name not in ("weight", "bias")
        }
        if "weight" in own:
            weights = self.until_after.enter_context(self.weights_on(module, device))
            moved |= {
                name: weight for name, weight in zip(("weight", "bias"), weights, strict=True) if name in own
            }
        self.until_after.callback(module._parameters.update, own)
        module._parameters.update(moved)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.until_after.close()
