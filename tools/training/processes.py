"""Several processes that train together, through accelerate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from llm4gen.models.training.ranks import Ranks


def is_launched() -> bool:
    """Whether `accelerate launch`, or another launcher of torch's, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(on_cpu: bool) -> Ranks:
    """Joins the other processes. Call it before ComfyUI is imported, which takes the GPU that is chosen here.

    Raises: ModuleNotFoundError if accelerate is not installed.
    """
    from accelerate import PartialState  # noqa: PLC0415 -- an optional package

    return Accelerated(PartialState(cpu=on_cpu))


class Accelerated:
    """See `models.training.ranks.Ranks`."""

    def __init__(self, state):
        self.number, self.count = state.process_index, state.num_processes

    def add(self, tensors: Sequence[Tensor]) -> None:
        from accelerate.utils import reduce  # noqa: PLC0415

        for tensor in tensors:  # one at a time, because accelerate adds up in a copy
            tensor.copy_(reduce(tensor, "sum"))
