"""What `bench_encoders.py` measured, as a table, and held against what is wanted."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench.encoder_files import PICKLE, WHOLE
from bench.report import Variant, judged, markdown, memory

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


def table(results: Results) -> str:
    reference = next(iter(results.values()))
    rows = [
        (
            variant.label,
            variant.weights,
            f"{size_of(variant.encoder) / 1e9:.2f}",
            f"{median(found.first):.1f}",
            f"{ratio(reference.first, found.first):.1f}",
            f"{median(found.another):.2f}",
            f"{ratio(reference.another, found.another):.1f}",
            f"{median(found.again):.2f}",
            memory(median(found.peak), median(found.device_peak)),
            memory(median(found.above), 0),
            f"{median(found.relative):.1e}",
        )
        for variant, found in results.items()
    ]
    return markdown(COLUMNS, 2, rows)


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
            words = f"first states from the {kind} {faster:.1f} times sooner (wanted: {FASTER:g})"
            checks.append((faster >= FASTER, words))
    found, size = ours["bf16"]
    # Of the whole process, Python, torch and ComfyUI alone would be a third: what the encoder adds is judged.
    whole, above = (median(part) / size for part in (found.peak, found.above))
    words = f"bf16 adds {above:.2f} times its file at the peak (at most {OF_FILE}; the whole process: {whole:.2f})"
    checks.append((above <= OF_FILE, words))
    small = ours["GGUF Q4_K"][0]
    whole, above = ratio(small.peak, found.peak), ratio(small.above, found.above)
    words = f"GGUF Q4_K's peak is {whole:.2f} times bf16's (at most {OF_BF16}; above idle: {above:.2f})"
    checks.append((whole <= OF_BF16, words))
    return judged(checks)
