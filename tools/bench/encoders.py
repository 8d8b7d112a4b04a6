"""Measures the way from an LLM's file to its states of a text, by kind of file; prints a table for each LLM.

    python tools/dev.py bench encoders           T5-XL, and a Llama of 1.1 billion weights
    python tools/dev.py bench encoders --quick   four layers of each: to try the tool itself

Random weights of the real sizes. Every way has a process of its own, started anew for each round
(`bench_encoder_worker.py`), and reads files that are in the system's cache. Beside this pack: transformers as its
documentation has it, and, for the T5, `torch.load` of the pickle that is published. Ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil

from bench.conditioning import SHORT, WORDS, devices
from bench.encoder_files import PICKLE, WHOLE, llama_files, plain_t5, t5_files
from bench.encoders_report import Found, Results, table, verdict
from bench.process import arguments, difference, running, say, say_what_stays
from bench.report import Variant, machine
from bench.weights import LAYERS
from pack import make_importable

WORKER = "bench.encoders_worker"
LLAMA_LAYERS = 22
PLAIN = "transformers"
TEXTS = tuple(SHORT.format(word) for word in WORDS)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["t5", "llama"])
    options = parser.parse_args()
    make_importable()
    comfyui, models = Path(options.comfyui).resolve(), options.models.resolve()
    tokenizer = comfyui / "comfy" / "text_encoders" / "t5_tokenizer"
    report = []
    if options.only != "llama":
        layers = 4 if options.quick else LAYERS
        files = t5_files(models, layers)
        plain = {kind: plain_t5(models, files[kind], layers) for kind in (WHOLE, "bf16")}
        report.append(("T5-XL", *measured(files, plain, options, comfyui, tokenizer)))
    if options.only != "t5":
        files = llama_files(models, 4 if options.quick else LLAMA_LAYERS, tokenizer)
        report.append(("Llama, 1.1 billion weights", *measured(files, files, options, comfyui, tokenizer)))
    say_what_stays(models)
    for name, results, _ in report:
        print(f"\n{name}:\n\n{table(results)}")
    others = max(others for _, _, others in report)
    print("\n" + "\n".join(machine(options.rounds, options.threads, others)))
    if options.quick or options.only == "llama":
        print("The published model at its full size is not among them: not judged.")
        return
    words, met = verdict(report[0][1])
    print(words)
    sys.exit(0 if met else 1)


def measured(
    files: dict[str, Path],
    plain: dict[str, Path],
    options: argparse.Namespace,
    comfyui: Path,
    tokenizer: Path,
) -> tuple[Results, float]:
    """plain: where transformers finds the fp32 and the bf16. Also how many cores others kept busy."""
    variants, root = variants_of(files, plain), files[WHOLE].parent
    shared = ["--comfyui", comfyui, "--tokenizer", tokenizer, "--root", root, "--threads", options.threads]
    results: Results = defaultdict(Found)
    start, busy, own, theirs = time.perf_counter(), busy_seconds(), time.process_time(), 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(1, options.rounds + 1):
            for variant, how in variants.items():
                say(f"Round {number} of {options.rounds}: {variant.label} from the {variant.weights} …")
                name = variant.encoder.relative_to(root).as_posix()
                command = [WORKER, *shared, "--encoder", name, "--device", variant.device, *how]
                theirs += measure(variant, list(map(str, command)), comfyui, Path(scratch), results[variant])
            compare(list(variants), Path(scratch), results)
    others = (busy_seconds() - busy) - (time.process_time() - own) - theirs
    return results, max(0.0, others / (time.perf_counter() - start))


def variants_of(files: dict[str, Path], plain: dict[str, Path]) -> dict[Variant, list[str | Path]]:
    """What is compared, and the worker's arguments for it. The first is what ratios are to."""
    variants: dict[Variant, list[str | Path]] = {}
    for device in devices():
        for kind, folder, dtype in (
            (PICKLE, WHOLE, "float32"),
            (WHOLE, WHOLE, "float32"),
            ("bf16", "bf16", "bfloat16"),
        ):
            if kind in files:
                way = f"{'torch.load' if kind == PICKLE else PLAIN}, {folder}"
                variant = Variant(way, kind, files[kind], None, device)
                variants[variant] = ["--folder", plain[folder], "--plain", dtype]
        for kind, path in files.items():
            way = kind.split()[0]
            dtype = "fp32" if way == WHOLE else "auto"
            variants[Variant(f"ours, {way}", kind, path, dtype, device)] = ["--dtype", dtype]
    return variants


def measure(variant: Variant, command: list[str], comfyui: Path, scratch: Path, found: Found) -> float:
    """Adds to `found`; saves the states of both texts. Seconds of processor time that it took."""
    with running({variant: command}, comfyui) as [worker]:
        idle = worker.ask("memory")["now"]
        loaded = worker.ask("load")["seconds"]
        first, another, again = (
            worker.ask(
                "states", text=TEXTS[number], save=str(saved(scratch, variant, number)) if new else None
            )
            for number, new in ((0, True), (1, True), (1, False))
        )
        memory = worker.ask("memory")
        found.first.append(loaded + first["seconds"])
        found.another.append(another["seconds"])
        found.again.append(again["seconds"])
        found.peak.append(memory["peak"])
        found.device_peak.append(memory["device_peak"])
        found.above.append(memory["peak"] - idle)
        return worker.worked()


def saved(scratch: Path, variant: Variant, number: int) -> Path:
    """Where its states of a text lie."""
    return scratch / f"{variant.label} {variant.weights} {number}"


def compare(variants: list[Variant], scratch: Path, results: Results) -> None:
    """With transformers in fp32, on the CPU."""
    truth = next(variant for variant in variants if variant.way == f"{PLAIN}, fp32")
    for variant in variants:
        apart = [
            difference(saved(scratch, truth, number), saved(scratch, variant, number))
            for number in range(len(TEXTS))
        ]
        results[variant].relative.append(max(relative for _, relative in apart))


def busy_seconds() -> float:
    """Of all cores, since the system's start."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0)


if __name__ == "__main__":
    main()
