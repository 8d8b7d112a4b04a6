"""Features in memory, as many as there is room for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from .features import Features

LIMIT = 32 << 20  # bytes: 16 prompts of T5-XL with 256 distinct rows, or about 40 usual ones


class MemoryCache:
    """Keeps the most recently used features, up to `limit` bytes of states."""

    def __init__(self, limit: int = LIMIT):
        self.limit = limit
        self.entries: OrderedDict[Hashable, Features] = OrderedDict()

    def get(self, key: Hashable) -> Features | None:
        if key in self.entries:
            self.entries.move_to_end(key)
        return self.entries.get(key)

    def put(self, key: Hashable, features: Features) -> None:
        self.entries[key] = features
        self.entries.move_to_end(key)
        while self.size > self.limit:
            self.entries.popitem(last=False)

    def clear(self) -> None:
        self.entries.clear()

    @property
    def size(self) -> int:
        """Bytes of all states."""
        return sum(features.states.nbytes for features in self.entries.values())
