"""LLMs on disk: recognised by their headers, loaded when there is something to read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from .checkpoint import load_t5_encoder, recognise_t5
from .decoder_checkpoint import is_transformers_folder, load_decoder, recognise_decoder
from .eight_bits import widening
from .errors import UnreadableFile
from .formats import is_gguf
from .gguf_checkpoint import load_gguf, recognise_gguf
from .gguf_file import GgufFile
from .progress import Progress, silent
from .rows import Rows
from .t5 import T5Config
from .weights import files_of, open_weights

SAMPLE = 1 << 20  # bytes at either end of a file that its identity is taken from


class Config(Protocol):
    """What is known of any LLM before it is loaded."""

    width: int
    layers: int
    vocabulary: int

    def rows(self, real: int, length: int, padding: str) -> Rows: ...


@dataclass(frozen=True)
class Source:
    """An LLM that was recognised. identity: changes when its files do. stored: what most of its numbers are kept as.
    opened: a .gguf file, whose header with all words of the tokenizer takes seconds to read."""

    path: Path
    config: Config
    identity: str
    stored: str
    opened: GgufFile | None = None

    @property
    def is_t5(self) -> bool:
        """ComfyUI brings the tokenizer of T5, and of no other."""
        return isinstance(self.config, T5Config)

    def load(
        self,
        depth: int,
        *,
        dtype: torch.dtype | None = None,
        operations=nn,
        progress: Progress = silent,
    ) -> nn.Module:
        """Builds and fills the first `depth` layers: ids [n], rows → states [r, width] in fp32.

        dtype: of the weights in memory; None keeps the file's. A .gguf file's always stay as they are.
        Raises: UnreadableFile if the file is another than the one that was recognised, IncompleteCheckpoint.
        """
        if identity_of(self.path) != self.identity:
            raise UnreadableFile(f"{self.path.name} has changed since it was chosen. Run the prompt again.")
        if self.opened:
            return load_gguf(self.opened, self.config, depth=depth, operations=operations, progress=progress)
        load = load_t5_encoder if self.is_t5 else load_decoder
        return load(self.path, depth=depth, dtype=dtype, operations=widening(operations), progress=progress)


def open_source(path: Path) -> Source:
    """Recognises the LLM in a file or folder, and checks its names and shapes; reads no weights.

    Raises: UnreadableFile, UnknownCheckpoint, IncompleteCheckpoint, MissingPackage.
    """
    identity = identity_of(path)
    if is_gguf(path):
        config, opened = recognise_gguf(path)
        return Source(path, config, identity, opened.stored, opened)
    weights = open_weights(path)
    recognise = recognise_decoder if is_transformers_folder(path) else recognise_t5
    config, _ = recognise(weights)
    return Source(path, config, identity, weights.stored)


def identity_of(path: Path) -> str:
    """A digest of names, sizes, times and both ends of the files that are read: the header is among them.

    Raises: UnreadableFile.
    """
    digest = hashlib.sha256()
    config = [path / "config.json"] if (path / "config.json").is_file() else []
    for file in [*files_of(path), *config]:
        try:
            found = file.stat()
            with file.open("rb") as stream:
                digest.update(f"{file.name} {found.st_size} {found.st_mtime_ns}\n".encode())
                digest.update(stream.read(SAMPLE))
                stream.seek(max(0, found.st_size - SAMPLE))
                digest.update(stream.read(SAMPLE))
        except OSError as error:
            raise UnreadableFile(f"{file} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()
