"""Reports what LLM4GEN finds on this machine, what is missing or does not fit, and what to do about it.

    python tools/doctor.py [--comfyui DIR] [ComfyUI's own arguments, such as --base-directory DIR]

Run it with the Python that runs ComfyUI. It reads the headers of files, changes nothing and needs no network.
Exit code: 0 if all is ready, 1 if there is something to do, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

# The Python of ComfyUI's portable build for Windows does not look for modules beside the script that it runs.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from checks import installed
from checks.findings import Check, Finding, Section, failed_check, format_report, run_check
from host import folders as host_folders
from host.comfyui import ROOT
from pack import make_importable


def main(arguments: Sequence[str] | None = None) -> int:
    options, comfyui_arguments = parse(arguments)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"
    sys.stdout.reconfigure(errors="replace")  # the console may lack characters of a file's name
    report, number = examine(options.comfyui.expanduser().absolute(), comfyui_arguments)
    print(report)
    return 1 if number else 0


def examine(comfyui: Path, arguments: Sequence[str] = ()) -> tuple[str, int]:
    """Runs all checks. Call it once in a process: a second ComfyUI's folders would be added to the first's.

    arguments: the arguments that this ComfyUI is started with.
    Returns: the report, and how many findings need something done.
    """
    if not (comfyui / "main.py").is_file():
        missing = Finding(
            f"There is no ComfyUI in {comfyui}: no main.py.",
            "Put this pack in ComfyUI/custom_nodes, or name ComfyUI's folder with --comfyui.",
        )
        return format_report([("ComfyUI", [missing])])
    packages = run_check(installed.check_packages, comfyui)
    sections = [("ComfyUI", run_check(installed.check_comfyui, comfyui)), ("Python", packages)]
    if any(finding.advice for finding in packages):
        skipped = Finding("Models are checked when the packages are installed.")
        return format_report([*sections, ("Models", [skipped])])
    try:
        sections += [("Settings", list(check_settings(comfyui, arguments))), *model_sections()]
    except Exception as error:  # ComfyUI's modules, or the packages that they import, can raise any of them
        return format_report([*sections, ("Models", [failed_check(error)])])
    return format_report([*sections, ("Machine", run_check(installed.describe_machine))])


def check_settings(comfyui: Path, arguments: Sequence[str]) -> Iterable[Finding]:
    """The models folder, and the files that add folders. Makes `folder_paths` usable in this process."""
    files = host_folders.load_folder_paths(comfyui, arguments)
    import folder_paths  # noqa: PLC0415

    yield Finding(f"models: {folder_paths.models_dir}")
    for file in files:
        if file.error is None:
            yield Finding(f"more folders: {file.path}")
        else:
            yield Finding(f"{file.path} cannot be read ({file.error}).", host_folders.CONFIG_ADVICE)


def model_sections(pack: Path = ROOT) -> Iterable[Section]:
    """The findings on models in ComfyUI's folders. pack: the pack's folder, which weights may lie in by mistake."""
    make_importable("nodes")
    from checks.models import ModelChecks  # noqa: PLC0415

    models = ModelChecks(pack)
    checks: dict[str, Check] = {
        "Folders": models.check_folders,
        "Unfinished downloads": models.check_unfinished,
        "Encoders": models.check_encoders,
        "Adapters": models.check_adapters,
        "Pairs": models.check_pairs,
        "Checkpoints": models.check_checkpoints,
        "In the wrong place": models.check_misplaced,
    }
    return [(title, run_check(check)) for title, check in checks.items()]


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Returns this command's options, and the remaining arguments, which are ComfyUI's own."""
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
        default=host_folders.ENCLOSING_COMFYUI,
        help="(default: the ComfyUI whose custom_nodes folder this pack is in)",
    )
    return parser.parse_known_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
