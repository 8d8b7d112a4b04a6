"""Measures the pack against the published way, from a prompt to the UNet's context; prints one table.

    python tools/dev.py bench
    python tools/dev.py bench --quick      tiny models, to try the benchmark itself

The processes of all ways exist at the same time and take turns; one works at a time. The README.md beside this file
says how to read the table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from statistics import mean, median

import psutil
from tokenizers import Tokenizer

from bench.files import BF16, FP32, PICKLE
from bench.report import Cell, Check, Table, gigabytes, ratio
from bench.runner import Figures, Runner, Step, Way, arguments, conclude, measuring, say

FIRST, REPEATED = "first call", "negative cached"
# Each prompt has two wordings, equally long: one for the first call, one for the repeated.
WORDS = {FIRST: "red", REPEATED: "green"}
SHORT = "a {} fox in a yellow raincoat reads an old map under a glass umbrella while two owls watch"
LONG = (
    "a wide painting of a {} fishing boat tied to a stone pier at dawn, two old women in green coats mend a "
    "torn net beside a stack of orange crates, a small dog sleeps on a coil of rope, behind them seven houses "
    "with blue doors climb a steep hill to a lighthouse"
)
NEGATIVE = ""
TEMPLATE = "pre {text}"  # the published recipe has it
# How many times faster than the published way these must be, with the short prompt, on a CPU that multiplies bf16.
WANTED = {"ours, fp32": {FIRST: 3.3, REPEATED: 4.5}, "ours, auto": {FIRST: 8.0, REPEATED: 12.0}}
WANTED_MEMORY = 1.2  # loading may take so many times the file's size
ENOUGH_MEMORY = 12e9  # bytes, for both files and for what the processes hold besides
COLUMNS = (
    ("way", ""), ("weights", ""), ("what", ""), ("seconds", ".2f"), ("times faster", ".1f"),
    ("peak memory, GB", ".2f"), ("times the file", ".2f"), ("largest difference", ".1e"),
    ("relative difference", ".1e"),
)  # fmt: skip
# By the number of tokens that the LLM gets, then by call.
Prompts = dict[str, dict[str, Step]]


def main() -> int:
    options = arguments(__doc__.splitlines()[0]).parse_args()
    free = psutil.virtual_memory().available
    if not options.quick and free < ENOUGH_MEMORY:
        say(f"Only {free / 1e9:.1f} GB of memory are free. The times may be those of the disk.")
    with measuring(options, TEMPLATE) as runner:
        prompts = read_prompts(runner)
        kinds = runner.make_files("t5", (FP32, BF16, PICKLE))
        for device in runner.devices:
            measure(runner, compared(runner, device), prompts)
        for way in other_loads(runner, kinds):
            with runner.prepared([way]):
                runner.note("load", [way])
        rows = [row for way in runner.figures for row in rows_of(runner, way, prompts)]
        short, calls = next(iter(prompts.items()))
        checks = list(checks_of(runner, calls))
    return conclude(runner, [Table(COLUMNS, rows)], checks, f" (speeds with {short} and the empty negative)")


def read_prompts(runner: Runner) -> Prompts:
    """The steps. Both wordings of a prompt must have the same number of tokens."""
    tokenizer = Tokenizer.from_file(str(runner.options.tokenizer / "tokenizer.json"))
    prompts = {}
    for prompt in (SHORT, LONG):
        texts = {call: prompt.format(word) for call, word in WORDS.items()}
        (count,) = {len(tokenizer.encode(TEMPLATE.format(text=text)).ids) for text in texts.values()}
        prompts[f"{count} tokens"] = {
            call: Step(f"{count} {call}", (text, NEGATIVE), (False, call == REPEATED), fused=True)
            for call, text in texts.items()
        }
    return prompts


def compared(runner: Runner, device: str) -> list[Way]:
    """What is compared; the published way comes first."""
    file = runner.models["t5"].file
    return [
        Way("published, fp32", "published", FP32, file(FP32), "fp32", device),
        Way("ours, fp32", "ours", FP32, file(FP32), "fp32", device),
        Way("ours, auto", "ours", BF16, file(BF16), "auto", device),
        Way("ours, auto, fp32 weights", "ours", FP32, file(FP32), "auto", device),
    ]


def other_loads(runner: Runner, kinds: Sequence[str]) -> list[Way]:
    """What is loaded in other ways, and not run."""
    loads, file = [("bf16", FP32), ("fp32", PICKLE), ("bf16", PICKLE)], runner.models["t5"].file
    device = runner.devices[0]
    return [
        Way(f"ours, {dtype}", "ours", kind, file(kind), dtype, device)
        for dtype, kind in loads
        if kind in kinds
    ]


def measure(runner: Runner, ways: Sequence[Way], prompts: Prompts) -> None:
    steps = [step for calls in prompts.values() for step in calls.values()]
    with runner.prepared(ways):
        runner.note("load", ways)
        say("Warming up and comparing …")
        runner.take_turns(ways, steps, timed=False, saved=True)
        runner.compare(ways, steps, compared(runner, runner.devices[0])[0])
        for _ in runner.rounds():
            runner.take_turns(ways, steps, timed=True, saved=False)
        runner.note("memory", ways)


def published_seconds(runner: Runner, way: Way, calls: dict[str, Step]) -> list[float]:
    """Seconds of the published way on the same device, for each round: the mean of both calls, as it caches nothing."""
    seconds = runner.figures[compared(runner, way.device)[0]].seconds
    return [mean(pair) for pair in zip(*(seconds[step.name] for step in calls.values()), strict=True)]


def loading(way: Way, figures: Figures) -> float:
    """The memory that loading took, as a part of the file's size."""
    return (figures.load[0]["peak"] - figures.load[0]["idle"]) / way.path.stat().st_size


