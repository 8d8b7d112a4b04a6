"""A ComfyUI installation: its folders, its Python, and the environment to run it in. Standard library only."""

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

# The folders of a models directory, by ComfyUI's key. A second name is the older one, which many people still use.
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
# Names folders of packages that child processes import beside those of their Python, separated as in PATH. PYTHONPATH
# is not handed on, because what a user put there for other programs could hide a package of ComfyUI's.
PACKAGES = "LLM4GEN_PACKAGES"
WINDOWS = os.name == "nt"
_PRINT_HAS_ACCELERATOR = """
import torch
found = torch.cuda.is_available() or torch.backends.mps.is_available()
print(int(found or (hasattr(torch, "accelerator") and torch.accelerator.is_available())))
"""


class HostError(RuntimeError):
    """ComfyUI could not be found, installed or started. The message says what to do."""


def venv_python() -> Path:
    """The path of the Python in a virtual environment, relative to the environment's folder."""
    return Path("Scripts", "python.exe") if WINDOWS else Path("bin", "python")


@dataclass(frozen=True)
class Installation:
    """A ComfyUI folder and the Python that runs it."""

    comfyui: Path
    python: Path

    @property
    def owned(self) -> bool:
        """Whether `dev.py setup` made this installation. One of the user's is never changed."""
        return self.comfyui.parent == HOST_DIR

    @property
    def main(self) -> Path:
        return self.comfyui / "main.py"

    def environment(self) -> dict[str, str]:
        """The environment variables for child processes: offline, UTF-8, and with no import paths but `PACKAGES`."""
        env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        if env.get(PACKAGES):
            env["PYTHONPATH"] = env[PACKAGES]
        env.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", PYTHONUTF8="1", PYTHONUNBUFFERED="1")
        without_proxy = [env.get("NO_PROXY") or env.get("no_proxy"), "127.0.0.1", "localhost"]
        env["NO_PROXY"] = env["no_proxy"] = ",".join(filter(None, without_proxy))
        # The user's folder gets no __pycache__. Our own does in any case, or each start would compile ComfyUI anew.
        env["PYTHONDONTWRITEBYTECODE"] = "" if self.owned else "1"
        return env

    @functools.cached_property
    def has_accelerator(self) -> bool:
        """Whether this installation's torch can use a GPU. If it cannot, ComfyUI only starts with --cpu.

        Raises: HostError if torch cannot be imported.
        """
        done = subprocess.run(
            [str(self.python), "-c", _PRINT_HAS_ACCELERATOR],
            capture_output=True,
            text=True,
            env=self.environment(),
            check=False,
        )
        if done.returncode:
            tail = "\n".join(done.stderr.strip().splitlines()[-3:])
            raise HostError(f"{self.python} cannot run ComfyUI, because it cannot import torch:\n{tail}")
        return done.stdout.strip().endswith("1")


def given_installation(comfyui: Path, python: Path) -> Installation:
    """An installation that the user already has. Raises: HostError if the folder holds no ComfyUI."""
    host = Installation(comfyui.expanduser().resolve(), python)
    if not host.main.is_file():
        raise HostError(
            f"{host.comfyui} holds no main.py. --comfyui must name the folder that ComfyUI was installed to."
        )
    return host


def end_cleanly_when_terminated() -> None:
    """Lets SIGTERM end this process as Ctrl-C does, through its `with` blocks, so that no server keeps running."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
