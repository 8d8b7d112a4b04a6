"""Runs the tests that need a GPU, then the benchmarks on it. Prints their tables, and last one line for each part.

Everything that is printed and measured is also written to files. Nothing is downloaded or installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.etree import ElementTree

# What the bundle cannot bring, because it belongs to the machine's torch or is large.
NEEDED = ("torch", "torchvision", "torchaudio", "transformers", "scipy", "PIL")
SHOWN = 25  # lines of the log of a part that failed


@dataclass(frozen=True)
class Part:
    """A command, and how much of the time that is left it may take."""

    name: str
    command: Sequence[str | Path]
    share: float = 1.0


@dataclass
class Result:
    """What came out of a part.

    code:    the exit code; None: its time was over.
    outcome: in words.
    numbers: the benchmark's JSON, or how many tests had which result.
    failed:  names of the tests that failed.
    """

    code: int | None
    seconds: float
    outcome: str
    numbers: dict = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def main() -> int:
    options = _parse()
    sys.path[:0] = [str(path) for path in packages(options)]  # this process reads JSON of its own, and psutil
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"error: {sys.executable} lacks {', '.join(missing)}. Use a Python that has them.",
            file=sys.stderr,
        )
        return 1
    from host.comfyui import PACKAGES, HostError, Installation, end_cleanly_when_terminated  # noqa: PLC0415

    end_cleanly_when_terminated()
    os.environ[PACKAGES] = os.pathsep.join(map(str, packages(options)))
    host = Installation(options.folder / "ComfyUI", Path(sys.executable))
    try:
        if not host.has_accelerator:
            print("error: torch sees no GPU here. --pretend tries the bundle without one.", file=sys.stderr)
            return 1
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    results = run_all(parts_of(options), options.out, options.minutes * 60, host)
    report(results, options.out)
    return 0 if all(result.code == 0 for result in results.values()) else 1


def packages(options: argparse.Namespace) -> list[Path]:
    """The folders of packages for all processes."""
    tests = options.folder / "llm4gen" / "tests" / "support"
    return [options.folder / "packages", *([tests / "pretend_everywhere"] if options.pretend else [])]


def parts_of(options: argparse.Namespace) -> list[Part]:
    comfyui, out = options.folder / "ComfyUI", options.out
    test: list[str | Path] = ["dev.py", "test", "--comfyui", comfyui, "-m", "gpu", "-p", "no:cacheprovider"]
    test += ["--junitxml", out / "tests.xml", *(["-k", options.select] if options.select else [])]
    bench: list[str | Path] = [
        "--device",
        "cuda",
        "--comfyui",
        comfyui,
        "--models",
        options.folder / "weights",
    ]
    bench += ["--rounds", str(options.rounds), *(["--quick"] if options.quick else [])]
    parts = [
        Part("tests", test, 0.4),
        Part("sampling", ["-m", "bench.sampling", *bench, "--json", out / "sampling.json"], 0.3),
        Part(
            "encoders", ["-m", "bench.encoders", "--only", "t5", *bench, "--json", out / "encoders.json"], 0.7
        ),
        Part("conditioning", ["-m", "bench.conditioning", *bench, "--json", out / "conditioning.json"]),
    ]
    return [part for part in parts if part.name in (options.only or [part.name])]


def run_all(parts: Sequence[Part], out: Path, seconds: float, host) -> dict[str, Result]:
    """Runs one part after the other, all of them within this time."""
    results, end = {}, time.monotonic() + seconds
    for number, part in enumerate(parts):
        share = part.share if number + 1 < len(parts) else 1.0
        results[part.name] = run(part, out, (end - time.monotonic()) * share, host)
        write(results, out)  # after each part, so that something is there if the machine is taken away
    return results


def run(part: Part, out: Path, seconds: float, host) -> Result:
    """Runs a part, whose output goes to a log, and prints the log's end if it fails."""
    from host.comfyui import TOOLS  # noqa: PLC0415
    from sandbox.process import ProcessTree  # noqa: PLC0415

    print(f"{part.name}: at most {max(seconds, 0) / 60:.1f} minutes …", flush=True)
    log, start = out / f"{part.name}.log", time.monotonic()
    command = [str(host.python), *map(str, part.command)]
    process = ProcessTree(command, folder=TOOLS, environment=host.environment(), log=log)
    try:
        while process.alive and time.monotonic() - start < seconds:
            time.sleep(0.2)
        in_time = not process.alive
    finally:
        process.stop()
    code = process.wait() if in_time else None
    text = log.read_text(encoding="utf-8", errors="replace")
    if code:
        print("\n".join(text.splitlines()[-SHOWN:]))
    result = Result(
        code, time.monotonic() - start, "its time was over" if code is None else f"exit code {code}"
    )
    add_numbers(result, part, out)
    return result


def add_numbers(result: Result, part: Part, out: Path) -> None:
    """Adds what the part wrote to files, also if it was stopped."""
    if part.name == "tests" and (out / "tests.xml").is_file():
        suite = ElementTree.parse(out / "tests.xml").getroot()[0]
        counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        bad = [case for case in suite if case.find("failure") is not None or case.find("error") is not None]
        result.numbers, result.failed = (
            counts,
            [f"{case.get('classname')}::{case.get('name')}" for case in bad],
        )
        passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
        result.outcome += f", {passed} passed, {len(bad)} failed, {counts['skipped']} skipped"
    elif (out / f"{part.name}.json").is_file():
        result.numbers = json.loads((out / f"{part.name}.json").read_text(encoding="utf-8"))
        met = [target["met"] for target in result.numbers["targets"]]
        result.outcome += f", {sum(met)} of {len(met)} targets met" if met else ", no targets"


def write(results: dict[str, Result], out: Path) -> None:
    found = {name: asdict(result) for name, result in results.items()}
    (out / "results.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def report(results: dict[str, Result], out: Path) -> None:
    from bench.report import Table  # noqa: PLC0415

    for name, result in results.items():
        log = (out / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        # A benchmark's progress comes before its table.
        start = next((number for number, line in enumerate(log) if line.startswith("|")), None)
        if name != "tests" and start is not None:
            print(f"\n{name}:\n\n" + "\n".join(log[start:]))
        for test in result.failed:
            print(f"FAILED: {test}")
    columns = (("part", ""), ("result", ""), ("seconds", ".0f"))
    print()
    print(Table(columns, [(name, result.outcome, result.seconds) for name, result in results.items()]))
    print(f"\nThe logs and numbers are in {out}.")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="for files and weights, 25 GB; one in memory, such as under /dev/shm, is the fastest (default: a "
        "temporary one)",
    )
    parser.add_argument("--out", type=Path, required=True, help="for logs and numbers (default: this folder)")
    parser.add_argument("--minutes", type=float, default=9, help="for everything (default: 9)")
    parser.add_argument("--rounds", type=int, default=1, help="of the benchmarks (default: 1)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=["tests", "sampling", "encoders", "conditioning"],
        help="only these parts",
    )
    parser.add_argument("--select", metavar="EXPRESSION", help="only tests whose names match, as pytest's -k")
    parser.add_argument("--quick", action="store_true", help="tiny models in the benchmarks")
    parser.add_argument(
        "--pretend",
        action="store_true",
        help="on a pretend GPU, to try the bundle itself; --quick goes with it",
    )
    options = parser.parse_args()
    options.quick |= options.pretend
    return options


if __name__ == "__main__":
    sys.exit(main())
