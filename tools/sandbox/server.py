"""Starts a ComfyUI server with the pack in it, and stops it. Standard library only."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from host.comfyui import MODEL_FOLDERS, ROOT, HostError, Installation
from sandbox.process import ProcessTree

PACK = (
    "__init__.py",
    "nodes",
    "models",
    "web",
    "locales",
    "example_workflows",
    "requirements.txt",
    "pyproject.toml",
)
HOLDS = sys.platform == "linux"  # whether a port can be held for a server until it listens there
# Requests to this machine must not go through a proxy that the environment names.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def copy_pack(custom_nodes: Path, pack: Path | None = None) -> Path:
    """Copies the pack into a custom_nodes folder; a link would need rights that not every Windows user has.

    pack: a folder to copy completely, instead of this repository's files that ComfyUI needs.
    """
    target = custom_nodes / "llm4gen"
    if target.exists():
        shutil.rmtree(target)
    if pack:
        return Path(shutil.copytree(pack, target))
    target.mkdir(parents=True)
    for name in PACK:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy2(source, target / name)
    return target


def held_port() -> socket.socket:
    """A socket on a free port, which no other program is given while it is open.

    On Linux, a server that names the port can listen there nevertheless. Elsewhere, the socket must be closed first.
    """
    holder = socket.socket()
    if HOLDS:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


class Server:
    """A ComfyUI server with this pack in it. It runs inside a `with` block and writes nothing to ComfyUI's folder.

    base:          ComfyUI's base directory (input, output, user, custom_nodes).
    models:        models directories, with subfolders named as in ComfyUI's own.
    port:          None: a free port.
    arguments:     further arguments for ComfyUI's command line.
    pack:          a folder to run as the pack, instead of this repository.
    start_timeout: seconds.

    Entering the block raises HostError if ComfyUI ends, or does not answer in time.
    """

    start: Callable[..., ProcessTree] = ProcessTree  # how the process is started; the tests have a faster way

    def __init__(
        self,
        host: Installation,
        base: Path,
        models: Sequence[Path] = (),
        *,
        port: int | None = None,
        listen: str = "127.0.0.1",
        arguments: Sequence[str] = (),
        pack: Path | None = None,
        start_timeout: float = 300,
    ) -> None:
        self.host = host
        self.base = base.resolve()
        self.models = [path.resolve() for path in models]
        # Held from now on: a start takes seconds, in which another program may ask the system for a free port.
        self._holder = held_port()
        self.port = port or self._holder.getsockname()[1]
        if port or not HOLDS:
            self._holder.close()
        self.listen = listen
        self.arguments = list(arguments)
        self.pack = pack
        self.start_timeout = start_timeout
        self.log = self.base / "server.log"
        self._process: ProcessTree | None = None

    @property
    def url(self) -> str:
        all_addresses = self.listen in ("0.0.0.0", "::", "0.0.0.0,::")
        return f"http://{'127.0.0.1' if all_addresses else self.listen}:{self.port}"

    @property
    def output(self) -> Path:
        """The folder that ComfyUI saves pictures to."""
        return self.base / "output"

    def log_text(self) -> str:
        """Everything that the server has printed so far, without terminal colours."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    def get(self, path: str, timeout: float = 30) -> Any:
        """Sends a GET request, e.g. for `/object_info`, and returns the JSON of the answer."""
        with _OPENER.open(self.url + path, timeout=timeout) as answer:
            return json.load(answer)

    def save_workflow(self, name: str, workflow: dict[str, Any]) -> None:
        """Adds a workflow to the front end's list of saved workflows."""
        path = self.base / "user" / "default" / "workflows" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(workflow), encoding="utf-8")

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.alive

    @property
    def pid(self) -> int:
        """The id of ComfyUI's process, to measure its memory."""
        assert self._process is not None
        return self._process.pid

    def wait(self) -> int:
        """Blocks until the server ends by itself. Returns its exit code."""
        assert self._process is not None
        return self._process.wait()

    def __enter__(self) -> Server:
        (self.base / "user").mkdir(parents=True, exist_ok=True)
        copy_pack(self.base / "custom_nodes", self.pack)
        self._copy_example_picture()
        self._process = self.start(
            self._command(), folder=self.base, environment=self.host.environment(), log=self.log
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        self._holder.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the server and every process that it started."""
        self._holder.close()
        process, self._process = self._process, None
        if process is not None:
            process.stop()

    def _command(self) -> list[str]:
        command = [str(self.host.python), str(self.host.main)]
        if not self.host.has_accelerator and "--cpu" not in self.arguments:
            command.append("--cpu")
        command += ["--listen", self.listen, "--port", str(self.port)]
        command += ["--disable-auto-launch", "--disable-api-nodes"]
        command += ["--base-directory", str(self.base)]
        command += ["--database-url", f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}"]
        if self.models:
            command += ["--extra-model-paths-config", str(self._write_model_paths())]
        return command + self.arguments

    def _write_model_paths(self) -> Path:
        """Writes the YAML file for ComfyUI as JSON: that is valid YAML, and it quotes Windows paths correctly."""
        folders = {key: "\n".join(names) for key, names in MODEL_FOLDERS.items()}
        config = {f"models_{i}": {"base_path": str(path), **folders} for i, path in enumerate(self.models)}
        path = self.base / "model_paths.yaml"
        path.write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")
        return path

    def _copy_example_picture(self) -> None:
        """Copies the picture that ComfyUI ships in its input folder, because workflows with Load Image name it."""
        source, target = self.host.comfyui / "input" / "example.png", self.base / "input" / "example.png"
        if source.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            if not self.alive:
                raise HostError(f"ComfyUI ended while starting. The end of {self.log}:\n{self._log_tail()}")
            with contextlib.suppress(OSError, ValueError):
                self.get("/system_stats", timeout=5)
                return
            time.sleep(0.2)
        raise HostError(
            f"ComfyUI did not answer at {self.url} within {self.start_timeout:.0f} s. "
            f"The end of {self.log}:\n{self._log_tail()}"
        )

    def _log_tail(self, lines: int = 30) -> str:
        return "\n".join("  " + line for line in self.log_text().splitlines()[-lines:])
