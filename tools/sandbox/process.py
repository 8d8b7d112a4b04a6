"""A child process that is ended together with everything it started. Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from host.comfyui import WINDOWS

STOP_SECONDS = 10  # that the process gets to end by itself before it is killed


class ProcessTree:
    """A command and its own children, running in the background. Their output goes to a log file."""

    def __init__(
        self, command: Sequence[str], *, folder: Path, environment: dict[str, str], log: Path
    ) -> None:
        # With a process group of its own, the whole tree can be ended, and Ctrl-C reaches only the parent.
        own_group: dict[str, Any] = (
            {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
            if WINDOWS
            else {"start_new_session": True}
        )
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
                **own_group,
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> int:
        """Blocks until the process ends by itself. Returns its exit code."""
        return self._process.wait()

    def stop(self) -> None:
        """Interrupts the process as Ctrl-C would, then kills what is left of the tree."""
        if self.alive:
            with contextlib.suppress(OSError):
                self._process.send_signal(signal.CTRL_BREAK_EVENT if WINDOWS else signal.SIGINT)  # type: ignore[attr-defined]
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        if not WINDOWS:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        elif self.alive:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(self.pid)], capture_output=True, check=False)
        self._process.wait()
