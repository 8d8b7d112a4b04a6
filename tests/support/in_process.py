"""ComfyUI in the test's own process, with the stand-in models and nothing of the user's."""

import asyncio
import atexit
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch

from paths import COMFYUI, STANDINS

SHORT = "a red cat on a mat"


@cache
def start() -> SimpleNamespace:
    """Starts the host once: `core` is its nodes.py, `ours` the pack's nodes by id, `folders` its folder_paths."""
    sys.path.insert(0, str(COMFYUI))
    from comfy.cli_args import args  # noqa: PLC0415

    args.cpu = not torch.cuda.is_available()
    args.base_directory = tempfile.mkdtemp(prefix="llm4gen-host-")
    atexit.register(shutil.rmtree, args.base_directory, ignore_errors=True)
    import folder_paths  # noqa: PLC0415

    import nodes as core  # noqa: PLC0415
    from llm4gen.nodes import comfy_entrypoint  # noqa: PLC0415

    extension = asyncio.run(comfy_entrypoint())
    asyncio.run(extension.on_load())
    ours = {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}
    use_models(folder_paths, standins())
    return SimpleNamespace(core=core, ours=ours, folders=folder_paths)


def standins() -> Path:
    """The stand-in models, made if they are not there."""
    from sandbox.standins import ensure_standins  # noqa: PLC0415

    ensure_standins(STANDINS)
    return STANDINS


def use_models(folder_paths, models: Path) -> None:
    """Adds a models directory to the host's."""
    for folder in models.iterdir():
        if folder.is_dir():
            folder_paths.add_model_folder_path(folder.name, str(folder))


def run(node, **inputs):
    """A node's only output."""
    (output,) = node.execute(**inputs).args
    return output
