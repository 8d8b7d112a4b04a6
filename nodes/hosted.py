"""What travels on our wires: an LLM and an adapter, each under the host's memory management."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor

from ..models.cross_adapter import CrossAdapter
from ..models.llm import LLM, Features
from ..models.recipe import Recipe
from . import host

REMEMBERED = 32  # prompts; at most 2 MB each for T5-XL


class HostedLLM(host.Hosted):
    """Remembers the last prompts' states: a new strength, LoRA or clip skip does not run the LLM again."""

    def __init__(self, llm: LLM, dtype: str, device: str):
        super().__init__(llm.encoder, device)
        self.llm = llm
        self.dtype = dtype
        self.read_before: OrderedDict[tuple[tuple[int, ...], Recipe], Features] = OrderedDict()

    def features(self, ids: tuple[int, ...], recipe: Recipe) -> Features:
        """The LLM's states of a tokenized prompt, fp32, where conditioning lies."""
        key = (ids, recipe)
        if key not in self.read_before:
            self.read_before[key] = self.read(ids, recipe)
        self.read_before.move_to_end(key)
        while len(self.read_before) > REMEMBERED:
            self.read_before.popitem(last=False)
        return self.read_before[key]

    def read(self, ids: tuple[int, ...], recipe: Recipe) -> Features:
        device = self.ready()
        products = host.product_dtype(self.llm.encoder.dtype, device, self.dtype)
        features = self.llm.read(ids, recipe, device=device, products=products, progress=host.progress)
        return Features(host.as_conditioning(features.states), features.rows)


class HostedAdapter(host.Hosted):
    """Knows how its LLM wants to be fed."""

    def __init__(self, adapter: CrossAdapter, recipe: Recipe):
        super().__init__(adapter)
        self.adapter = adapter
        self.recipe = recipe

    def fuse(self, clip: Tensor, features: Features) -> Tensor:
        """CLIP states [b, n, c] and the LLM's → fused LLM tokens [b, l, c] at every position. Rows that are
        equal are fused once."""
        device = self.ready()
        llm = features.states.to(device).expand(len(clip), -1, -1)
        return host.as_conditioning(features.rows.spread(self.adapter(clip.to(device), llm)))
