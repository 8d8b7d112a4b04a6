"""Runs what a benchmark compares: makes the files, starts the processes, and lets the ways take turns."""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import load_file

from bench.files import FULL, PICKLE, QUICK
from bench.report import Check, Table, machine, verdict, write_json
from host.comfyui import COMFYUI_DIR, HOST_DIR, TOOLS, Installation, end_cleanly_when_terminated

SPARE = 1 << 30  # bytes of the disk that are left to other programs


@dataclass(frozen=True)
class Way:
    """A way to compute.

    name:   as in the tables.
    method: `published`, `torch.load`, `transformers` or `ours`; see the worker's table.
    kind:   the kind of file.
    path:   the weight file.
    dtype:  the choice in Load LLM Encoder, or the weights' dtype for another method.
    """

    name: str
    method: str
    kind: str
    path: Path
    dtype: str
    device: str = "cpu"

    @property
    def label(self) -> str:
        """The name, and the device unless it is the CPU."""
        return self.name if self.device == "cpu" else f"{self.name}, {self.device}"


@dataclass(frozen=True)
class Step:
    """A call that is timed.

    texts: the prompts.
    known: whether the LLM has read each of them before.
    fused: whether the call ends at the UNet's context, or at the LLM's states.
    """

    name: str
    texts: tuple[str, ...]
    known: tuple[bool, ...]
    fused: bool = False


@dataclass
class Figures:
    """What was measured of a way.

    load, memory: what these functions of the worker returned, each time.
    seconds:      by the name of the step.
    differences:  from the reference, by the name of the step: the largest, and the relative one (norm over norm).
    """

    load: list[dict[str, float]] = field(default_factory=list)
    memory: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    differences: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))


class Process:
    """A process of a worker, which calls its functions. What libraries print there goes into the log."""

    def __init__(self, options: argparse.Namespace, log: Path, worker: str = "bench.worker") -> None:
        self.log = log
        # Libraries make temporary folders, which are to disappear with the log.
        temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(log.parent))
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", worker],
                cwd=TOOLS,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=Installation(options.comfyui, Path(sys.executable)).environment() | temporary,
            )
        pickle.dump(options, self.process.stdin)

    def call(self, function: str, *arguments: Any) -> Any:
        """Raises: SystemExit if the process ends, as it does after an error."""
        try:
            pickle.dump((function, arguments), self.process.stdin)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)
        except (BrokenPipeError, EOFError) as error:
            code = self.process.wait()
            output = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
            message = f"A process ended with exit code {code} in {function} {arguments}. Its last output:"
            raise SystemExit("\n".join([message, *output])) from error

    def worked(self) -> float:
        """Seconds of processor time that it has taken, over all cores."""
        if self.process.poll() is not None:
            return 0.0
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def close(self) -> None:
        self.process.kill()  # it holds nothing that would have to be saved
        self.process.communicate()


class OtherPrograms:
    """How many cores other programs keep busy, from the making of this object until it is asked."""

    def __init__(self, worked: Callable[[], float]) -> None:
        """worked: the seconds of processor time that the benchmark's processes have taken."""
        psutil.cpu_percent()  # the next call tells what happened since this one
        self.worked, self.worked_before, self.start = worked, worked(), time.perf_counter()

    def cores(self) -> float:
        busy = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
        return busy - (self.worked() - self.worked_before) / (time.perf_counter() - self.start)


