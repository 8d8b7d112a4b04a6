"""Ends long work between two of its steps, computes checksums, and locks files. Standard library only."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # on Windows, where an open file cannot be removed anyway
    fcntl = None

CHUNK_BYTES = 16 << 20


class CannotWrite(RuntimeError):
    """A file cannot be written. The message says why and what to do."""


class Interrupted(Exception):
    """The user or the system ended the work with Ctrl-C or SIGTERM. signal_number: which of the two it was."""

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.signal_number = signal_number


@contextmanager
def interruptible_steps() -> Iterator[Callable[[], None]]:
    """Delays Ctrl-C and SIGTERM until the yielded function is called, which then raises Interrupted.

    An exception that is raised at once, in the middle of a library's work, may leave the library as another error.
    """
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    def check() -> None:
        if received:
            raise Interrupted(received[0])

    signals = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, remember) for number in signals]
    try:
        yield check
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)


def sha256(path: Path, check: Callable[[], None]) -> str:
    """The checksum of a file, in hexadecimal. check: called before each chunk; what it raises ends the work."""
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            check()
            checksum.update(chunk)
    return checksum.hexdigest()


def lock(file: BinaryIO) -> None:
    """Locks an open file until it is closed. Does nothing where the system has no file locks.

    Raises: BlockingIOError if another process holds the lock.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # the file system has no locks
        return
