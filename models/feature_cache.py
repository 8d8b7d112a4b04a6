"""What LLMs have said of prompts, kept as long as there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from .llm import Features

LIMIT = 32 << 20  # bytes; 16 prompts of 256 distinct rows of T5-XL, or some 40 usual ones


class FeatureCache:
    """The most recently used features, up to `limit` bytes; the oldest go first."""

    def __init__(self, limit: int = LIMIT):
        self.limit = limit
        self.kept: OrderedDict[Hashable, Features] = OrderedDict()

    def get(self, key: Hashable) -> Features | None:
        if key in self.kept:
            self.kept.move_to_end(key)
        return self.kept.get(key)

    def put(self, key: Hashable, features: Features) -> None:
        """Only the rows that differ are kept: `features` holds no others."""
        self.kept[key] = features
        self.kept.move_to_end(key)
        while self.size > self.limit:
            self.kept.popitem(last=False)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(features.states.nbytes for features in self.kept.values())
