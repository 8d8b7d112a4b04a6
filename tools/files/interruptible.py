"""Long work in small steps: ended between any two of them, done by one process only. Standard library only."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: there an open file cannot be removed anyway
    fcntl = None

CHUNK = 16 << 20


class CannotWrite(RuntimeError):
    """The file cannot be written; the message says why and what to do."""


class Ended(Exception):
    """By Ctrl-C or SIGTERM. number: of the signal."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def ended_between_steps() -> Iterator[Callable[[], None]]:
    """Lets Ctrl-C and SIGTERM wait until the yielded function is called, which raises Ended. Raised at once, in
    the middle of a library, they would come out of it as errors of other kinds."""
    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: asked.append(number)) for number in numbers]

    def check() -> None:
        if asked:
            raise Ended(asked[0])

    try:
        yield check
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def sha256(path: Path, check: Callable[[], None]) -> str:
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            check()
            checksum.update(chunk)
    return checksum.hexdigest()


def lock(file: BinaryIO) -> None:
    """Marks an open file as in use until it is closed. Raises: BlockingIOError if it is marked already."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return