class Runner:
    """Measures each way in a process of its own. With `--quick`, all ways on one device share a process.

    models:     the models, by name.
    figures:    what was measured.
    about:      `describe` of the worker.
    devices:    where the ways run. The first of them computes what all others are compared with.
    busy_cores: how many cores other programs kept busy during the rounds.
    """

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options, self.scratch = options, scratch
        self.models = (QUICK if options.quick else FULL).models(options.models)
        self.figures: dict[Way, Figures] = defaultdict(Figures)
        self.processes: dict[Way | str, Process] = {}
        self.worked_before = self.busy_cores = 0.0
        self.about = self.process("cpu").call("describe")
        offered = ["cpu", *filter(None, [self.about["accelerator"]])]
        if options.device not in (None, *offered):
            raise SystemExit(
                f"--device {options.device}: torch {self.about['torch']} offers {' and '.join(offered)}."
            )
        self.devices = [options.device] if options.device else offered

    def process(self, key: Way | str) -> Process:
        """The process of a way, or the one that makes files. It is started if it does not exist."""
        if isinstance(key, Way) and self.options.quick:
            key = key.device
        if key not in self.processes:
            self.processes[key] = Process(self.options, self.scratch / f"{len(self.processes)}.log")
        return self.processes[key]

    def stop(self) -> None:
        """Ends all processes."""
        self.worked_before = self.worked() - time.process_time()
        while self.processes:
            self.processes.popitem()[1].close()

    def worked(self) -> float:
        """Seconds of processor time that this process and those that it started have taken."""
        return time.process_time() + self.worked_before + sum(p.worked() for p in self.processes.values())

    def make_files(self, name: str, kinds: Sequence[str]) -> list[str]:
        """Makes the missing files of a model. Returns the kinds that exist: the disk may lack room for a pickle.

        Raises: SystemExit if it lacks room for another kind.
        """
        model = self.models[name]
        for kind in kinds:
            folder, needed = model.file(kind).parent, model.size(kind)
            if folder.is_dir():
                continue
            free = shutil.disk_usage(folder.parent).free
            if free > needed + SPARE:
                say(f"Making {folder.name} …")
                self.process("cpu").call("make", model, kind)
            elif kind == PICKLE:
                say("The disk has no room for a pickle of the weights, so its loading is not measured.")
            else:
                raise SystemExit(
                    f"{folder.name} needs {needed / 1e9:.1f} GB in {folder.parent}, where {free / 1e9:.1f} GB are free "
                    "(1 GB is left to other programs). Make room, or use --quick, which needs less than 1 GB."
                )
        return [kind for kind in kinds if model.file(kind).is_file()]

    @contextmanager
    def prepared(self, ways: Sequence[Way]) -> Iterator[None]:
        """Starts the ways' processes, whose files are brought into the system's file cache before."""
        if not self.options.quick:
            self.stop()
        for way in ways:
            with way.path.open("rb") as file:
                while file.read(64 << 20):
                    pass
            self.process(way)
        self.note("prepare", ways)
        yield
        if not self.options.quick:
            self.stop()

    def note(self, function: str, ways: Sequence[Way]) -> None:
        """Calls a function of the worker for each way, and notes what it returns under its name."""
        for way in ways:
            if function == "load":
                say(f"Loading: {way.label} ({way.kind}) …")
            result = self.process(way).call(function, way)
            if result:
                getattr(self.figures[way], function).append(result)

    def take_turns(self, ways: Sequence[Way], steps: Sequence[Step], *, timed: bool, saved: bool) -> None:
        """All ways do one step before any does the next, so that what slows the machine for a while slows all."""
        for step in steps:
            for way in ways:
                path = self.saved(way, step) if saved else None
                seconds = self.process(way).call("run", way, step, path)
                if timed:
                    self.figures[way].seconds[step.name].append(seconds)

    def saved(self, way: Way, step: Step) -> Path:
        """The file for the results of a step."""
        return self.scratch / f"{way.label} {way.kind} {step.name}"

    def compare(self, ways: Sequence[Way], steps: Sequence[Step], reference: Way) -> None:
        """Compares what the ways saved with what the reference saved. The worst of a step's results counts."""
        for step in steps:
            wanted = load_file(self.saved(reference, step))
            for way in ways:
                found = load_file(self.saved(way, step))
                apart = {name: found[name] - wanted[name] for name in wanted}
                largest = max(float(np.abs(values).max()) for values in apart.values())
                norms = [np.linalg.norm(apart[name]) / np.linalg.norm(wanted[name]) for name in wanted]
                self.figures[way].differences[step.name].append((largest, float(max(norms))))

    def rounds(self) -> Iterator[int]:
        """Counts the rounds, and measures meanwhile how busy other programs are."""
        others = OtherPrograms(self.worked)
        for number in range(1, self.options.rounds + 1):
            say(f"Round {number} of {self.options.rounds} …")
            yield number
        self.busy_cores = max(self.busy_cores, others.cores())


def arguments(description: str) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    comfyui, models = os.environ.get("LLM4GEN_COMFYUI", COMFYUI_DIR), HOST_DIR / "bench"
    parser.add_argument("--quick", action="store_true", help="tiny models, to try the benchmark itself")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is timed (default: 3)")
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's own choice)")
    parser.add_argument(
        "--device",
        help="measure only there: cpu, or cuda, mps or xpu (default: the CPU, and the GPU if there is one)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to a file as well")
    parser.add_argument("--comfyui", type=Path, default=comfyui, help="(default: %(default)s)")
    parser.add_argument("--models", type=Path, default=models, help="for the weights (default: %(default)s)")
    return parser


@contextmanager
def in_scratch(description: str) -> Iterator[argparse.Namespace]:
    """The options of a benchmark that needs no files of weights. Their `models` is a folder that goes at the end."""
    end_cleanly_when_terminated()
    options = arguments(description).parse_args()
    options.comfyui = Path(options.comfyui).resolve()
    with tempfile.TemporaryDirectory(prefix="llm4gen-bench-") as scratch:
        options.models = Path(scratch)
        yield options


@contextmanager
def measuring(options: argparse.Namespace, template: str) -> Iterator[Runner]:
    """Gives a runner. The weights stay in the folder of the models for the next run, but not those of `--quick`.

    template: the LLM's prompt, as in a recipe.
    """
    end_cleanly_when_terminated()
    kept, comfyui = options.models.expanduser().resolve(), Path(options.comfyui).resolve()
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="running-", dir=kept) as scratch:
        models = Path(scratch) if options.quick else kept
        for key in ("text_encoders", "llm4gen"):
            (models / key).mkdir(exist_ok=True)
        tokenizer = comfyui / "comfy" / "text_encoders" / "t5_tokenizer"
        vars(options).update(comfyui=comfyui, models=models, template=template, tokenizer=tokenizer)
        options.rounds = max(1, options.rounds)
        runner = Runner(options, Path(scratch))
        try:
            yield runner
        finally:
            runner.stop()
    if not options.quick:
        size = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
        say(f"The weights stay for the next run ({size / 1e9:.1f} GB). When you are done, delete {kept}.")


def conclude(runner: Runner, tables: Sequence[Table], checks: Sequence[Check], about: str = "") -> int:
    """Prints the result, and returns the exit code: 1 if a target was missed.

    checks: the targets; none if what they are for was not measured.
    about:  a remark on the targets.
    """
    text = "\n\n".join(map(str, tables))
    print(f"\n{text}\n\n{machine(runner.about, runner.options.rounds, runner.busy_cores)}\n")
    if runner.options.json:
        write_json(runner.options.json, tables, runner.about, [] if runner.options.quick else checks)
    if runner.options.quick:
        print(
            "Not judged: the models are tiny and all ways share a process. Only the differences mean something."
        )
    elif not checks:
        print("Not judged: what the targets are for was not measured.")
    else:
        print(verdict(checks, about))
        return 0 if all(is_met for is_met, _ in checks) else 1
    return 0


def say(line: str) -> None:
    """Reports progress on stderr; only the result goes to stdout."""
    print(line, file=sys.stderr, flush=True)
