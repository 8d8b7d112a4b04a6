"""Measures the way from an LLM's file to its states of a text, for each kind of file; prints a table for each LLM.

    python tools/dev.py bench encoders           T5-XL, and a Llama of 1.1 billion weights
    python tools/dev.py bench encoders --quick   tiny models, to try the benchmark itself

Each way gets a new process in each round. The README.md beside this file says how to read the tables.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from statistics import median

from bench.conditioning import SHORT, WORDS
from bench.files import BF16, FILES, FP32, PICKLE
from bench.report import Cell, Check, Table, gigabytes, ratio
from bench.runner import Figures, Runner, Step, Way, arguments, conclude, measuring

TITLES = {"t5": "T5-XL", "llama": "Llama, 1.1 billion weights"}
# Kind of file → what else reads it. The first of what is compared is what all ratios are to.
OTHERS = {PICKLE: "torch.load, fp32", FP32: "transformers, fp32", BF16: "transformers, bf16"}
ONE, OTHER = (SHORT.format(word) for word in WORDS.values())
STEPS = FIRST, ANOTHER, AGAIN = (
    Step("first", (ONE,), (False,)),
    Step("another", (OTHER,), (False,)),
    Step("again", (OTHER,), (True,)),
)
# The targets of the T5 on a CPU: how many times sooner than by torch.load the first states must be there; the memory
# of bf16 as a part of its file, and that of Q4_K as a part of bf16's.
FASTER, OF_FILE, OF_BF16 = 5.0, 1.15, 0.5
# And on a GPU: how far the states may be off with `auto` (relative norm), and how many times as long as transformers in
# bf16, which computes all 256 rows, a new text may take.
APART_ON_GPU, SLOWER_ON_GPU = 5e-3, 3.0
COLUMNS = (
    ("way", ""), ("file", ""), ("GB", ".2f"), ("from file to first states, s", ".1f"), ("times faster", ".1f"),
    ("another text, s", ".2f"), ("times faster", ".1f"), ("the same text again, s", ".2f"), ("peak, GB", ".2f"),
    ("above idle, GB", ".2f"), ("relative difference", ".1e"),
)  # fmt: skip


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(TITLES), help="measure only one of the two models")
    options = parser.parse_args()
    tables: list[Table] = []
    checks: list[Check] = []
    with measuring(options, template="{text}") as runner:
        for model in [options.only] if options.only else TITLES:
            ways = compared(runner, model)
            for _ in runner.rounds():
                measure(runner, ways)
            title = f"{TITLES[model]}, but with tiny sizes" if options.quick else TITLES[model]
            tables.append(Table(COLUMNS, list(rows_of(runner, ways)), title))
            if model == "t5":
                checks = list(checks_of(runner, ways))
    return conclude(runner, tables, checks)


def compared(runner: Runner, model: str) -> list[Way]:
    """What is compared, after making the files."""
    kinds = runner.make_files(model, [kind for kind in FILES if kind != PICKLE or model == "t5"])
    kinds.sort(key=lambda kind: kind != PICKLE)
    file, ways = runner.models[model].file, []
    for device in runner.devices:
        for kind in filter(OTHERS.get, kinds):
            method, dtype = OTHERS[kind].split(", ")
            ways.append(Way(OTHERS[kind], method, kind, file(kind), dtype, device))
        for kind in kinds:
            name = kind.split()[0]
            dtype = "fp32" if name == FP32 else "auto"
            ways.append(Way(f"ours, {name}", "ours", kind, file(kind), dtype, device))
    return ways


def measure(runner: Runner, ways: Sequence[Way]) -> None:
    """One round."""
    for way in ways:
        with runner.prepared([way]):
            runner.note("load", [way])
            runner.take_turns([way], STEPS, timed=True, saved=True)
            runner.note("memory", [way])
    runner.compare(ways, STEPS, next(way for way in ways if way.name == OTHERS[FP32]))


def first_states(figures: Figures) -> list[float]:
    """Seconds from the file to the states of the first text, in each round."""
    return [a["seconds"] + b for a, b in zip(figures.load, figures.seconds[FIRST.name], strict=True)]


def peaks(figures: Figures) -> list[float]:
    """Bytes of the whole process at the peak, in each round."""
    return [memory["peak"] for memory in figures.memory]


def above_idle(figures: Figures) -> list[float]:
    """Bytes at the peak, without those of Python, torch and ComfyUI, in each round."""
    return [a["peak"] - b["idle"] for a, b in zip(figures.memory, figures.load, strict=True)]


def difference(figures: Figures) -> float:
    """The relative difference from the reference, of the text where it is largest."""
    return max(median(relative for _, relative in found) for found in figures.differences.values())


def rows_of(runner: Runner, ways: Sequence[Way]) -> Iterator[list[Cell]]:
    """A row for each way."""
    reference = runner.figures[ways[0]]
    for way in ways:
        figures = runner.figures[way]
        on_device = median(memory["device"] for memory in figures.memory)
        yield [
            way.label,
            way.kind,
            way.path.stat().st_size / 1e9,
            median(first_states(figures)),
            ratio(first_states(reference), first_states(figures)),
            median(figures.seconds[ANOTHER.name]),
            ratio(reference.seconds[ANOTHER.name], figures.seconds[ANOTHER.name]),
            median(figures.seconds[AGAIN.name]),
            gigabytes(median(peaks(figures)), on_device),
            median(above_idle(figures)) / 1e9,
            difference(figures),
        ]


def checks_of(runner: Runner, ways: Sequence[Way]) -> Iterator[Check]:
    """The targets, which are for the T5."""
    for device in runner.devices:
        here = [way for way in ways if way.device == device]
        yield from (checks_on_cpu if device == "cpu" else checks_on_gpu)(runner, here)


def checks_on_cpu(runner: Runner, ways: Sequence[Way]) -> Iterator[Check]:
    ours = {way.kind: way for way in ways if way.method == "ours"}
    for kind in (PICKLE, FP32, BF16) if PICKLE in ours else ():
        faster = ratio(first_states(runner.figures[ways[0]]), first_states(runner.figures[ours[kind]]))
        yield faster >= FASTER, f"first states from the {kind} {faster:.1f} times sooner (wanted: {FASTER:g})"
    bf16, q4_k = runner.figures[ours[BF16]], runner.figures[ours["GGUF Q4_K"]]
    # Python, torch and ComfyUI alone would be a third of the whole process, so what the encoder adds is judged.
    whole, added = (median(part) / ours[BF16].path.stat().st_size for part in (peaks(bf16), above_idle(bf16)))
    text = f"bf16 adds {added:.2f} times its file at the peak (at most {OF_FILE}; the whole process: {whole:.2f})"
    yield added <= OF_FILE, text
    whole, added = ratio(peaks(q4_k), peaks(bf16)), ratio(above_idle(q4_k), above_idle(bf16))
    text = f"GGUF Q4_K's peak is {whole:.2f} times bf16's (at most {OF_BF16}; above idle: {added:.2f})"
    yield whole <= OF_BF16, text


def checks_on_gpu(runner: Runner, ways: Sequence[Way]) -> Iterator[Check]:
    theirs = next(way for way in ways if way.name == OTHERS[BF16])
    for way in (way for way in ways if way.method == "ours" and way.kind in (FP32, BF16, "fp16")):
        apart = difference(runner.figures[way])
        yield apart <= APART_ON_GPU, f"{way.label}: states off by {apart:.2%} (at most {APART_ON_GPU:.1%})"
    ours = next(way for way in ways if way.method == "ours" and way.kind == BF16)
    another = (runner.figures[way].seconds[ANOTHER.name] for way in (ours, theirs))
    slower = ratio(*another)
    text = f"{ours.label}: another text takes {slower:.2f} times as long as in {theirs.label}"
    yield slower <= SLOWER_ON_GPU, f"{text} (at most {SLOWER_ON_GPU:g})"


if __name__ == "__main__":
    sys.exit(main())
