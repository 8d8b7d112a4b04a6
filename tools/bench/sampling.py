"""Measures what a longer context costs: KSampler's step with 333 tokens, as this pack gives them, against core's 77.

    python tools/dev.py bench sampling           SD1.5's own UNet
    python tools/dev.py bench sampling --quick   a small UNet, to try the benchmark itself

Both contexts are random numbers, and so are the weights. The README.md beside this file says how to read the table.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.report import Check, Table, gigabytes, machine, ratio, verdict, write_json
from bench.runner import OtherPrograms, Process, in_scratch, say

CORE, FUSED = 77, 333  # tokens of the context
WANTED = 1.05  # on a GPU, a step may take so many times as long
# side of the picture in pixels; steps of a run
QUICK: dict[str, Any] = {"small": True, "side": 64, "steps": 1}
ON_CPU: dict[str, Any] = {"small": False, "side": 512, "steps": 1}
ON_GPU: dict[str, Any] = {"small": False, "side": 512, "steps": 20}
COLUMNS = (
    ("context", ""), ("seconds a step", ".3f"), ("times 77 tokens", ".3f"), ("calls of the UNet a step", ".0f"),
    ("peak memory, GB", ""),
)  # fmt: skip


def main() -> int:
    with in_scratch(__doc__.splitlines()[0]) as options:
        process = Process(options, options.models / "log", "bench.sampling_worker")
        try:
            return measure(options, process)
        finally:
            process.close()


def measure(options: Any, process: Process) -> int:
    """Returns the exit code."""
    about = process.call("describe")
    device = options.device or about["accelerator"] or "cpu"
    sizes = QUICK if options.quick else ON_CPU if device == "cpu" else ON_GPU
    say("Making the UNet, and warming up …")
    process.call("prepare", sizes, device)
    calls = {tokens: process.call("run", tokens)[1] for tokens in (CORE, FUSED)}
    seconds: dict[int, list[float]] = {CORE: [], FUSED: []}
    others = OtherPrograms(process.worked)
    for number in range(max(1, options.rounds)):
        say(f"Round {number + 1} of {options.rounds} …")
        for tokens, found in seconds.items():  # in turns, so that what slows the machine slows both
            found.append(process.call("run", tokens)[0] / sizes["steps"])
    busy_cores, held = others.cores(), process.call("memory", None)
    times = {tokens: ratio(found, seconds[CORE]) for tokens, found in seconds.items()}
    names = {CORE: "77 tokens (core)", FUSED: "333 tokens (LLM4GEN)"}
    peak = gigabytes(held["peak"], held["device"])
    rows = [
        [names[tokens], median(found), times[tokens], calls[tokens] / sizes["steps"], peak]
        for tokens, found in seconds.items()
    ]
    what = "a small UNet" if sizes["small"] else "SD1.5's UNet"
    table = Table(COLUMNS, rows, f"{what}, {sizes['side']} by {sizes['side']} pixels, positive and negative")
    checks = [] if options.quick else checks_of(device, times[FUSED])
    print(f"\n{table}\n\n{machine(about, options.rounds, busy_cores)}\n")
    if options.json:
        write_json(options.json, [table], about, checks)
    if options.quick:
        print("Not judged: the UNet is small.")
    elif not checks:
        print("Not judged: the target is for a GPU.")
    else:
        print(verdict(checks))
    return int(not all(is_met for is_met, _ in checks))


def checks_of(device: str, times: float) -> Sequence[Check]:
    """The target, which is for a GPU: a CPU computes attention in other proportions."""
    if device == "cpu":
        return []
    text = f"a step with {FUSED} tokens takes {times:.3f} times as long as with {CORE} (at most {WANTED})"
    return [(times <= WANTED, text)]


if __name__ == "__main__":
    sys.exit(main())
