"""Starts ComfyUI servers as forks of one process that has imported ComfyUI's requirements.

Three quarters of the processor time of a start are the imports of torch and other packages. A fork has them already,
and then runs ComfyUI's main.py from its first line, with its own arguments, folder, log and process group.
ComfyUI's own modules are not among the imports, because they read the arguments when they are imported.
"""

import json
import os
import select
import subprocess
from contextlib import contextmanager
from pathlib import Path

from sandbox.process import ProcessTree
from sandbox.server import Server

PACKAGES = (
    "torch",
    "torch._dynamo",
    "torchvision",
    "torchaudio",
    "torchsde",
    "transformers",
    "kornia",
    "scipy.integrate",
    "scipy.ndimage",
    "scipy.stats",
    "sqlalchemy.orm",
    "alembic.command",
    "aiohttp.web",
    "av",
    "comfy_kitchen",
    "spandrel",
)


class WarmStart:
    """Stands for `ProcessTree` in a Server: a command of the same Python in the same environment is forked.

    Any other command is started as ever, so a test that changes the environment gets a process that read it. So is
    any on a GPU, where main.py sets variables before torch is imported.
    """

    def __init__(self, host):
        self.host, self.python, self.environment = host, str(host.python), fixed(host.environment())
        self._source = None

    def __call__(self, command, *, folder, environment, log):
        same = command[0] == self.python and fixed(environment) == self.environment
        if not same or self.host.has_accelerator:
            return ProcessTree(command, folder=folder, environment=environment, log=log)
        if self._source is None:
            self._source = self._import()
        request = {"command": command, "folder": str(folder), "environment": environment, "log": str(log)}
        self._source.stdin.write(json.dumps(request) + "\n")
        self._source.stdin.flush()
        pid = self._source.stdout.readline()
        if not pid:
            raise RuntimeError(f"{self.python} -m warm_source ended; its error is on standard error.")
        return ForkedTree(int(pid))

    def _import(self):
        return subprocess.Popen(
            [self.python, "-m", "warm_source", *PACKAGES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent,
            env=self.environment,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests, which end it
        )

    def close(self):
        if self._source is not None:
            self._source.communicate()


class ForkedTree(ProcessTree):
    """A fork of another process than this one, ended as any other server is."""

    def __init__(self, pid):
        self._process = Forked(pid)


class Forked:
    """What `ProcessTree` uses of subprocess.Popen, for a process that is not a child of this one."""

    def __init__(self, pid):
        self.pid = pid
        try:
            self._handle = os.pidfd_open(pid)
        except ProcessLookupError:  # it has ended already
            self._handle = None

    def poll(self):
        """0 after the end, however it was, because only the parent is told the exit code."""
        if self._handle is not None and select.select([self._handle], [], [], 0)[0]:
            os.close(self._handle)
            self._handle = None
        return 0 if self._handle is None else None

    def wait(self, timeout=None):
        if self._handle is not None and not select.select([self._handle], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.poll()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)


def fixed(environment):
    """The environment without what pytest changes for each test."""
    return {name: value for name, value in environment.items() if name != "PYTEST_CURRENT_TEST"}


@contextmanager
def servers(host):
    """Servers are forked inside this block, where the system can wait for a process that is not a child."""
    if not hasattr(os, "pidfd_open"):
        yield
        return
    before, Server.start = Server.start, WarmStart(host)
    try:
        yield
    finally:
        Server.start.close()
        Server.start = before
