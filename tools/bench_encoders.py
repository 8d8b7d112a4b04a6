"""Measures the way from an LLM's file to its states of a text, by kind of file; prints a table for each LLM.

    python tools/dev.py bench encoders           T5-XL, and a Llama of 1.1 billion weights
    python tools/dev.py bench encoders --quick   four layers of each: to try the tool itself

Random weights of the real sizes. Every way has a process of its own, started anew for each round
(`bench_encoder_worker.py`), and reads files that are in the system's cache. Beside this pack: transformers as its
documentation has it, and, for the T5, `torch.load` of the pickle that is published. Ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
import torch
from bench import SHORT, WORDS, devices
from bench_encoder_files import PICKLE, WHOLE, llama_files, plain_t5, t5_files
from bench_process import difference, running, say
from bench_report import Variant, machine
from bench_weights import LAYERS
from host import COMFYUI_DIR, HOST_DIR
from pack import make_importable

WORKER = Path(__file__).with_name("bench_encoder_worker.py")
LLAMA_LAYERS = 22
PLAIN = "transformers"
TEXTS = tuple(SHORT.format(word) for word in WORDS)
# Wanted of the T5 on a CPU.
FASTER, OF_FILE, OF_BF16 = 5.0, 1.15, 0.5
COLUMNS = (
    "way",
    "file",
    "GB",
    "from file to first states, s",
    "times faster",
    "another text, s",
    "times faster",
    "the same text again, s",
    "peak, GB",
    "above idle, GB",
    "relative difference",
)


@dataclass(frozen=True)
class Bench:
    """What all measurements share. root: the folder of text encoders. plain: for transformers, variant → folder."""

    comfyui: Path
    tokenizer: Path
    root: Path
    threads: int
    plain: dict[Variant, Path]


@dataclass
class Found:
    """Of one variant, one figure a round."""

    first: list[float] = field(default_factory=list)
    another: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)
    device_peak: list[int] = field(default_factory=list)
    above: list[int] = field(default_factory=list)
    relative: list[float] = field(default_factory=list)


Results = dict[Variant, Found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four layers: to try the tool itself")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("LLM4GEN_COMFYUI", COMFYUI_DIR))
    parser.add_argument("--models", type=Path, default=HOST_DIR / "bench", help="where the weights are kept")
    parser.add_argument("--only", choices=["t5", "llama"])
    options = parser.parse_args()
    make_importable()
    comfyui, models = Path(options.comfyui).resolve(), options.models.resolve()
    tokenizer = comfyui / "comfy" / "text_encoders" / "t5_tokenizer"
    report = []
    if options.only != "llama":
        files = t5_files(models, 4 if options.quick else LAYERS)
        plain = {kind: plain_t5(models, files[kind]) for kind in (WHOLE, "bf16")}
        report.append(("T5-XL", *measured(files, plain, options, comfyui, tokenizer)))
    if options.only != "t5":
        files = llama_files(models, 4 if options.quick else LLAMA_LAYERS, tokenizer)
        report.append(("Llama, 1.1 billion weights", *measured(files, files, options, comfyui, tokenizer)))
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
    variants, folders = [], {}
    for device in devices():
        for kind, dtype in ((PICKLE, "float32"), (WHOLE, "float32"), ("bf16", "bfloat16")):
            if kind in files:
                way = "torch.load" if kind == PICKLE else PLAIN
                variants.append(Variant(f"{way}, {kind.split()[0]}", kind, files[kind], None, device))
                folders[variants[-1]] = plain[WHOLE if kind == PICKLE else kind], dtype
        for kind, path in files.items():
            way = kind.split()[0]
            variants.append(Variant(f"ours, {way}", kind, path, "fp32" if way == WHOLE else "auto", device))
    root = files[WHOLE].parent
    results: Results = defaultdict(Found)
    start, busy, own, theirs = time.perf_counter(), busy_seconds(), time.process_time(), 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(1, options.rounds + 1):
            for variant in variants:
                say(f"Round {number} of {options.rounds}: {variant.label} from the {variant.weights} …")
                command = [WORKER, "--comfyui", comfyui, "--tokenizer", tokenizer, "--root", root]
                command += ["--encoder", variant.encoder.relative_to(root).as_posix()]
                command += ["--threads", options.threads, "--device", variant.device]
                if variant.dtype:
                    command += ["--dtype", variant.dtype]
                else:
                    folder, dtype = folders[variant]
                    command += ["--folder", folder, "--plain", dtype]
                theirs += measure(variant, list(map(str, command)), comfyui, Path(scratch), results[variant])
            compare(variants, Path(scratch), results)
    others = (busy_seconds() - busy) - (time.process_time() - own) - theirs
    return results, max(0.0, others / (time.perf_counter() - start))


def measure(variant: Variant, command: list[str], comfyui: Path, scratch: Path, found: Found) -> float:
    """Adds to `found`; saves the states of both texts. Seconds of processor time that it took."""
    with running({variant: command}, comfyui) as [worker]:
        idle = worker.ask("memory")["now"]
        loaded = worker.ask("load")["seconds"]
        first, another, again = (
            worker.ask(
                "states", text=text, save=save and str(scratch / f"{variant.label} {variant.weights} {save}")
            )
            for text, save in ((TEXTS[0], "1"), (TEXTS[1], "2"), (TEXTS[1], ""))
        )
        memory = worker.ask("memory")
        found.first.append(loaded + first["seconds"])
        found.another.append(another["seconds"])
        found.again.append(again["seconds"])
        found.peak.append(memory["peak"])
        found.device_peak.append(memory["device_peak"])
        found.above.append(memory["peak"] - idle)
        return worker.worked()


def compare(variants: list[Variant], scratch: Path, results: Results) -> None:
    """With transformers in fp32, on the CPU."""
    truth = next(variant for variant in variants if variant.way == f"{PLAIN}, fp32")
    for variant in variants:
        apart = [
            difference(
                scratch / f"{truth.label} {truth.weights} {text}",
                scratch / f"{variant.label} {variant.weights} {text}",
            )
            for text in "12"
        ]
        results[variant].relative.append(max(relative for _, relative in apart))


def busy_seconds() -> float:
    """Of all cores, since the system's start."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0)


