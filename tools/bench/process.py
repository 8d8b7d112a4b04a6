"""A process that measures one variant when told to: the benchmark's side of the pipe."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from bench.report import Variant
from host.comfyui import COMFYUI_DIR, HOST_DIR, TOOLS, Installation


def arguments(description: str) -> argparse.ArgumentParser:
    """What every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="four layers: to try the tool itself")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed (3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's (its default)")
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("LLM4GEN_COMFYUI", COMFYUI_DIR))
    parser.add_argument("--models", type=Path, default=HOST_DIR / "bench", help="where the weights are kept")
    return parser


class Worker:
    def __init__(self, variant: Variant, command: Sequence[str], comfyui: Path) -> None:
        """command: a module of tools/ and its arguments. It answers each line of JSON with one."""
        self.variant = variant
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 -- lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=TOOLS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            encoding="utf-8",
            env=Installation(comfyui, Path(sys.executable)).environment(),
        )

    def ask(self, do: str, **command: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": do, **command}) + "\n")
            self.process.stdin.flush()
        reply = self.process.stdout.readline()
        if not reply:
            self.process.wait()
            self.log.seek(0)
            tail = "\n".join(self.log.read().decode(errors="replace").splitlines()[-20:])
            raise SystemExit(f"{self.variant.label} ended with exit code {self.process.returncode}.\n{tail}")
        return json.loads(reply)

    def worked(self) -> float:
        """Seconds of processor time that it took so far, over all cores."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def close(self) -> None:
        self.process.kill()  # it holds nothing that would have to be saved
        self.process.communicate()
        self.log.close()


@contextlib.contextmanager
def running(commands: dict[Variant, Sequence[str]], comfyui: Path) -> Iterator[list[Worker]]:
    """A process for each variant, its weights in the system's file cache."""
    workers: list[Worker] = []
    try:
        for variant, command in commands.items():
            read_through(variant.encoder)
            workers.append(Worker(variant, command, comfyui))
        yield workers
    finally:
        for worker in workers:
            worker.close()


def read_through(place: Path) -> None:
    """Has the system keep a file, or a folder's files, in its cache."""
    for path in sorted(place.iterdir()) if place.is_dir() else [place]:
        with path.open("rb") as file:
            while file.read(64 << 20):
                pass


def difference(truth: Path, found: Path) -> tuple[float, float]:
    """Of two files of tensors, the worst: largest difference, and norm of the difference over the norm."""
    wanted, got = load_file(truth), load_file(found)
    pairs = [(wanted[name], got[name]) for name in wanted]
    return (
        max(float((a - b).abs().max()) for a, b in pairs),
        max(float((a - b).norm() / a.norm()) for a, b in pairs),
    )


def say_what_stays(models: Path) -> None:
    """The weights are made once: many gigabytes that nobody would look for."""
    files = (path.stat() for path in models.rglob("*") if path.is_file())
    size = sum({found.st_ino: found.st_size for found in files}.values())  # some have two names
    say(f"The weights stay for the next run, {size / 1e9:.1f} GB: delete {models} when you are done.")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
