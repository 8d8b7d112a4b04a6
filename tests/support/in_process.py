"""Starts ComfyUI in the test's own process, with stand-in models and an empty base directory."""

import asyncio
import atexit
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch

from host.dynamic_vram import start_dynamic_vram
from paths import COMFYUI, STANDINS

SHORT = "a red cat on a mat"


@cache
def start() -> SimpleNamespace:
    """Starts ComfyUI once.

    core:    ComfyUI's module nodes.py.
    ours:    the pack's node classes by node id.
    folders: ComfyUI's module folder_paths.py.
    """
    sys.path.insert(0, str(COMFYUI))
    from comfy.cli_args import args  # noqa: PLC0415

    args.cpu = not torch.cuda.is_available()
    args.base_directory = tempfile.mkdtemp(prefix="llm4gen-host-")
    atexit.register(shutil.rmtree, args.base_directory, ignore_errors=True)
    import folder_paths  # noqa: PLC0415

    start_dynamic_vram()

    import nodes as core  # noqa: PLC0415
    from llm4gen.nodes import comfy_entrypoint  # noqa: PLC0415

    extension = asyncio.run(comfy_entrypoint())
    asyncio.run(extension.on_load())
    ours = {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}
    use_models(folder_paths, standins())
    return SimpleNamespace(core=core, ours=ours, folders=folder_paths)


def standins() -> Path:
    """Returns the folder of the stand-in models, which are made if they are missing."""
    from sandbox.standins import ensure_standins  # noqa: PLC0415

    ensure_standins(STANDINS)
    return STANDINS


def use_models(folder_paths, models: Path) -> None:
    """Adds the folders of a models directory to those that ComfyUI searches."""
    for folder in models.iterdir():
        if folder.is_dir():
            folder_paths.add_model_folder_path(folder.name, str(folder))


def run(node, **inputs):
    """Executes a node and returns its only output."""
    (output,) = node.execute(**inputs).args
    return output
