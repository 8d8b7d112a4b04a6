"""What LLMs have said of prompts, kept on disk between runs: one file each, checked when it is read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from .llm import Features
from .rows import Rows

SUFFIX, PART = ".features", ".part"
VERSION = 2  # goes up when the same LLM would say something else, or files are laid out otherwise
ABANDONED = 3600  # seconds after which a part is no longer being written
LIMIT = 2 << 30  # bytes on disk; some 2000 prompts of T5-XL


class FeatureFiles:
    """Features by key, in a folder that several servers may share. The least recently used go first.

    Nothing here is worth stopping for: what cannot be read is removed and read anew, what cannot be written is
    not kept.
    """

    def __init__(self, folder: Path, limit: int = LIMIT):
        self.folder = folder
        self.limit = limit

    def get(self, key: object) -> Features | None:
        path = self.path(key)
        try:
            features = unpack(path.read_bytes(), name_of(key))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, SafetensorError):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # its age is the time since it was last of use
        return features

    def put(self, key: object, features: Features) -> None:
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.path(key), pack(features, name_of(key)))
            self.make_room()

    def path(self, key: object) -> Path:
        return self.folder / (hashlib.sha256(name_of(key).encode()).hexdigest() + SUFFIX)

    def make_room(self) -> None:
        """Another server may be doing the same: files that are gone already are no matter."""
        found = []
        for path in self.folder.glob(f".*{PART}"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()
        for path in self.folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        size = sum(bytes_ for _, bytes_, _ in found)
        for _, bytes_, path in sorted(found):
            if size <= self.limit:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                size -= bytes_


def name_of(key: object) -> str:
    return f"{VERSION} {key!r}"


def pack(features: Features, key: str) -> bytes:
    """A digest, and a safetensors file whose metadata names the key in full."""
    rows = features.rows
    tensors = {"states": features.states.cpu(), "positions": rows.positions, "source": rows.source}
    tensors["real"] = torch.tensor([rows.real])
    body = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"key": key})
    return hashlib.sha256(key.encode() + body).digest() + body


def unpack(data: bytes, key: str) -> Features:
    """Raises: ValueError for any damage, and for the features of another key."""
    digest, body = data[:32], data[32:]
    if hashlib.sha256(key.encode() + body).digest() != digest:
        raise ValueError("the digest does not fit")
    tensors = load(body)
    rows = Rows(int(tensors["real"]), tensors["positions"], tensors["source"])
    return Features(tensors["states"], rows)


def write_whole(path: Path, data: bytes) -> None:
    """Under its name there is the whole file or none, whatever happens meanwhile."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=PART)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
