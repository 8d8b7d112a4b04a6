"""Measures training: pictures a second against a step of diffusers' example, and memory by what learns.

    python tools/dev.py bench training           a UNet of two levels on a CPU, SD1.5's own size on a GPU
    python tools/dev.py bench training --quick   a tiny UNet, to try the benchmark itself

All ways but the last table's start from the states of captions and from latents. diffusers gets the UNet's context as
it is and trains the whole UNet; this pack also computes and trains the Cross-Adapter. The last table is of a training
whose features come from the disk, or are computed in each step. The README.md beside this file says how to read them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

from bench.report import Check, Table, gigabytes, machine, ratio, verdict, write_json
from bench.runner import OtherPrograms, Process, in_scratch, say

ON_DISK, IN_STEP = "on the disk", "in each step"
WAYS = (("diffusers", "whole"), ("ours", "whole"), ("ours", "LoRA"), ("ours", "frozen"))
# channels and layers of the UNet; side of the latents; pictures in a batch; steps of a round; pictures with features
QUICK: dict[str, Any] = {"channels": (320,), "layers": 1, "side": 8, "batch": 1, "steps": 1, "pictures": 2}
ON_CPU: dict[str, Any] = {
    "channels": (320, 640),
    "layers": 1,
    "side": 32,
    "batch": 2,
    "steps": 2,
    "pictures": 40,
}
ON_GPU: dict[str, Any] = {
    "channels": (320, 640, 1280, 1280),
    "layers": 2,
    "side": 64,
    "batch": 4,
    "steps": 10,
    "pictures": 60,
}
FEATURES = (ON_DISK, IN_STEP)  # where the states of captions and the latents come from
FEATURE_COLUMNS = (("features", ""), ("pictures a second", ".2f"), ("times in each step", ".2f"))
COLUMNS = (
    ("way", ""), ("learns", ""), ("pictures a second", ".2f"), ("times diffusers", ".2f"), ("peak memory, GB", ".2f"),
)  # fmt: skip


def main() -> int:
    with in_scratch(__doc__.splitlines()[0]) as options:
        return measure(options, options.models)


def measure_features(options: Any, scratch: Path, sizes: dict[str, Any], device: str) -> Table:
    """A training of the adapter alone, on features that are read from the disk or computed in each step."""
    process = Process(options, scratch / "features.log", "bench.training_features")
    seconds: dict[str, list[float]] = {where: [] for where in FEATURES}
    try:
        say("Preparing a training on features …")
        process.call("prepare", sizes, device, options.quick)
        for number in range(max(1, options.rounds)):
            say(f"Features, round {number + 1} of {options.rounds} …")
            for where in FEATURES:
                seconds[where].append(process.call("run", where, sizes["steps"]))
    finally:
        process.close()
    pictures, computed = sizes["steps"] * sizes["batch"], seconds[IN_STEP]
    rows = [[where, pictures / median(taken), ratio(computed, taken)] for where, taken in seconds.items()]
    return Table(FEATURE_COLUMNS, rows, "The adapter alone, by where the features come from")


def measure(options: Any, scratch: Path) -> int:
    """Returns the exit code."""
    names = ["all"] * len(WAYS) if options.quick else ["-".join(way) for way in WAYS]
    started = {
        name: Process(options, scratch / f"{name}.log", "bench.training_worker") for name in set(names)
    }
    processes = {way: started[name] for way, name in zip(WAYS, names, strict=True)}
    try:
        about = next(iter(processes.values())).call("describe")
        device = options.device or about["accelerator"] or "cpu"
        sizes = QUICK if options.quick else ON_CPU if device == "cpu" else ON_GPU
        for way, process in processes.items():
            say(f"Preparing {', '.join(way)} …")
            process.call("prepare", *way, sizes, device)
        seconds: dict[Any, list[float]] = {way: [] for way in WAYS}
        held = {}
        others = OtherPrograms(lambda: sum(process.worked() for process in started.values()))
        for number in range(max(1, options.rounds)):
            say(f"Round {number + 1} of {options.rounds} …")
            for way, process in processes.items():  # in turns, so that what slows the machine slows all
                taken, held[way] = process.call("run", *way, sizes["steps"])
                seconds[way].append(taken)
        busy_cores = others.cores()
    finally:
        for process in started.values():
            process.close()
    reference, pictures = seconds[WAYS[0]], sizes["steps"] * sizes["batch"]
    rows = [
        [
            *way,
            pictures / median(seconds[way]),
            ratio(reference, seconds[way]),
            gigabytes(held[way]["peak"], held[way]["device"]),
        ]
        for way in WAYS
    ]
    channels, side, batch = sizes["channels"], sizes["side"], sizes["batch"]
    title = f"UNet with {channels} channels, latents of {side} by {side}, batches of {batch}"
    table = Table(COLUMNS, rows, title)
    features = measure_features(options, scratch, sizes, device)
    print(f"\n{table}\n\n{features}\n\n{machine(about, options.rounds, busy_cores)}\n")
    faster = ratio(reference, seconds["ours", "whole"])
    checks: list[Check] = [
        (faster >= 1, f"the whole UNet at {faster:.2f} times diffusers' speed (wanted: 1)")
    ]
    if options.json:
        write_json(options.json, [table, features], about, [] if options.quick else checks)
    if options.quick:
        print("Not judged: the UNet is tiny.")
        return 0
    print(verdict(checks, ""))
    return int(not checks[0][0])


if __name__ == "__main__":
    sys.exit(main())
