"""A running ComfyUI with the pack in it. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from host.comfyui import MODEL_FOLDERS, ROOT, WINDOWS, HostError, Installation

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
# A proxy of the environment must not be asked for addresses on this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def copy_pack(custom_nodes: Path, pack: Path | None = None) -> Path:
    """Puts the pack into a custom_nodes folder as files: not everyone may make symbolic links.

    pack: a folder to take whole, in place of this repository's.
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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A running ComfyUI with this pack in it, for as long as the `with` block lasts.

    `base` is its base directory (input, output, user, custom_nodes) and `models` are models directories laid
    out as ComfyUI's own. `pack` is a folder to run as the pack, in place of this repository. Nothing is written
    to the ComfyUI folder.
    """

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
        self.port = port or free_port()
        self.listen = listen
        self.arguments = list(arguments)
        self.pack = pack
        self.start_timeout = start_timeout
        self.log = self.base / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        everywhere = self.listen in ("0.0.0.0", "::", "0.0.0.0,::")
        return f"http://{'127.0.0.1' if everywhere else self.listen}:{self.port}"

    @property
    def output(self) -> Path:
        return self.base / "output"

    def log_text(self) -> str:
        """What the server has printed so far, without its colours."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    def get(self, path: str, timeout: float = 30) -> Any:
        """The JSON behind a GET of the server, e.g. `/object_info`."""
        with _OPENER.open(self.url + path, timeout=timeout) as answer:
            return json.load(answer)

    def save_workflow(self, name: str, workflow: dict[str, Any]) -> None:
        """Puts a workflow into the front end's own list of saved ones."""
        path = self.base / "user" / "default" / "workflows" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(workflow), encoding="utf-8")

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process that answers, for measuring it."""
        assert self._process is not None
        return self._process.pid

    def wait(self) -> int:
        """Blocks until the server ends by itself."""
        assert self._process is not None
        return self._process.wait()

    def __enter__(self) -> Server:
        (self.base / "user").mkdir(parents=True, exist_ok=True)
        copy_pack(self.base / "custom_nodes", self.pack)
        self._copy_example_picture()
        with self.log.open("wb") as log:
            # A group of its own, so that the whole tree can be ended, and Ctrl-C reaches us alone.
            own_group: dict[str, Any] = (
                {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
                if WINDOWS
                else {"start_new_session": True}
            )
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.base,
                env=self.host.environment(),
                **own_group,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _command(self) -> list[str]:
        command = [str(self.host.python), str(self.host.main)]
        if not self.host.has_accelerator and "--cpu" not in self.arguments:
            command.append("--cpu")
        command += [
            "--listen",
            self.listen,
            "--port",
            str(self.port),
            "--disable-auto-launch",
            "--disable-api-nodes",
        ]
        command += ["--base-directory", str(self.base)]
        command += ["--database-url", f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}"]
        if self.models:
            command += ["--extra-model-paths-config", str(self._write_model_paths())]
        return command + self.arguments

    def _write_model_paths(self) -> Path:
        """JSON is YAML too, and quotes a Windows path rightly without a YAML library."""
        folders = {key: "\n".join(names) for key, names in MODEL_FOLDERS.items()}
        config = {f"models_{i}": {"base_path": str(path), **folders} for i, path in enumerate(self.models)}
        path = self.base / "model_paths.yaml"
        path.write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")
        return path

    def _copy_example_picture(self) -> None:
        """ComfyUI ships a picture in its own input folder; workflows with Load Image start from it."""
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

    def stop(self) -> None:
        """Ends the server and everything that it started; gently first."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            with contextlib.suppress(OSError):
                process.send_signal(signal.CTRL_BREAK_EVENT if WINDOWS else signal.SIGINT)  # type: ignore[attr-defined]
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        if WINDOWS:
            if process.poll() is None:
                subprocess.run(
                    ["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False
                )
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
