"""Downloads what the pack needs from the hub and puts it where a ComfyUI looks. Run by ComfyUI's Python.

    python tools/fetch_weights.py
    python tools/fetch_weights.py --comfyui DIR --dtype fp8 --only adapter encoder
    python tools/fetch_weights.py [what ComfyUI is started with, such as --base-directory DIR]

The adapter and the encoder become .safetensors, by tools/convert.py. A run that was interrupted in any way is gone
on with by the next one. HF_ENDPOINT, HF_TOKEN and proxies are honoured, as the library huggingface_hub does it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

# The Python of ComfyUI for Windows looks for no module beside the script that it runs.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from convert import NAMES
from fetch.hub import FAILED, NO_ROOM, REFUSED, UNCONFIRMED, UNREACHED, CannotFetch, Repository, look_up
from fetch.items import DTYPE, ITEMS, PINNED, Item, convert_command, find_present, instructions, model_folders
from fetch.plan import check_room, kept_commit, plan_task
from fetch.task import Task, carry_out, scratch_of, tidy
from files.interruptible import CannotWrite, Ended
from host.comfyui import HostError, given_installation
from host.folders import AROUND
from pack import make_importable

ASKED_FROM = 5_000_000_000  # bytes of downloads
CODES = """exit codes:
  0  all is in its place
  1  an error that its message explains: no ComfyUI there, a damaged file, ...
  2  wrong arguments
  3  the hub cannot be reached, or --offline: what to do was printed
  4  the hub refuses, or does not have it (401, 403, 404)
  5  the disk: no room, or it cannot be written to
  6  what came is not what the hub states (sha256): it was deleted
  7  5 GB or more, and nobody said yes
  130, 143  interrupted by Ctrl-C, SIGTERM: the next run goes on"""


def main(arguments: Sequence[str] | None = None) -> int:
    options, others = parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # the first as well: a shell may have it ignored
        signal.signal(number, interrupt)
    sys.stdout.reconfigure(errors="replace")  # a folder's name may have letters that the console lacks
    make_importable()
    from llm4gen.models.errors import LLM4GENError  # noqa: PLC0415

    try:
        fetch(options, others)
        return 0
    except (KeyboardInterrupt, Ended) as end:
        print("interrupted: run this again to go on with it", file=sys.stderr)
        return 128 + (end.args[0] if end.args else signal.SIGINT)
    except CannotFetch as error:
        message, code = str(error), error.code
    except (HostError, LLM4GENError) as error:
        message, code = str(error), FAILED
    except CannotWrite as error:
        message, code = f"{error} What was downloaded is kept.", NO_ROOM
    except OSError as error:
        code = NO_ROOM
        message = f"{error}. Make room or give access; what was downloaded is kept. Run this again."
    print(f"error: {message}", file=sys.stderr)
    return code


def interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM as Ctrl-C, which libraries expect."""
    raise KeyboardInterrupt(number)


def fetch(options: argparse.Namespace, others: Sequence[str]) -> None:
    """others: what this ComfyUI is started with.

    Raises: CannotFetch, CannotWrite, HostError, LLM4GENError, OSError, Ended, SystemExit.
    """
    places = model_folders(find_comfyui(options.comfyui), others)
    wanted = [ITEMS[name] for name in dict.fromkeys(options.only)]
    absent = [item for item in wanted if not is_present(item, places[item.key], options.dtype)]
    if not absent:
        return
    try:
        if options.offline:
            raise CannotFetch(UNREACHED, "nothing is downloaded with --offline")
        repositories = look_up_all(absent, places, options.revision)
    except CannotFetch as error:
        if error.code == UNREACHED:
            print(instructions(absent, places, options.dtype), flush=True)
        raise
    tasks = [
        plan_task(item, repositories[item.repository], places[item.key][0], options.dtype) for item in absent
    ]
    show(tasks)
    check_room(tasks)
    confirm(sum(task.missing() for task in tasks), options.yes)
    for task in tasks:
        carry_out(task)


