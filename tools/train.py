"""Trains a Cross-Adapter from a job file, on one GPU or on many.

    python tools/train.py job.yaml
    python tools/train.py job.yaml steps=2000 unet=LoRA --dry-run
    accelerate launch tools/train.py job.yaml

The keys of a job are the inputs of New Cross-Adapter and Train Cross-Adapter, and those that tools/README.md lists. The
same job in a graph gives the same adapter. Ctrl-C ends the training after a step and keeps it; the same command goes
on. Run it with the Python that runs ComfyUI.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# The Python of ComfyUI's portable build for Windows does not look for modules beside the script that it runs.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from host.folders import ENCLOSING_COMFYUI

if TYPE_CHECKING:
    from llm4gen.models.training.ranks import Ranks
    from training.session import Session


CHANGE = re.compile(r"[a-z_]+=.*", re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    options, changes, extra = parse(sys.argv[1:] if arguments is None else arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # the console may lack characters of a file's name
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if not (options.comfyui / "main.py").is_file():
        print(
            f"error: there is no ComfyUI in {options.comfyui}. Name its folder with --comfyui.",
            file=sys.stderr,
        )
        return 1
    from training.job_file import WrongJob  # noqa: PLC0415
    from training.processes import is_launched, join  # noqa: PLC0415

    try:
        others = join(on_cpu="--cpu" in extra) if is_launched() else None
    except ModuleNotFoundError:
        print("error: several processes need the Python package accelerate. Install it.", file=sys.stderr)
        return 1
    from training.session import start_comfyui  # noqa: PLC0415

    session = start_comfyui(options.comfyui, extra)
    from llm4gen.models.errors import LLM4GENError  # noqa: PLC0415
    from llm4gen.models.training.ranks import ALONE  # noqa: PLC0415

    try:
        return run(session, options, changes, others or ALONE)
    except (WrongJob, LLM4GENError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last step that was kept", file=sys.stderr)
        return 130


def run(session: Session, options: argparse.Namespace, changes: Sequence[str], ranks: Ranks) -> int:
    """Reads the job, says what it would do, and does it. Returns the exit code."""
    import comfyui_version  # noqa: PLC0415

    from training import dry_run  # noqa: PLC0415
    from training.job_file import read_job  # noqa: PLC0415
    from training.pairs import Problems, find_pairs  # noqa: PLC0415
    from training.run_folder import RunFolder  # noqa: PLC0415
    from training.session import train  # noqa: PLC0415

    job, problems = read_job(options.job, changes, session.schema()), Problems()
    pairs = find_pairs([place for place in job["data"] if place.exists()], problems)
    wrong = list(dry_run.problems_of(job, pairs))
    if ranks.number == 0:
        for line in wrong:
            print(f"error: {line}", file=sys.stderr)
        print(*(() if wrong else dry_run.report(job, pairs, problems, session, ranks.count)), sep="\n")
    if wrong or options.dry_run:
        return 1 if wrong else 0
    folder = RunFolder(job["run"], job, comfyui_version.__version__) if ranks.number == 0 else None
    trained = train(
        session, job, pairs, problems, ranks=ranks, watch=folder.watch if folder else lambda *_: None
    )
    if folder:
        print(*problems.lines(), *(f"written: {path}" for path in folder.write_result(trained)), sep="\n")
    return 0


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Returns this command's options, the changes to the job, and the remaining arguments, which are ComfyUI's own."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("job", type=Path, help="the job file, before all other arguments")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="a value in place of the job file's")
    parser.add_argument("--dry-run", action="store_true", help="say what the job would do, and do nothing")
    parser.add_argument(
        "--comfyui",
        type=Path,
        metavar="DIR",
        default=ENCLOSING_COMFYUI,
        help="(default: the ComfyUI whose custom_nodes folder this pack is in)",
    )
    # Taken out first, because ComfyUI's options may have values that are no changes.
    changes = [argument for argument in arguments if CHANGE.fullmatch(argument)]
    options, extra = parser.parse_known_args([one for one in arguments if one not in changes])
    return options, changes, [*options.changes, *extra]


if __name__ == "__main__":
    sys.exit(main())
