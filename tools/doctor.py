"""Says what LLM4GEN finds on this machine, what is missing or does not fit, and what to do. Run by ComfyUI's Python.

    python tools/doctor.py [--comfyui DIR] [what else ComfyUI is started with, such as --base-directory DIR]

Reads the headers of files, changes nothing and uses no network. Exit code 1: there is something to do.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

# The Python of ComfyUI for Windows looks for no module beside the script that it runs.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from checks import installed
from checks.findings import Check, Finding, failed, found_by, page
from host import folders as host_folders
from host.comfyui import ROOT
from pack import make_importable


def main(arguments: Sequence[str] | None = None) -> int:
    options, others = parse(arguments)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"
    sys.stdout.reconfigure(errors="replace")  # a file's name may have letters that the console lacks
    text, to_do = examine(options.comfyui.expanduser().absolute(), others)
    print(text)
    return 1 if to_do else 0


def examine(comfyui: Path, arguments: Sequence[str] = ()) -> tuple[str, int]:
    """The page, and how much there is to do. arguments: what this ComfyUI is started with.

    It can be entered once in a process: a second one's folders would be added to the first's.
    """
    if not (comfyui / "main.py").is_file():
        missing = Finding(
            f"There is no ComfyUI in {comfyui}: no main.py.",
            "Put this pack in ComfyUI/custom_nodes, or name ComfyUI's folder with --comfyui.",
        )
        return page([("ComfyUI", [missing])])
    packages = found_by(lambda: installed.packages(comfyui))
    sections = [("ComfyUI", found_by(lambda: installed.comfyui(comfyui))), ("Python", packages)]
    if any(finding.cure for finding in packages):
        later = [Finding("Models are looked at when the packages are there.")]
        return page([*sections, ("Models", later)])
    try:
        sections += [("Settings", list(enter(comfyui, arguments))), *model_sections()]
    except Exception as error:  # of ComfyUI's modules or the packages that they import
        return page([*sections, ("Models", [failed(error)])])
    return page([*sections, ("Machine", found_by(installed.machine))])


def enter(comfyui: Path, arguments: Sequence[str]) -> Iterable[Finding]:
    """The folders of this process become the host's."""
    configs = host_folders.enter(comfyui, arguments)
    import folder_paths  # noqa: PLC0415

    yield Finding(f"models: {folder_paths.models_dir}")
    for config in configs:
        if config.error is None:
            yield Finding(f"more folders: {config.path}")
        else:
            yield Finding(f"{config.path} cannot be read ({config.error}).", host_folders.CURE)


def model_sections(pack: Path = ROOT) -> Iterable[tuple[str, list[Finding]]]:
    """Of the models in the folders that the host's list names. pack: in which some of them may have strayed."""
    make_importable("nodes")
    from checks.models import Examination  # noqa: PLC0415

    models = Examination(pack)
    checks: dict[str, Check] = {
        "Folders": models.places,
        "Encoders": models.encoders,
        "Adapters": models.adapters,
        "Together": models.together,
        "Checkpoints": models.checkpoints,
        "In the wrong place": models.misplaced,
    }
    return [(title, found_by(check)) for title, check in checks.items()]


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="doctor.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--comfyui",
        type=Path,
        metavar="DIR",
        default=host_folders.AROUND,
        help="(default: the one around this pack)",
    )
    return parser.parse_known_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
