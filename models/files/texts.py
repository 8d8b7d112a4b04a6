"""Recognises what stands in place of a file of weights: a text, or a cloud drive's placeholder."""

from __future__ import annotations

import codecs
import os
import re
import stat
from pathlib import Path

from ..errors import UnreadableFile

HEAD_BYTES = 512
JSON_STARTS = ("{", "[")
SHOWN = 60  # characters of a text in a message
POINTERS = ("version https://git-lfs.github.com/spec/", "# xet version")
# The marks of a file whose content a cloud drive keeps online and fetches when it is read: Windows', then macOS'.
RECALL_ON_OPEN, RECALL_ON_DATA_ACCESS = 0x40000, 0x400000
ONLINE_ATTRIBUTES = stat.FILE_ATTRIBUTE_OFFLINE | RECALL_ON_OPEN | RECALL_ON_DATA_ACCESS
ONLINE_FLAG = 0x40000000  # SF_DATALESS
MAGIC = (b"PK", b"GGUF")  # with which PyTorch's and llama.cpp's files begin
SIZE_IN_POINTER = re.compile(r"^(?:size |filesize = )(\d+)$", re.MULTILINE)


def is_online_only(path: Path) -> bool:
    """Whether a cloud drive (OneDrive, iCloud, Dropbox) has a file's content online alone. Does not fetch it."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    attributes, flags = getattr(status, "st_file_attributes", 0), getattr(status, "st_flags", 0)
    return bool(attributes & ONLINE_ATTRIBUTES or flags & ONLINE_FLAG)


def text_in(path: Path) -> str | None:
    """The beginning of a file that holds a text; None if it holds anything else. No format of weights is a text.

    A file that would have to be fetched from a cloud drive first is not read.
    """
    if is_online_only(path):
        return None
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(MAGIC):  # a file that was cut short may end within its letters
        return None
    encoding = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)  # a letter may be cut at the end
    except UnicodeDecodeError:
        return None
    return text.strip() if text and all(letter.isprintable() or letter.isspace() for letter in text) else None


def refuse_text(path: Path, *allowed: str) -> None:
    """Raises: UnreadableFile if a file holds a text, unless it begins with an allowed one, such as `{` for JSON."""
    text = text_in(path)
    if text is None or text.startswith(allowed):
        return
    size = path.stat().st_size
    if text.startswith(POINTERS):
        found = SIZE_IN_POINTER.search(text)
        whole = f"the file of {int(found[1]):,} bytes" if found else "the file"
        raise UnreadableFile(
            f"{path.name} is a pointer of Git LFS: a text of {size} bytes that stands for {whole}. Run `git lfs pull` "
            "in its folder, or download the file itself in its place."
        )
    if not text:
        raise UnreadableFile(
            f"{path.name} is {size} bytes of white space in place of the file. Download it again."
        )
    kind = "a web page" if text.startswith("<") else "a text"
    raise UnreadableFile(
        f"{path.name} is {kind} of {size} bytes in place of the file: it begins with {text[:SHOWN].splitlines()[0]!r}. "
        "A server answers so to a download that it refuses, for example before you log in or accept a licence. Delete "
        "it, and download the file again."
    )
