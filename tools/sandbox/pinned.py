"""Downloads pinned files with pip, and reports what set-up does, step by step. Standard library only."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from host.comfyui import HostError

NETWORK_HINT = (
    "Can pip reach the package index (it uses its own configuration and environment variables)? "
    "Is there enough disk space (about 8 GB)? Run the same command again: it continues where it stopped."
)


class step:
    """Prints the name of a step of a command when it starts, and how long it took when it ends."""

    def __init__(self, name: str, command: str = "setup") -> None:
        self.name, self.command = name, command

    def __enter__(self) -> None:
        self.start = time.monotonic()
        print(f"{self.command}: {self.name} ...", end="", flush=True)

    def __exit__(self, kind: type | None, *_: object) -> None:
        print(" failed" if kind else f" {time.monotonic() - self.start:.0f} s", flush=True)


def download(package: str, sha256: str, python: Path, folder: Path, *options: str, hint: str = "") -> Path:
    """Downloads the file of one package version into an empty folder, and returns its path.

    package: name and version, as `einops==0.8.1`.
    options: further arguments for `pip download`, to choose between a wheel and a source distribution.
    hint:    see `call`.
    Raises: HostError if the download fails or the file has another hash.
    """
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{package} --hash=sha256:{sha256}\n", encoding="utf-8")
    # pip runs a source distribution's build script to read its metadata. With --require-hashes it first checks the
    # file's hash.
    command = [python, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "-r", requirement]
    call([*command, *options, "-d", folder], folder, hint)
    files = [path for path in folder.iterdir() if path != requirement]
    if len(files) != 1:
        raise HostError(f"pip downloaded {len(files)} files for {package}, but one was expected.")
    return files[0]


def call(command: list[str | Path], folder: Path, hint: str = "") -> None:
    """Runs a command in a folder, and shows its output only if it fails.

    hint: advice that ends the error's message.
    Raises: HostError.
    """
    line = list(map(str, command))
    environment = {**os.environ, "PYTHONUTF8": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, cwd=folder, check=False
    )
    if done.returncode:
        output = done.stdout.decode("utf-8", "replace").strip()
        tail = "\n".join("  " + text for text in output.splitlines()[-15:])
        raise HostError(f"{' '.join(line)}\nended with code {done.returncode}:\n{tail}\n{hint}".rstrip())
