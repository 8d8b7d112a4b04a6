"""Downloads the weights that the pack needs, converts them, and puts them into ComfyUI's model folders.

    python tools/fetch_weights.py
    python tools/fetch_weights.py --comfyui DIR --dtype fp8 --only adapter encoder
    python tools/fetch_weights.py [ComfyUI's own arguments, such as --base-directory DIR]

Run it with the Python that runs ComfyUI. The weights come from the Hugging Face Hub; the adapter and the encoder are
converted as tools/convert.py does it. If a run is interrupted, the next one continues it. HF_ENDPOINT, HF_TOKEN and
proxies work as in the library huggingface_hub.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

# The Python of ComfyUI's portable build for Windows does not look for modules beside the script that it runs.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from fetch.by_hand import convert_command, instructions
from fetch.failures import DISK_PROBLEM, FAILED, UNCONFIRMED, UNREACHABLE, CannotFetch
from fetch.installed import find_installed, model_folders
from fetch.items import DEFAULT_DTYPE, ITEMS, PINNED, Item
from fetch.plan import check_disk_space, look_up_all, plan_task, print_tasks
from fetch.task import remove_scratch, run_task, scratch_folder
from files.interruptible import CannotWrite, Interrupted
from host.comfyui import HostError, given_installation
from host.folders import ENCLOSING_COMFYUI
from pack import make_importable

CONFIRM_BYTES = 5_000_000_000  # downloads of this size or more must be confirmed
EXIT_CODES = """exit codes:
  0  all files are in their places
  1  an error that its message explains, such as a wrong folder or a damaged file
  2  wrong arguments
  3  the hub cannot be reached, or --offline was given; instructions were printed
  4  the hub refuses access, or does not have the file (401, 403, 404)
  5  the disk is too small, or cannot be written to
  6  a download differs from what the hub states (sha256); it was deleted
  7  the downloads have 5 GB or more, and were not confirmed
  130, 143  interrupted by Ctrl-C or SIGTERM; the next run continues"""


def main(arguments: Sequence[str] | None = None) -> int:
    make_importable()
    from llm4gen.models.errors import LLM4GENError  # noqa: PLC0415

    options, comfyui_arguments = parse(arguments)
    # SIGINT too, because a shell may have set it to be ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    sys.stdout.reconfigure(errors="replace")  # the console may lack characters of a folder's name
    try:
        fetch(options, comfyui_arguments)
    except (KeyboardInterrupt, Interrupted) as interruption:
        print("interrupted: run this again to continue", file=sys.stderr)
        return 128 + (interruption.args[0] if interruption.args else signal.SIGINT)
    except CannotFetch as error:
        return fail(str(error), error.code)
    except (HostError, LLM4GENError) as error:
        return fail(str(error), FAILED)
    except CannotWrite as error:
        return fail(f"{error} What was downloaded is kept.", DISK_PROBLEM)
    except OSError as error:
        advice = "Make room or give access. What was downloaded is kept: run this again to continue."
        return fail(f"{error}. {advice}", DISK_PROBLEM)
    return 0


def fail(message: str, code: int) -> int:
    """Prints an error. Returns the exit code."""
    print(f"error: {message}", file=sys.stderr)
    return code


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handles SIGTERM as Ctrl-C, for which libraries are prepared."""
    raise KeyboardInterrupt(number)


def fetch(options: argparse.Namespace, comfyui_arguments: Sequence[str]) -> None:
    """Puts all chosen items into ComfyUI's folders, and prints what is done.

    Raises: CannotFetch, CannotWrite, HostError, LLM4GENError, OSError, Interrupted, SystemExit.
    """
    comfyui = given_installation(options.comfyui or ENCLOSING_COMFYUI, Path(sys.executable)).comfyui
    folders = model_folders(comfyui, comfyui_arguments)
    items = [ITEMS[name] for name in dict.fromkeys(options.only)]
    absent = [item for item in items if not is_installed(item, folders[item.folder_key], options.dtype)]
    if not absent:
        return
    try:
        if options.offline:
            raise CannotFetch(UNREACHABLE, "nothing is downloaded with --offline")
        repositories = look_up_all(absent, folders, options.revision)
    except CannotFetch as error:
        if error.code == UNREACHABLE:
            print(instructions(absent, folders, options.dtype), flush=True)
        raise
    tasks = [
        plan_task(item, repositories[item.repository], folders[item.folder_key][0], options.dtype)
        for item in absent
    ]
    print_tasks(tasks)
    check_disk_space(tasks)
    confirm(sum(task.bytes_missing() for task in tasks), options.yes)
    for task in tasks:
        run_task(task)


def is_installed(item: Item, folders: Sequence[Path], dtype: str | None) -> bool:
    """Whether the item's file is in one of these folders. If so, says where, and removes what a killed run left.

    Raises: CannotFetch if a file of the item's name holds something else.
    """
    found = find_installed(item, folders, dtype)
    if found is None:
        return False
    print(f"{item.name}: already installed, {found}")
    if item.is_converted and found.suffix != ".safetensors":
        target = found.with_name(item.target_name(dtype))
        command = convert_command(found, target, item.target_dtype(dtype))
        print(f"  to convert it to {target.name}, run\n  {command}")
    remove_scratch(scratch_folder(item, folders[0]))
    return True


def confirm(total: int, agreed: bool) -> None:
    """Asks the user before a large download.

    total:  bytes to download.
    agreed: whether the user has confirmed already, with --yes.
    Raises: CannotFetch if the answer is no, or if there is no terminal to ask on.
    """
    print(f"to download: {total:,} bytes", flush=True)
    if total < CONFIRM_BYTES or agreed:
        return
    if not sys.stdin or not sys.stdin.isatty():
        raise CannotFetch(
            UNCONFIRMED,
            "That is 5 GB or more, which must be confirmed, and there is no terminal to ask on. Give --yes to "
            "download it.",
        )
    try:
        answer = input("Download it? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise CannotFetch(UNCONFIRMED, "Nothing was downloaded. With --only you can download less.")


def parse_revision(text: str) -> tuple[str, str]:
    """`NAME=HASH` → the repository's full name and the commit. NAME may lack the owner. Raises: ArgumentTypeError."""
    name, _, commit = text.partition("=")
    known = {short: full for full in PINNED for short in (full, full.partition("/")[2])}
    if name not in known or not commit:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=HASH, where NAME is one of {', '.join(PINNED)}")
    return known[name], commit


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Returns this command's options, and the remaining arguments, which are ComfyUI's own."""
    from llm4gen.models.files.formats import DTYPE_NAMES  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="fetch_weights.py",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--comfyui",
        type=Path,
        metavar="DIR",
        help="(default: the ComfyUI whose custom_nodes folder this pack is in)",
    )
    add("--only", nargs="+", choices=ITEMS, default=list(ITEMS), help="what to download (default: all)")
    add(
        "--dtype",
        choices=DTYPE_NAMES,
        help=f"the encoder's dtype (default: {DEFAULT_DTYPE}, or that of the encoder that is installed)",
    )
    add("--yes", action="store_true", help="do not ask before downloading 5 GB or more")
    add(
        "--offline",
        action="store_true",
        help="download nothing; print what to download by hand and where to save it",
    )
    add(
        "--revision",
        type=parse_revision,
        action="append",
        default=[],
        metavar="NAME=HASH",
        help="the commit of a repository (default: an interrupted run's, else the newest)",
    )
    options, comfyui_arguments = parser.parse_known_args(arguments)
    options.revision = dict(options.revision)
    return options, comfyui_arguments


if __name__ == "__main__":
    sys.exit(main())
