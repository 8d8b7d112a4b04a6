"""The one place where features are kept: in memory and, where the user wants that, on disk."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path

from torch import Tensor

from .disk_cache import DiskCache
from .features import Features
from .memory_cache import MemoryCache


class FeatureStore:
    """Looks in memory first, then on disk.

    folder: gives the folder for features on disk, or None for memory alone. Asked at each use.
    move:   puts states from the disk on the device where they are wanted.
    """

    def __init__(self, folder: Callable[[], Path | None], move: Callable[[Tensor], Tensor]):
        self.memory = MemoryCache()
        self.folder = folder
        self.move = move

    def get(self, key: Hashable) -> Features | None:
        features = self.memory.get(key)
        if features is not None:
            return features
        folder = self.folder()
        features = DiskCache(folder).get(key) if folder else None
        if features is not None:
            features = features.moved(self.move)
            self.memory.put(key, features)
        return features

    def put(self, key: Hashable, features: Features) -> None:
        self.memory.put(key, features)
        folder = self.folder()
        if folder:
            DiskCache(folder).put(key, features)