def find_comfyui(given: Path | None) -> Path:
    """The one that was named, or the one around this pack. Raises: HostError if it is none."""
    return given_installation(given or AROUND, Path(sys.executable)).comfyui


def is_present(item: Item, places: Sequence[Path], dtype: str | None) -> bool:
    found = find_present(item, places, dtype)
    if found is None:
        return False
    print(f"{item.name}: there already, {found}")
    if item.kind and found.suffix != ".safetensors":
        target = found.with_name(item.target_name(dtype))
        print(f"  to make {target.name} of it, run\n  {convert_command(found, target, item.dtype(dtype))}")
    tidy(scratch_of(item, places[0]))  # a run may have been killed just before it did that
    return True


def look_up_all(
    items: Sequence[Item], places: Mapping[str, Sequence[Path]], asked: Mapping[str, str]
) -> dict[str, Repository]:
    """Each repository once, at the commit that was asked for, that an interrupted run took, or that is pinned."""
    found = {}
    for name in dict.fromkeys(item.repository for item in items):
        print(f"asking the hub for {name} ...", flush=True)
        kept = None if name in asked else kept_commit(items, places, name)
        try:
            found[name] = look_up(name, asked.get(name) or kept or PINNED[name])
        except CannotFetch as error:
            if kept is None or error.code != REFUSED:
                raise
            found[name] = look_up(name, PINNED[name])  # that commit may be gone, and its file not
    return found


def show(tasks: Sequence[Task]) -> None:
    for repository in {task.repository.name: task.repository for task in tasks}.values():
        print(f"{repository.name}: commit {repository.commit}, licence: {repository.licence}")
    for task in tasks:
        kept = task.file.size - task.missing()
        print(
            f"{task.item.name}: {task.file.path}, {task.file.size:,} bytes"
            + (f", {kept:,} here already" * bool(kept))
        )
        print(f"  goes to {task.target}" + (f" as {task.dtype}" if task.dtype else ""), flush=True)


def confirm(total: int, agreed: bool) -> None:
    """Raises: CannotFetch."""
    print(f"to download: {total:,} bytes", flush=True)
    if total < ASKED_FROM or agreed:
        return
    if not sys.stdin or not sys.stdin.isatty():
        raise CannotFetch(
            UNCONFIRMED,
            "That is 5 GB or more, and there is no terminal to ask at. Give --yes to download it.",
        )
    try:
        answer = input("Download it? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise CannotFetch(UNCONFIRMED, "Nothing was downloaded. --only downloads less.")


def revision(text: str) -> tuple[str, str]:
    name, _, commit = text.partition("=")
    known = {short: full for full in PINNED for short in (full, full.partition("/")[2])}
    if name not in known or not commit:
        raise argparse.ArgumentTypeError(f"{text} is no NAME=HASH; NAME is one of {', '.join(PINNED)}")
    return known[name], commit


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """And what is left: ComfyUI's own."""
    parser = argparse.ArgumentParser(
        prog="fetch_weights.py",
        description=__doc__,
        epilog=CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--comfyui",
        type=Path,
        metavar="DIR",
        help="(default: the ComfyUI whose custom_nodes the pack lies in)",
    )
    add("--only", nargs="+", choices=ITEMS, default=list(ITEMS), help="(default: all)")
    add("--dtype", choices=NAMES, help=f"of the encoder (default: {DTYPE}; then any that is there will do)")
    add("--yes", action="store_true", help="do not ask before 5 GB or more")
    add("--offline", action="store_true", help="only say what to download by hand, and where to put it")
    add(
        "--revision",
        type=revision,
        action="append",
        default=[],
        metavar="NAME=HASH",
        help="take this commit of a repository (default: the newest; an interrupted run's, if there was one)",
    )
    options, others = parser.parse_known_args(arguments)
    options.revision = dict(options.revision)
    return options, others


if __name__ == "__main__":
    sys.exit(main())
