"""Checks of ComfyUI, Python and its packages against the versions that the pack needs, and facts about the machine."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from checks.findings import Finding
from host.comfyui import ROOT

GB = 1 << 30  # as operating systems and torch count memory


def version_numbers(text: str) -> tuple[int, ...]:
    """The first three numbers of a version, to compare it with another. Missing numbers are 0."""
    found = [int(part) for part in re.findall(r"\d+", text)[:3]]
    return (*found, 0, 0, 0)[:3]


def is_older(found: str, required: str) -> bool:
    """Whether a version is older than the required one."""
    return version_numbers(found) < version_numbers(required)


def required_version(entry: str) -> str:
    """The oldest version that an entry of pyproject.toml allows, such as `requires-comfyui`."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(rf'^{entry} = ">=(.*)"$', text, re.MULTILINE)[1]


def requirements() -> dict[str, str]:
    """The required packages → the oldest version of each. Any torch will do, because ComfyUI chooses it."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    return {"torch": "0", **dict(re.findall(r"^([\w-]+)>=([\d.]+)", text, re.MULTILINE))}


def check_comfyui(folder: Path) -> Iterable[Finding]:
    """The version of the ComfyUI in a folder."""
    source, required = folder / "comfyui_version.py", required_version("requires-comfyui")
    text = source.read_text(encoding="utf-8") if source.is_file() else ""
    match = re.search(r'^__version__ = "(.*)"', text, re.MULTILINE)
    found = match[1] if match else "of an unknown version"
    if match is None or is_older(found, required):
        advice = f"LLM4GEN needs {required} or newer: update ComfyUI."
    else:
        advice = None
    yield Finding(f"ComfyUI {found} in {folder}", advice)


def check_packages(comfyui: Path) -> Iterable[Finding]:
    """The versions of this Python and of the packages that the pack needs."""
    required, found = required_version("requires-python"), sys.version.split()[0]
    old = is_older(found, required)
    yield Finding(
        f"Python {found} ({sys.executable})", f"Use Python {required} or newer for ComfyUI." if old else None
    )
    pip, absent = f'"{sys.executable}" -m pip install', []
    for name, required in requirements().items():
        try:
            found = version(name)
        except PackageNotFoundError:
            absent.append(name)
            continue
        old = is_older(found, required)
        yield Finding(f"{name} {found}", f'Update it: {pip} "{name}>={required}"' if old else None)
    if absent:
        yield Finding(
            f"This Python lacks {', '.join(absent)}.",
            "Run this with the Python that runs ComfyUI. If this is that Python, install what ComfyUI needs: "
            f'{pip} -r "{comfyui / "requirements.txt"}"',
        )


def describe_machine() -> Iterable[Finding]:
    """Free memory, free disk space for models, and the GPUs. Needs ComfyUI's `folder_paths`."""
    import folder_paths  # noqa: PLC0415
    import psutil  # noqa: PLC0415 -- ComfyUI requires it

    memory = psutil.virtual_memory()
    yield Finding(f"memory: {memory.available / GB:.1f} GB free of {memory.total / GB:.1f} GB")
    models = Path(folder_paths.models_dir)
    existing = next(folder for folder in (models, *models.parents) if folder.is_dir())
    yield Finding(f"disk: {shutil.disk_usage(existing).free / GB:.1f} GB free on the disk of {models}")
    found = list(gpus())
    for gpu in found:
        yield Finding(f"GPU: {gpu}")
    if not found:
        yield Finding("GPU: torch finds none, so the CPU computes, which takes longer")


def gpus() -> Iterable[str]:
    """The devices that torch can compute on, except the CPU. torch's name for AMD's cards is cuda, too."""
    import torch  # noqa: PLC0415

    if torch.cuda.is_available():
        for card in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(card)
            yield f"{torch.cuda.get_device_name(card)}, {free / GB:.1f} GB free of {total / GB:.1f} GB"
    intel = getattr(torch, "xpu", None)
    if intel and intel.is_available():
        for card in range(intel.device_count()):
            total = intel.get_device_properties(card).total_memory
            yield f"{intel.get_device_name(card)}, {total / GB:.1f} GB"
    if torch.backends.mps.is_available():
        yield "Apple's"
