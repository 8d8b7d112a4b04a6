"""Measures the pack against the published way, on random weights of the real size; prints one table.

    python tools/dev.py bench              (or run this file with ComfyUI's Python)
    python tools/dev.py bench --quick      four layers instead of 24: to try the tool itself

Each way has a process of its own (`bench_worker.py`). The processes take turns, one working at a time, for
some rounds, and ratios are taken within a round: what slows the machine for a while slows all alike.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import psutil
from transformers import AutoTokenizer

from bench.process import Worker, arguments, difference, running, say, say_what_stays
from bench.report import CALLS, Result, Results, Variant, accelerator, machine, table, verdict
from bench.weights import LAYERS, Files, ensure_files

# Number of tokens, in words → the two wordings.
Prompts = dict[str, tuple[str, ...]]
WORKER = "bench.conditioning_worker"
# Two wordings of each prompt, equally long: one for the first call, one for the repeated.
WORDS = ("red", "green")
SHORT = "a {} fox in a yellow raincoat reads an old map under a glass umbrella while two owls watch"
LONG = (
    "a wide painting of a {} fishing boat tied to a stone pier at dawn, two old women in green coats mend a "
    "torn net beside a stack of orange crates, a small dog sleeps on a coil of rope, behind them seven houses "
    "with blue doors climb a steep hill to a lighthouse"
)
NEGATIVE = ""
PUBLISHED = "published, fp32"
ENOUGH_MEMORY = 12e9  # both files and what the three processes hold besides


@dataclass(frozen=True)
class Setting:
    """What all measurements share."""

    files: Files
    comfyui: Path
    threads: int
    rounds: int


def main() -> None:
    options = arguments(__doc__.splitlines()[0]).parse_args()
    files = ensure_files(options.models.resolve(), 4 if options.quick else LAYERS)
    setting = Setting(files, Path(options.comfyui).resolve(), options.threads, max(1, options.rounds))
    free = psutil.virtual_memory().available
    if not options.quick and free < ENOUGH_MEMORY:
        say(f"Only {free / 1e9:.1f} GB of memory are free: times may be the disk's, not the processor's.")

    prompts = read_prompts(setting.comfyui / "comfy" / "text_encoders" / "t5_tokenizer")
    results: Results = {}
    with tempfile.TemporaryDirectory() as scratch:
        others = [
            measure(ways(files, device), results, prompts, setting, Path(scratch)) for device in devices()
        ]
    for variant in other_loads(files):
        say(f"Loading: {variant.label} from the {variant.weights} …")
        with started([variant], setting) as [worker]:
            results[variant] = Result(loaded=worker.ask("load"))

    say_what_stays(options.models)
    print("\n" + table(results))
    print("\n" + "\n".join(machine(setting.rounds, setting.threads, max(others))) + "\n")
    if options.quick:
        print("Four layers only: not judged.")
        return
    words, met = verdict(results, next(iter(prompts)))
    print(words)
    sys.exit(0 if met else 1)


def devices() -> list[str]:
    """The CPU, and the accelerator that torch sees, if any."""
    found = accelerator()
    return ["cpu", found] if found else ["cpu"]


def ways(files: Files, device: str) -> list[Variant]:
    """What is compared, the published way first."""
    return [
        Variant(PUBLISHED, "fp32 file", files.fp32, None, device),
        Variant("ours, fp32", "fp32 file", files.fp32, "fp32", device),
        Variant("ours, auto", "bf16 file", files.bf16, "auto", device),
        Variant("ours, auto, fp32 weights", "fp32 file", files.fp32, "auto", device),
    ]


def other_loads(files: Files) -> list[Variant]:
    """Loading alone, where it works differently."""
    loads = [Variant("ours, bf16", "fp32 file", files.fp32, "bf16")]
    if files.pickle:
        loads.append(Variant("ours, fp32", "fp32 pickle", files.pickle, "fp32"))
        loads.append(Variant("ours, bf16", "fp32 pickle", files.pickle, "bf16"))
    else:
        say("No room on the disk for a pickle of the weights: its loading is not measured.")
    return loads


def read_prompts(tokenizer: Path) -> Prompts:
    """The prompts' two wordings, by the number of tokens that the LLM gets (template and end included)."""
    count = AutoTokenizer.from_pretrained(str(tokenizer), local_files_only=True)
    prompts = {}
    for prompt in (SHORT, LONG):
        texts = tuple(prompt.format(word) for word in WORDS)
        (tokens,) = {len(count("pre " + text)["input_ids"]) for text in texts}
        prompts[f"{tokens} tokens"] = texts
    return prompts


def started(variants: list[Variant], setting: Setting) -> AbstractContextManager[list[Worker]]:
    """A process for each variant."""
    shared = ["--comfyui", setting.comfyui, "--adapter", setting.files.adapter, "--threads", setting.threads]
    commands = {}
    for variant in variants:
        own = ["--device", variant.device, "--encoder", variant.encoder]
        own += ["--dtype", variant.dtype] if variant.dtype else []
        commands[variant] = list(map(str, [WORKER, *shared, *own]))
    return running(commands, setting.comfyui)


def measure(
    variants: list[Variant], results: Results, prompts: Prompts, setting: Setting, scratch: Path
) -> float:
    """Loads, warms up and compares, then times in rounds; adds to `results`. Returns how many cores other
    programs kept busy meanwhile."""
    with started(variants, setting) as workers:
        for worker in workers:
            say(f"Loading: {worker.variant.label} …")
            results[worker.variant] = Result(loaded=worker.ask("load"))
            worker.ask("prepare")
        say("Warming up and comparing …")
        for tokens in prompts:
            turn(workers, prompts, tokens, scratch)
            # The truth is the published way on the CPU, for every device.
            for variant, which in itertools.product(variants, CALLS):
                truth, found = (scratch / f"{label} {tokens} {which}" for label in (PUBLISHED, variant.label))
                results[variant].differences[tokens, which] = difference(truth, found)
        psutil.cpu_percent()  # from here on
        start, ours = time.perf_counter(), sum(worker.worked() for worker in workers)
        for number in range(1, setting.rounds + 1):
            say(f"Round {number} of {setting.rounds} …")
            for tokens in prompts:
                note_times(results, variants[0], tokens, turn(workers, prompts, tokens))
        busy = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
        ours = sum(worker.worked() for worker in workers) - ours
        for worker in workers:
            results[worker.variant].peak = worker.ask("peak")
    return max(0.0, busy - ours / (time.perf_counter() - start))


def turn(
    workers: list[Worker], prompts: Prompts, tokens: str, scratch: Path | None = None
) -> dict[tuple[Variant, str], float]:
    """Seconds of every variant's first and repeated call with one prompt, the contexts saved in `scratch`."""
    times = {}
    # All variants do one wording before any does the next, so that each has its published call close by.
    for which, text in zip(CALLS, prompts[tokens], strict=True):
        for worker in workers:
            save = str(scratch / f"{worker.variant.label} {tokens} {which}") if scratch else None
            reply = worker.ask("context", positive=text, negative=NEGATIVE, which=which, save=save)
            times[worker.variant, which] = reply["seconds"]
    return times


def note_times(
    results: Results, published: Variant, tokens: str, times: dict[tuple[Variant, str], float]
) -> None:
    """One round's times, and the ratios to the mean of that round's two published calls."""
    reference = mean(times[published, which] for which in CALLS)
    for (variant, which), seconds in times.items():
        results[variant].seconds[tokens, which].append(seconds)
        results[variant].ratios[tokens, which].append(reference / seconds)


if __name__ == "__main__":
    main()
