"""Features on disk, kept between runs: one file for each prompt, verified when it is read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Hashable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ..encoders.rows import Rows
from ..files.atomic import UNFINISHED_SUFFIX, written_whole
from .features import Features

SUFFIX = ".features"
VERSION = 2  # raised when the same LLM would give other states, or when the file format changes
ABANDONED_SECONDS = 3600  # after so long, an unfinished file is left over from a process that was killed
LIMIT = 2 << 30  # bytes on disk: about 2000 prompts of T5-XL


class DiskCache:
    """Features by key, in a folder that several ComfyUI servers may share. The least recently used are removed first.

    A cache must never stop the work: a file that cannot be read is removed and its features are computed again, and
    features that cannot be written are not kept.
    """

    def __init__(self, folder: Path, limit: int = LIMIT):
        self.folder = folder
        self.limit = limit

    def get(self, key: Hashable) -> Features | None:
        path = self.path(key)
        try:
            features = unpack(path.read_bytes(), key_text(key))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, SafetensorError):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # `make_room` removes the files that were used longest ago
        return features

    def put(self, key: Hashable, features: Features) -> None:
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with written_whole(self.path(key)) as unfinished:
                unfinished.write_bytes(pack(features, key_text(key)))
            self.make_room()

    def path(self, key: Hashable) -> Path:
        return self.folder / (hashlib.sha256(key_text(key).encode()).hexdigest() + SUFFIX)

    def make_room(self) -> None:
        """Removes abandoned files, then the least recently used ones until the rest fits into `limit`.

        Another server may do the same at the same time, so a file may already be gone.
        """
        found = []
        for path in self.folder.glob(f".*{UNFINISHED_SUFFIX}"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()
        for path in self.folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size


def key_text(key: Hashable) -> str:
    return f"{VERSION} {key!r}"


def pack(features: Features, key: str) -> bytes:
    """A sha256 digest, followed by a safetensors file whose metadata holds the whole key."""
    rows = features.rows
    tensors = {"states": features.states.cpu(), "positions": rows.positions, "source": rows.row_of}
    tensors["real"] = torch.tensor([rows.real])
    body = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"key": key})
    return hashlib.sha256(key.encode() + body).digest() + body


def unpack(data: bytes, key: str) -> Features:
    """Raises: ValueError if the data is damaged in any way, or holds the features of another key."""
    digest, body = data[:32], data[32:]
    if hashlib.sha256(key.encode() + body).digest() != digest:
        raise ValueError("the digest does not match")
    tensors = load(body)
    rows = Rows(int(tensors["real"]), tensors["positions"], row_of=tensors["source"])
    return Features(tensors["states"], rows)
