"""A cache of facts about files, invalidated when a file changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from ..models.files.listing import stamp

T = TypeVar("T")


class FileCache(Generic[T]):
    """Calls `read` once for each file or folder, and again only after it has changed.

    limit: how many results are kept; those used least recently are dropped.

    Any thread may call it, but only one reads at a time: libraries that read files need not be thread-safe.
    """

    def __init__(self, read: Callable[[Path], T], limit: int):
        self.read = read
        self.limit = limit
        self.entries: OrderedDict[Path, tuple[str, T]] = OrderedDict()
        self.lock = Lock()

    def __call__(self, path: Path) -> T:
        with self.lock:
            now = stamp(path)
            if path not in self.entries or self.entries[path][0] != now:
                self.entries[path] = now, self.read(path)
            self.entries.move_to_end(path)
            while len(self.entries) > self.limit:
                self.entries.popitem(last=False)
            return self.entries[path][1]
