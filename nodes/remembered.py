"""What was learnt of files, until they change."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from . import folders

T = TypeVar("T")


class Remembered(Generic[T]):
    """Learns of a file or folder once. most: how many are remembered, those that were asked for last.

    For any number of threads, one at a time: what reads files need not be safe for several.
    """

    def __init__(self, learn: Callable[[Path], T], most: int):
        self.learn = learn
        self.most = most
        self.known: OrderedDict[Path, tuple[str, T]] = OrderedDict()
        self.one_at_a_time = Lock()

    def __call__(self, path: Path) -> T:
        with self.one_at_a_time:
            stamp = folders.stamp(path)
            if path not in self.known or self.known[path][0] != stamp:
                self.known[path] = stamp, self.learn(path)
            self.known.move_to_end(path)
            while len(self.known) > self.most:
                self.known.popitem(last=False)
            return self.known[path][1]
