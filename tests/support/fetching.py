"""Runs tools/fetch_weights.py with a local hub that publishes small weights, and with a new ComfyUI."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

import tiny
from hub_server import Hub, Repository
from paths import COMFYUI, ROOT, TOOLS

LLM4GEN, RANKGEN = "Shui-VL/LLM4GEN-models", "kalpeshk2011/rankgen-t5-xl-all"
UNET = "unet/diffusion_pytorch_model.safetensors"
OLDEST = ROOT / ".host" / "oldest"
MEBIBYTE = 1 << 20
# A statement that makes every disk report 1 PiB of free space.
FREE_SPACE = "import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(0, 0, 1 << 50)"
# The files and folders that ComfyUI or its user writes to.
WRITABLE = {"models", "custom_nodes", "input", "output", "temp", "user", "extra_model_paths.yaml"}


def fresh_comfyui(target: Path) -> Path:
    """Makes a ComfyUI folder that holds its code but no models. A server can be started from it."""
    target.mkdir()
    for path in COMFYUI.iterdir():
        # ComfyUI searches its other files beside these two, so links would lead it back to the original folder.
        if path.name in ("main.py", "folder_paths.py"):
            shutil.copy(path, target)
        elif path.name not in WRITABLE and path.suffix not in (".log", ".db"):
            (target / path.name).symlink_to(path)
    return target


class Fetching:
    """A hub, and a newly installed ComfyUI without models.

    base: the folder that all files are made in.
    """

    def __init__(self, base: Path, hub: Hub):
        self.base, self.hub = base, hub
        self.comfyui = fresh_comfyui(base / "ComfyUI")
        self.models = self.comfyui / "models"
        hub.repositories = {
            LLM4GEN: Repository({"README.md": b"", "projector.pth": b"", UNET: os.urandom(100_000)}),
            RANKGEN: Repository({"pytorch_model.bin": b""}, "apache-2.0"),
        }

    @property
    def unet(self) -> bytes:
        return self.hub.repositories[LLM4GEN].files[UNET]

    def publish_unet(self, size: int) -> None:
        self.hub.repositories[LLM4GEN].files[UNET] = os.urandom(size)

    def publish_models(self, **sizes: int) -> None:
        """Publishes a small adapter and a small encoder in the published formats. sizes: as in `adapter_tensors`."""
        adapter, encoder = self.base / "adapter.pth", self.base / "encoder.bin"
        torch.save(tiny.adapter_tensors(**sizes), adapter)
        torch.save(tiny.rankgen_tensors(tiny.t5_encoder()), encoder)
        self.hub.repositories[LLM4GEN].files["projector.pth"] = adapter.read_bytes()
        self.hub.repositories[RANKGEN].files["pytorch_model.bin"] = encoder.read_bytes()

    def environment(self, **changes: str) -> dict[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
        }
        settings = {
            "HF_HOME": str(self.base / "hf"),
            "HF_ENDPOINT": self.hub.url,
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return {**inherited, **settings, **changes}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(TOOLS / "fetch_weights.py"), "--comfyui", str(self.comfyui), *arguments]

    def run(
        self, *arguments: str, command: list[str] | None = None, cwd: Path | None = None, **environment: str
    ):
        return subprocess.run(
            command or self.command(*arguments),
            cwd=cwd,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(*arguments), env=self.environment(), stderr=subprocess.PIPE, text=True
        )

    def command_after(self, statement: str, *arguments: str) -> list[str]:
        """The command, run after a statement that can import and change the tool's modules."""
        code = f"import sys; sys.path.insert(0, {str(TOOLS)!r}); {statement}; import fetch_weights as tool; "
        code += "sys.exit(tool.main(sys.argv[1:]))"
        return [sys.executable, "-c", code, *self.command(*arguments)[2:]]

    def files(self) -> set[str]:
        """The files in the models folder, by their paths relative to it."""
        found = (path for path in self.models.rglob("*") if path.is_file())
        return {path.relative_to(self.models).as_posix() for path in found}


def error_line(done) -> str:
    """The only error line of a failed run. Other lines are those that libraries print about retries."""
    assert "Traceback" not in done.stderr, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return line


def wait_for(condition) -> None:
    """Waits until a condition is true, for one minute at most."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
