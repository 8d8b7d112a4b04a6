"""Which files of a folder hold a model's weights: one file, or several shards."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..errors import UnreadableFile
from .formats import SHARD, SUFFIXES, model_names, set_name
from .texts import text_in

# The names that transformers gives to weights, in the order in which it looks for them. A variant has its name before
# the extension, such as `model.fp16.safetensors`.
FOLDER_NAMES = ("model.safetensors", "pytorch_model.bin")
VARIANT = re.compile(r"(model|pytorch_model)\..+\..+")
INDEX = re.compile(r"(?P<stem>.+)\.index(?P<variant>\.[^.]+)?\.json")
SHOWN = 4  # names of missing shards in a message


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights of a model.

    path: a file; a shard or an index, which stand for all shards; or a folder.
    Raises: UnreadableFile if a folder holds no weights, or if shards are missing.
    """
    if path.is_dir():
        return weight_files(weight_file_in(path))
    if not is_index(path):
        files = shards_beside(path)
        return [path] if len(files) == 1 else check_complete(files)
    files = shards_of(path)
    if not files:
        raise UnreadableFile(f"{path.name} is damaged: it names no shards. Download it again.")
    if any(file.suffix.lower() not in SUFFIXES for file in files):
        raise UnreadableFile(
            f"{path.name} is damaged: it names shards that are not weight files. Download it again."
        )
    return check_complete(files)


def weight_file_in(folder: Path) -> Path:
    """The file, the first shard or the index of the weights that are meant in a folder.

    What transformers reads by default comes first, then its variants. Of others the largest is taken, because it is the
    most precise. What is incomplete, empty, a text or no model comes last, so that an error can say what it is.
    Raises: UnreadableFile if the folder holds no weights.
    """
    names = sorted(entry.name for entry in folder.iterdir())
    indexes = [folder / name for name in names if INDEX.fullmatch(name)]
    named = {shard.name for index in indexes for shard in shards_of(index)}
    whole: dict[str, Path] = {}
    for name in model_names(names) or [name for name in names if name.lower().endswith(SUFFIXES)]:
        if name not in named:
            whole.setdefault(set_name(name), folder / name)
    found = [*indexes, *whole.values()]
    if not found:
        raise UnreadableFile(
            f"The folder {folder.name} holds no weights. Put the model's {' or '.join(FOLDER_NAMES)} into it, or its "
            "shards with their index."
        )
    return min(found, key=rank)


def rank(path: Path) -> tuple[bool, int, int]:
    """The lowest is the one that is meant. path: a file, a first shard or an index."""
    files: list[Path] = []
    try:
        files = weight_files(path)
        size = sum(file.stat().st_size for file in files)
        is_whole = size > 0 and not any(text_in(file) is not None for file in files)
    except (UnreadableFile, OSError):
        size, is_whole = 0, False
    name = INDEX.sub(r"\g<stem>\g<variant>", path.name)
    if shard := SHARD.fullmatch(name):
        name = shard["stem"] + shard["rest"]
        is_whole = is_whole and len(files) == int(shard["count"])
    if name in FOLDER_NAMES:
        return not is_whole, FOLDER_NAMES.index(name), len(files)  # one file before several
    return not is_whole, len(FOLDER_NAMES) + (VARIANT.fullmatch(name) is None), -size


def is_index(path: Path) -> bool:
    return INDEX.fullmatch(path.name) is not None


def shards_of(index: Path) -> list[Path]:
    """The shards that an index names, in the index's own folder whatever it says; none if it is damaged."""
    try:
        shard_of_tensor = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return [
            index.parent / name for name in sorted({Path(name).name for name in shard_of_tensor.values()})
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def shards_beside(path: Path) -> list[Path]:
    """All shards of a model, given one of them, by their numbers.

    Any other file stands for itself, and so does a shard without any other: it may be a whole model under such a name.
    """
    shard = SHARD.fullmatch(path.name)
    if shard is None or path.suffix.lower() not in SUFFIXES:
        return [path]
    stem, count, rest = shard["stem"], shard["count"], shard["rest"]
    shards = [path.with_name(f"{stem}-{number:05}-of-{count}{rest}") for number in range(1, int(count) + 1)]
    return shards if any(shard.is_file() for shard in shards if shard != path) else [path]


def check_complete(files: list[Path]) -> list[Path]:
    """Raises: UnreadableFile if one of these shards is missing."""
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        listed = ", ".join(absent[:SHOWN]) + (", …" if len(absent) > SHOWN else "")
        raise UnreadableFile(
            f"{files[0].parent.name} lacks {len(absent)} of {len(files)} shards: {listed}. "
            "Download them into the same folder."
        )
    return files
