"""What is installed, against what the pack asks for: ComfyUI, Python, packages, and the machine under them."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from checks.findings import Finding
from host.comfyui import ROOT

GB = 1 << 30


def numbers(text: str) -> tuple[int, ...]:
    """A version, to compare: three numbers."""
    found = [int(part) for part in re.findall(r"\d+", text)[:3]]
    return (*found, 0, 0, 0)[:3]


def wanted(name: str) -> str:
    """The least version that pyproject.toml asks for."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(rf'^{name} = ">=(.*)"$', text, re.MULTILINE)[1]


def requirements() -> dict[str, str]:
    """Package → its least version; ComfyUI brings torch, whichever it likes."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    return {"torch": "0", **dict(re.findall(r"^([\w-]+)>=([\d.]+)", text, re.MULTILINE))}


def comfyui(folder: Path) -> Iterable[Finding]:
    source, least = folder / "comfyui_version.py", wanted("requires-comfyui")
    text = source.read_text(encoding="utf-8") if source.is_file() else ""
    match = re.search(r'^__version__ = "(.*)"', text, re.MULTILINE)
    found = match[1] if match else "of an unknown version"
    old = match is None or numbers(found) < numbers(least)
    cure = f"LLM4GEN needs {least} or newer: update ComfyUI." if old else None
    yield Finding(f"ComfyUI {found} in {folder}", cure)


def packages(comfyui: Path) -> Iterable[Finding]:
    least, found = wanted("requires-python"), sys.version.split()[0]
    old = numbers(found) < numbers(least)
    yield Finding(
        f"Python {found} ({sys.executable})", f"ComfyUI needs {least} or newer: use another." if old else None
    )
    pip, absent = f'"{sys.executable}" -m pip install', []
    for name, least in requirements().items():
        try:
            found = version(name)
        except PackageNotFoundError:
            absent.append(name)
            continue
        old = numbers(found) < numbers(least)
        yield Finding(f"{name} {found}", f'Update it: {pip} "{name}>={least}"' if old else None)
    if absent:
        yield Finding(
            f"This Python lacks {', '.join(absent)}.",
            "Run this with the Python that runs ComfyUI. If it is this one, install what ComfyUI needs: "
            f'{pip} -r "{comfyui / "requirements.txt"}"',
        )


def machine() -> Iterable[Finding]:
    import folder_paths  # noqa: PLC0415
    import psutil  # noqa: PLC0415 -- ComfyUI brings it

    memory = psutil.virtual_memory()
    yield Finding(f"memory: {memory.available / GB:.1f} GB free of {memory.total / GB:.1f} GB")
    place = Path(folder_paths.models_dir)
    place = next(folder for folder in (place, *place.parents) if folder.is_dir())
    yield Finding(f"disk: {shutil.disk_usage(place).free / GB:.1f} GB free where the models are")
    for card in [*cards()] or ["none that torch sees; the CPU does it, and takes longer"]:
        yield Finding(f"GPU: {card}")


def cards() -> Iterable[str]:
    """What torch can compute on beside the CPU; AMD's cards go by the name of cuda there."""
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
