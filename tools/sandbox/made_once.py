"""Folders of files that take a while to make: made once, complete or not at all, and anew if they are outdated.

Standard library only, but that `command_line` makes ComfyUI importable.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

STAMP = "made.json"
OLD_STAMP = "standins.json"  # in folders that were made before


def make_once(target: Path, version: object, write: Callable[[Path], None]) -> bool:
    """Makes a folder unless it is there in this version. Returns whether it made it.

    It is made in a temporary folder that is then renamed, so that an interrupted run leaves nothing incomplete.

    version: anything that JSON can hold. write: makes the folder that it is given, with all of its files.
    Raises: FileExistsError if something else is there, which would be lost.
    """
    if is_made(target, version):
        return False
    if target.exists() and not any((target / stamp).is_file() for stamp in (STAMP, OLD_STAMP)):
        raise FileExistsError(
            f"{target} was not made by this command, so it is left as it is. Name another folder."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=target.name + "-"))
    try:
        fresh = scratch / target.name
        write(fresh)
        (fresh / STAMP).write_text(json.dumps({"version": version}), encoding="utf-8")
        return put_in_place(fresh, target, scratch / "old", version)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def put_in_place(fresh: Path, target: Path, old: Path, version: object) -> bool:
    """Renames `fresh` to `target`, and an outdated `target` to `old`. Returns whether it did.

    If another process, such as another test worker, was faster, its files stay, because they may be in use.
    """
    if is_made(target, version):
        return False
    if target.exists():
        target.replace(old)
    try:
        fresh.replace(target)
    except OSError:
        if not is_made(target, version):
            if old.exists() and not target.exists():
                old.replace(target)
            raise
        return False
    return True


def is_made(target: Path, version: object) -> bool:
    try:
        return json.loads((target / STAMP).read_text(encoding="utf-8")) == {"version": version}
    except (OSError, ValueError, RecursionError):
        return False


def command_line(description: str | None, make: Callable[[Path], object]) -> None:
    """The command that makes a models directory, under ComfyUI's Python.

    make: is called with the directory when ComfyUI can be imported.
    """
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("target", type=Path, help="the models directory to make")
    parser.add_argument("--comfyui", type=Path, required=True, help="the ComfyUI folder")
    options = parser.parse_args()
    sys.argv = sys.argv[:1]  # ComfyUI would parse these arguments as its own
    sys.path.insert(0, str(options.comfyui.resolve()))
    from comfy.cli_args import args  # noqa: PLC0415

    args.cpu = True  # set before other modules of comfy are imported, because they look for a GPU
    make(options.target.resolve())
