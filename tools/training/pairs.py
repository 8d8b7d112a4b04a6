"""Pictures with captions, from folders or from tar files, and what is wrong with some of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tiff")
CAPTION, WORDS = ".txt", ".json"
UNIT = 64  # pixels: SD1.5's UNet halves its latents, of 8 pixels each, three times
LISTED = 5  # how many names of each problem are printed


class UnreadablePicture(ValueError):
    """Pillow cannot read it; the message is Pillow's error."""


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


@dataclass
class Problems:
    """What was left out, and why."""

    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reason: str, name: str) -> None:
        self.names[reason].append(name)

    def lines(self) -> Iterator[str]:
        for reason, names in self.names.items():
            rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            yield f"{reason}: {len(names)} ({', '.join(names[:LISTED])}{rest})"


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
        if path.suffix == ".tar":
            yield from pairs_of_tar(path, problems)
        if path.suffix.lower() not in PICTURES:
            continue
        name, status = path.relative_to(folder).as_posix(), path.stat()
        caption, words = (
            beside.read_bytes() if (beside := path.with_suffix(ending)).is_file() else None
            for ending in (CAPTION, WORDS)
        )
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
                if member.isfile():
                    stem, _, ending = member.name.partition(".")
                    samples.setdefault(stem, {})[f".{ending.lower()}"] = member.offset_data, member.size
    except tarfile.TarError as error:
        problems.add(f"left out, no readable tar file ({error})", path.name)
    for stem, parts in samples.items():
        picture = next((ending for ending in parts if ending in PICTURES), None)
        if picture is not None:
            caption, words = (
                read_part(path, *parts[ending]) if ending in parts else None for ending in (CAPTION, WORDS)
            )
            stamp = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {stem}"
            offset, size = parts[picture]
            name = f"{path.name}:{stem}{picture}"
            yield from pair_of(
                name, stamp, caption, words, 1, lambda o=offset, s=size: read_part(path, o, s), problems
            )


def read_part(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
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
        problems.add("left out, with a caption that is not UTF-8", name)
        return
    if not text:
        problems.add("left out, with an empty caption", name)
    elif repeats == 0:
        problems.add("left out, in a folder whose name says 0 times", name)
    else:
        yield Pair(name, stamp, text, repeats, read, words_in(words, name, problems))


def words_in(data: bytes | None, name: str, problems: Problems) -> tuple[tuple[str, str], ...]:
    """The entry `pairs` of the `.json` beside a picture: [["red", "ball"], …]. Other entries are for others."""
    try:
        given = json.loads(data or b"{}")
        pairs = given.get("pairs", []) if isinstance(given, dict) else []
        fits = isinstance(pairs, list) and all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(word, str) and word for word in pair)
            for pair in pairs
        )
    except ValueError:
        fits = False
    if not fits:
        problems.add('without its pairs, which are no list [["red", "ball"], …] in its .json', name)
        return ()
    return tuple((attribute, entity) for attribute, entity in pairs)


def repeats_of(folder: str) -> int:
    """`12_cats` → 12; any other name → 1."""
    number, found, _ = folder.partition("_")
    return int(number) if found and number.isdecimal() and number.isascii() else 1


def open_picture(data: bytes, resolution: int) -> Image.Image:
    """An RGB picture of about `resolution` squared pixels, in its own proportions but for what `UNIT` cuts away.

    Raises: UnreadablePicture.
    """
    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        return ImageOps.fit(on_white(picture), size_for(picture.size, resolution), Image.Resampling.LANCZOS)
    except Exception as error:  # whatever Pillow raises for a damaged picture
        raise UnreadablePicture(type(error).__name__) from error


def on_white(picture: Image.Image) -> Image.Image:
    """Without transparency, whose hidden colours may be anything."""
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def size_for(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """The size in whole units that is nearest in proportion among those of at most resolution² pixels."""
    width, height = size
    scale = resolution / (width * height) ** 0.5
    across = max(1, round(width * scale / UNIT))
    down = max(1, round(height * scale / UNIT))
    while across * down * UNIT**2 > resolution**2 and max(across, down) > 1:
        if across >= down:
            across -= 1
        else:
            down -= 1
    return across * UNIT, down * UNIT