def rows_of(runner: Runner, way: Way, prompts: Prompts) -> Iterator[list[Cell]]:
    """A row for loading, then one for each prompt and call."""
    figures, start = runner.figures[way], [way.label, way.kind]
    published = way.method == "published"
    # The published script's loading is not measured, because here its file is memory-mapped.
    if not published:
        what = f"load {way.path.stat().st_size / 1e9:.2f} GB"
        load = figures.load[0]
        yield [*start, what, load["seconds"], None, load["peak"] / 1e9, loading(way, figures), None, None]
    for tokens, calls in prompts.items() if figures.seconds else ():
        reference = published_seconds(runner, way, calls)
        peak = gigabytes(figures.memory[0]["peak"], figures.memory[0]["device"])
        for call, step in calls.items():
            seconds = reference if published else figures.seconds[step.name]
            is_reference = published and way.device == runner.devices[0]
            differences = (None, None) if is_reference else figures.differences[step.name][0]
            what = f"{tokens}, {'both prompts' if published else call}"
            yield [*start, what, median(seconds), ratio(reference, seconds), peak, None, *differences]
            if published:
                break  # both calls are in this row


def checks_of(runner: Runner, calls: dict[str, Step]) -> Iterator[Check]:
    """The targets, which are for the CPU. calls: with the short prompt."""
    for way, figures in runner.figures.items():
        if way.device != "cpu" or way.method != "ours":
            continue
        for call, wanted in WANTED.get(way.name, {}).items() if figures.seconds else ():
            faster = ratio(published_seconds(runner, way, calls), figures.seconds[calls[call].name])
            yield faster >= wanted, f"{way.name}, {call}: {faster:.1f} times faster (wanted: {wanted:g})"
        grown = loading(way, figures)
        text = f"{way.name}: loading takes {grown:.2f} times the {way.kind} file (at most {WANTED_MEMORY})"
        yield grown <= WANTED_MEMORY, text


if __name__ == "__main__":
    sys.exit(main())
