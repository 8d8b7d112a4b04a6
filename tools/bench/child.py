"""The benchmark's other side of the pipe: a process that is told what to do, and says what it took."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import psutil
import torch

from pack import make_importable


def take_stdout() -> TextIO:
    """Where answers go. Whatever libraries print goes to stderr from here on."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return replies


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]], replies: TextIO) -> None:
    """A JSON command a line from stdin, a JSON answer a line."""
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=replies)


def enter_host(comfyui: Path, device: str) -> None:
    """Makes ComfyUI and the pack importable, as the host itself has them."""
    sys.path.insert(0, str(comfyui))
    make_importable()
    from comfy.cli_args import args  # noqa: PLC0415

    args.cpu = device == "cpu"  # before anything else of comfy, which looks for a device


def nodes_over(encoders: Path, adapters: Path | None = None) -> ModuleType:
    """The module of the two loaders, which find what lies in these folders. After `enter_host`."""
    import folder_paths  # noqa: PLC0415

    from llm4gen.nodes import folders, load  # noqa: PLC0415

    folders.register()
    folder_paths.add_model_folder_path(folders.ENCODERS, str(encoders))
    if adapters:
        folder_paths.add_model_folder_path(folders.ADAPTERS, str(adapters))
    return load


def memory_now() -> int:
    """Bytes of this process in memory; mapped files count as far as they were read."""
    return psutil.Process().memory_info().rss


def memory_peak() -> int:
    """The most bytes that this process ever had in memory."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    import resource  # noqa: PLC0415

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def device_peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
