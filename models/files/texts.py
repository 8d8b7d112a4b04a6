"""Recognises a text in place of a file of weights: a pointer of Git LFS or Xet, a web page, an error message."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from ..errors import UnreadableFile

HEAD_BYTES = 512
JSON_STARTS = ("{", "[")
SHOWN = 60  # characters of a text in a message
POINTERS = ("version https://git-lfs.github.com/spec/", "# xet version")
MAGIC = (b"PK", b"GGUF")  # with which PyTorch's and llama.cpp's files begin
SIZE_IN_POINTER = re.compile(r"^(?:size |filesize = )(\d+)$", re.MULTILINE)


def text_in(path: Path) -> str | None:
    """The beginning of a file that holds a text; None if it holds anything else. No format of weights is a text."""
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
    kind = "a web page" if text.startswith("<") else "a text"
    raise UnreadableFile(
        f"{path.name} is {kind} of {size} bytes in place of the file: it begins with {text[:SHOWN].splitlines()[0]!r}. "
        "A server answers so to a download that it refuses, for example before you log in or accept a licence. Delete "
        "it, and download the file again."
    )
