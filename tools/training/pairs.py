"""Pictures with captions, from folders or from tar files, and what is wrong with some of them."""

from __future__ import annotations

import json
import os
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from training.pictures import UnreadablePicture, open_picture

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tiff")
CAPTION, WORDS = ".txt", ".json"
MOST_REPEATS = 10_000  # a folder whose number is above it is named after a date or the like
LISTED = 5  # how many names of each problem are printed


@dataclass(frozen=True)
class Pair:
    """A picture with its caption.

    name:    for messages. stamp: changes when the picture does.
    repeats: how often a round of the training sees it.
    read:    gives the picture's bytes.
    words:   attributes with their entities, as they stand in the caption.
    """

    name: str
    stamp: str
    caption: str
    repeats: int
    read: Callable[[], bytes]
    words: tuple[tuple[str, str], ...] = ()

    def picture(self, resolution: int) -> Image.Image:
        """See `open_picture`. Raises: UnreadablePicture, also where the file is gone by now."""
        try:
            data = self.read()
        except OSError as error:
            raise UnreadablePicture(type(error).__name__) from error
        return open_picture(data, resolution)


@dataclass
class Problems:
    """What was left out, and why."""

    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reason: str, name: str) -> None:
        self.names[printable(reason)].append(printable(name))

    def lines(self) -> Iterator[str]:
        for reason, names in self.names.items():
            rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            yield f"{reason}: {len(names)} ({', '.join(names[:LISTED])}{rest})"


def printable(text: str) -> str:
    """A file may be named with line breaks, with a terminal's commands, or with bytes that are no text."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def find_pairs(places: Iterable[Path], problems: Problems) -> list[Pair]:
    """The pairs of folders and tar files, in an order that does not depend on the machine.

    A folder's pictures have their captions in text files of the same name; a folder named `12_cats`, as kohya's
    scripts have them, is seen 12 times a round. In a tar file, as WebDataset has them, the files of one picture have
    the same name up to the first dot.

    Raises: OSError if a place cannot be read.
    """
    pairs: list[Pair] = []
    for place in places:
        pairs += pairs_of_folder(place, problems) if place.is_dir() else pairs_of_tar(place, problems)
    return pairs


def pairs_of_folder(folder: Path, problems: Problems) -> Iterator[Pair]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    for path in files:
        if path.suffix.lower() == ".tar":
            yield from pairs_of_tar(path, problems)
        if path.suffix.lower() not in PICTURES:
            continue
        name = path.relative_to(folder).as_posix()
        try:
            status = path.stat()
            caption, words = (
                beside.read_bytes() if (beside := path.with_suffix(ending)).is_file() else None
                for ending in (CAPTION, WORDS)
            )
        except OSError as error:
            problems.add(f"left out, unreadable ({type(error).__name__})", name)
            continue
        stamp = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
        yield from pair_of(
            name, stamp, caption, words, repeats_of(path.parent.name), path.read_bytes, problems
        )


def pairs_of_tar(path: Path, problems: Problems) -> Iterator[Pair]:
    status = path.stat()
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, slash, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                ending = f".{ending.lower()}"
                if member.isdir() or not stem or ending not in (*PICTURES, CAPTION, WORDS):
                    continue
                if not member.isfile() or member.issparse():
                    problems.add("left out, a link or the like in a tar file", f"{path.name}:{member.name}")
                    continue
                parts = samples.setdefault(f"{folder}{slash}{stem}", {})
                if ending in parts:
                    problems.add(
                        "twice in a tar file, where the last one counts", f"{path.name}:{member.name}"
                    )
                parts[ending] = member.offset_data, member.size
    # ValueError: numbers and names that are none. The last two: a size that no memory has.
    except (tarfile.TarError, ValueError, OverflowError, MemoryError) as error:
        problems.add(f"left out, no readable tar file ({str(error) or type(error).__name__})", path.name)
    for stem, parts in samples.items():
        picture = next((ending for ending in parts if ending in PICTURES), None)
        if picture is not None:
            name = f"{path.name}:{stem}{picture}"
            try:
                caption, words = (
                    read_part(path, *parts[ending]) if ending in parts else None
                    for ending in (CAPTION, WORDS)
                )
            except OSError:
                problems.add("left out, cut off by the end of its tar file", name)
                continue
            stamp = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {stem}"
            offset, size = parts[picture]
            yield from pair_of(
                name, stamp, caption, words, 1, lambda o=offset, s=size: read_part(path, o, s), problems
            )


def read_part(path: Path, offset: int, size: int) -> bytes:
    """Raises: OSError, also if the file ends before, or where a damaged header gives a size that cannot be."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        if not 0 <= size <= end - offset:
            raise OSError(f"{path.name} has {end} bytes, and no {size} at {offset}.")
        file.seek(offset)
        return file.read(size)


def pair_of(
    name: str,
    stamp: str,
    caption: bytes | None,
    words: bytes | None,
    repeats: int,
    read: Callable[[], bytes],
    problems: Problems,
) -> Iterator[Pair]:
    """The pair, unless its caption is of no use."""
    if caption is None:
        problems.add("left out, without a caption", name)
        return
    try:
        text = caption.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # ASCII in UTF-16 is UTF-8 with zeros
        problems.add("left out, with a caption that is not UTF-8", name)
        return
    if not text:
        problems.add("left out, with an empty caption", name)
    elif repeats == 0:
        problems.add("left out, in a folder whose name says 0 times", name)
    else:
        if repeats > MOST_REPEATS:
            problems.add(f"seen once, because the number of the folder is above {MOST_REPEATS}", name)
            repeats = 1
        yield Pair(name, stamp, text, repeats, read, words_in(words, name, problems))


def words_in(data: bytes | None, name: str, problems: Problems) -> tuple[tuple[str, str], ...]:
    """The entry `pairs` of the `.json` beside a picture: [["red", "ball"], …]. Other entries are for others."""
    try:
        given = json.loads(data or b"{}")
        pairs = given.get("pairs", []) if isinstance(given, dict) else None
        fits = isinstance(pairs, list) and all(
            isinstance(pair, list)
            and len(pair) == 2
            and all(isinstance(word, str) and word.strip() for word in pair)
            for pair in pairs
        )
    except (ValueError, RecursionError):
        fits = False
    if not fits:
        problems.add('without its pairs, for its .json has no {"pairs": [["red", "ball"], …]}', name)
        return ()
    return tuple((attribute, entity) for attribute, entity in pairs)


def repeats_of(folder: str) -> int:
    """`12_cats` → 12; any other name → 1."""
    number, found, _ = folder.partition("_")
    return int(number) if found and number.isdecimal() and number.isascii() else 1
