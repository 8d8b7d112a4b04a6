"""Writes a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

UNFINISHED_SUFFIX = ".part"
READABLE = 0o644  # by all users of the machine; a temporary file is its owner's alone


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary file in the folder of `path`, which takes its name when the block ends without an error.

    The name `path` therefore never stands for a part of a file, whenever the process is killed.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=UNFINISHED_SUFFIX)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, READABLE)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