def table(results: Results) -> str:
    rows = [COLUMNS, ("---",) * 2 + ("---:",) * (len(COLUMNS) - 2)]
    reference = next(iter(results.values()))
    for variant, found in results.items():
        peak = f"{median(found.peak) / 1e9:.2f}"
        if any(found.device_peak):
            peak += f" + {median(found.device_peak) / 1e9:.2f} on the device"
        rows.append(
            (
                variant.label,
                variant.weights,
                f"{size_of(variant.encoder) / 1e9:.2f}",
                f"{median(found.first):.1f}",
                f"{ratio(reference.first, found.first):.1f}",
                f"{median(found.another):.2f}",
                f"{ratio(reference.another, found.another):.1f}",
                f"{median(found.again):.2f}",
                peak,
                f"{median(found.above) / 1e9:.2f}",
                f"{median(found.relative):.1e}",
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def ratio(reference: list[float], found: list[float]) -> float:
    return median(a / b for a, b in zip(reference, found, strict=True))


def size_of(encoder: Path) -> int:
    """Of the weights."""
    files = encoder.glob("*.safetensors") if encoder.is_dir() else [encoder]
    return sum(file.stat().st_size for file in files)


def verdict(results: Results) -> tuple[str, bool]:
    """Holds the T5's figures on the CPU against what is wanted. In words, and whether all is met."""
    ours = {
        variant.weights: (found, size_of(variant.encoder))
        for variant, found in results.items()
        if variant.dtype and variant.device == "cpu"
    }
    checks = []
    pickle = next((found for variant, found in results.items() if variant.way == "torch.load, fp32"), None)
    for kind in (PICKLE, WHOLE, "bf16"):
        if pickle and kind in ours:
            faster = ratio(pickle.first, ours[kind][0].first)
            checks.append(
                (
                    faster >= FASTER,
                    f"first states from the {kind} {faster:.1f} times sooner (wanted: {FASTER:g})",
                )
            )
    found, size = ours["bf16"]
    # Of the whole process, Python, torch and ComfyUI alone would be a third: what the encoder adds is judged.
    whole, above = (median(part) / size for part in (found.peak, found.above))
    words = f"bf16 adds {above:.2f} times its file at the peak (at most {OF_FILE}; the whole process: {whole:.2f})"
    checks.append((above <= OF_FILE, words))
    small = ours["GGUF Q4_K"][0]
    whole, above = ratio(small.peak, found.peak), ratio(small.above, found.above)
    words = f"GGUF Q4_K's peak is {whole:.2f} times bf16's (at most {OF_BF16}; above idle: {above:.2f})"
    checks.append((whole <= OF_BF16, words))
    met = sum(good for good, _ in checks)
    lines = [f"Verdict: {met} of {len(checks)} targets met."]
    lines += [f"- {'met' if good else 'MISSED'}: {what}" for good, what in checks]
    return "\n".join(lines), met == len(checks)


if __name__ == "__main__":
    main()
