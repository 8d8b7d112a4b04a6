"""Finds models in a folder and all folders in it by their files' names, and tells when one changes. Needs no torch.

The folders may be on a slow drive, so the number of file-system calls is what counts here. A scan of a folder is one,
and tells files from folders; only a link costs another.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from .formats import (
    GGUF,
    SUFFIXES,
    TOKENIZER_FILE,
    is_gguf,
    is_hidden,
    model_names,
    set_name,
    tokenizer_beside,
)

CONFIG_FILE = "config.json"
FILE_SUFFIXES = (*SUFFIXES, GGUF, ".json", ".txt", ".md", ".model")  # of links that are not followed


def models_under(root: Path, suffixes: tuple[str, ...], within: str = "") -> Iterator[str]:
    """The names of the models under a root, relative to it and with `/`.

    A folder with a `config.json` is one model, except for its `.gguf` files, which are models of their own. Shards
    without a `config.json` are found under the name of the first.
    within: the folder to search, with `/` at its end.
    """
    try:
        with os.scandir(root / within) as found:
            entries = {entry.name: entry for entry in found}
    except OSError:  # it does not exist, or may not be read
        return
    names = [name for name in model_names(entries, suffixes) if is_file(entries[name])]
    if within and CONFIG_FILE in entries:
        alone = [name for name in names if is_gguf(Path(name))]
        yield from [within.rstrip("/")] if alone != names else []
        names = alone
    yield from (within + name for name in first_shards(names))
    for name, entry in entries.items():
        looks_like_a_file = entry.is_symlink() and name.lower().endswith(FILE_SUFFIXES)
        if not looks_like_a_file and not is_hidden(name) and is_folder(entry):
            yield from models_under(root, suffixes, f"{within}{name}/")


def first_shards(names: Iterable[str]) -> Iterable[str]:
    """Sorted names, without all shards of a model but the first."""
    return {set_name(name): name for name in reversed(list(names))}.values()


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file, or a link to one."""
    try:
        return entry.is_file()
    except OSError:  # a link that cannot be followed
        return False


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def stamp(path: Path) -> str:
    """A text that changes when a model does: names, sizes and times of its weights, its config and its tokenizer."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            found = folder_files(path)
        elif set_name(path.name) != path.name:
            found = folder_files(path.parent, set_name(path.name))
        else:
            found = {path.name: status}
        place = tokenizer_beside(path) if stat.S_ISDIR(status.st_mode) else path.parent
        found |= file_status(place / TOKENIZER_FILE) if place else {}
        return repr([(name, one.st_size, one.st_mtime_ns) for name, one in sorted(found.items())])
    except OSError as error:  # the text changes again when the file can be read
        return str(error)


def folder_files(folder: Path, shards: str | None = None) -> dict[str, os.stat_result]:
    """Name → status of a folder's weights and `.json` files; or, if their common name is given, of shards."""
    with os.scandir(folder) as found:
        if shards is not None:
            return {entry.name: entry.stat() for entry in found if set_name(entry.name) == shards}
        suffixes = (*SUFFIXES, ".json")
        return {entry.name: entry.stat() for entry in found if entry.name.lower().endswith(suffixes)}


def file_status(path: Path) -> dict[str, os.stat_result]:
    """Path → status; empty if there is no such file."""
    try:
        return {str(path): os.stat(path)}
    except OSError:
        return {}
