"""The ComfyUI that the pack is run in: where it is and how its Python is called. Standard library only."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
HOST_DIR = ROOT / ".host"
VENV_DIR = HOST_DIR / "venv"
COMFYUI_DIR = HOST_DIR / "ComfyUI"
STANDINS_DIR = HOST_DIR / "standins"

# Folders of a models directory, by ComfyUI's key; the second name is the older one that many still use.
MODEL_FOLDERS = {
    "checkpoints": ("checkpoints",),
    "text_encoders": ("text_encoders", "clip"),
    "llm4gen": ("llm4gen",),
    "diffusion_models": ("diffusion_models", "unet"),
    "vae": ("vae",),
    "loras": ("loras",),
    "controlnet": ("controlnet",),
    "embeddings": ("embeddings",),
}
WINDOWS = os.name == "nt"
_ACCELERATOR = "import torch; print(int(torch.cuda.is_available() or torch.backends.mps.is_available() or \
(hasattr(torch, 'accelerator') and torch.accelerator.is_available())))"


class HostError(RuntimeError):
    """The host could not be installed or started; the message says what to do."""


def venv_python() -> Path:
    """Where a virtual environment keeps its Python, relative to it."""
    return Path("Scripts", "python.exe") if WINDOWS else Path("bin", "python")


@dataclass(frozen=True)
class Installation:
    """A ComfyUI folder and the Python that runs it."""

    comfyui: Path
    python: Path

    @property
    def owned(self) -> bool:
        """Whether `setup` made it; an installation of the user's is left as it is."""
        return self.comfyui.parent == HOST_DIR

    @property
    def main(self) -> Path:
        return self.comfyui / "main.py"

    def environment(self) -> dict[str, str]:
        """The environment for every child: offline, UTF-8, nothing of ours on its path."""
        env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        env.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", PYTHONUTF8="1", PYTHONUNBUFFERED="1")
        local = [
            name for name in (env.get("NO_PROXY") or env.get("no_proxy"), "127.0.0.1", "localhost") if name
        ]
        env["NO_PROXY"] = env["no_proxy"] = ",".join(local)
        if not self.owned:
            env["PYTHONDONTWRITEBYTECODE"] = "1"  # leaves no trace in the user's folder
        return env

    @functools.cached_property
    def has_accelerator(self) -> bool:
        """Whether torch there sees more than the CPU; without, ComfyUI only starts with --cpu."""
        done = subprocess.run(
            [str(self.python), "-c", _ACCELERATOR],
            capture_output=True,
            text=True,
            env=self.environment(),
            check=False,
        )
        if done.returncode:
            tail = "\n".join(done.stderr.strip().splitlines()[-3:])
            raise HostError(f"{self.python} cannot run ComfyUI, since it cannot import torch:\n{tail}")
        return done.stdout.strip().endswith("1")


def given_installation(comfyui: Path, python: Path) -> Installation:
    """An installation that the user already has; it is used as it is."""
    host = Installation(comfyui.expanduser().resolve(), python)
    if not host.main.is_file():
        raise HostError(
            f"{host.comfyui} holds no main.py: --comfyui wants the folder that ComfyUI was installed to."
        )
    return host


def end_cleanly_when_terminated() -> None:
    """Lets SIGTERM unwind `with` blocks as Ctrl-C does, so that no server is left behind."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
