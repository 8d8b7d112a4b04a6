"""Prints what was measured: tables in Markdown, the machine, and the verdict."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

QUIET = 0.1  # cores; if other programs use more, the times are not reliable

# The heading of a column, and the format of its numbers; "" for a column of text.
Column = tuple[str, str]
Cell = str | float | None
Check = tuple[bool, str]  # whether a target was met, and its text


@dataclass(frozen=True)
class Table:
    """What was measured, printed in Markdown. None is an empty cell; a string is printed as it is."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""

    def __str__(self) -> str:
        def text(cell: Cell, form: str) -> str:
            return "" if cell is None else cell if isinstance(cell, str) else format(cell, form)

        forms = [form for _, form in self.columns]
        lines = [[heading for heading, _ in self.columns], ["---:" if form else "---" for form in forms]]
        lines += [[text(cell, form) for cell, form in zip(row, forms, strict=True)] for row in self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{self.title}:\n\n{table}" if self.title else table


def write_json(path: Path, tables: Sequence[Table], about: dict[str, Any], checks: Sequence[Check]) -> None:
    """Writes the numbers of the tables as they were measured, for programs.

    about: what `describe` in the worker returned.
    """
    found = {
        "about": {**about, "processor": processor(), "date": datetime.date.today().isoformat()},
        "tables": [asdict(table) for table in tables],
        "targets": [{"met": is_met, "text": text} for is_met, text in checks],
    }
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")


def ratio(reference: Sequence[float], found: Sequence[float]) -> float:
    """The median of the ratios of each round."""
    return median(a / b for a, b in zip(reference, found, strict=True))


def gigabytes(memory: float, on_device: float = 0) -> str:
    """Bytes as GB, with those on an accelerator if there are any."""
    return f"{memory / 1e9:.2f}" + (f" + {on_device / 1e9:.2f} on the device" if on_device else "")


def machine(about: dict[str, Any], rounds: int, busy_cores: float) -> str:
    """Says where and when it was measured.

    about:      what `describe` in the worker returned.
    busy_cores: how many cores other programs used.
    """
    memory = psutil.virtual_memory().total / 1e9
    products = ", ".join(about["products"]) or "none known"
    device = about["accelerator name"]
    lines = [
        f"Machine: {processor()}, {psutil.cpu_count()} cores, {memory:.0f} GB of memory, {platform.system()}; "
        f"16-bit products: {products}.",
        f"torch {about['torch']}, threads: {about['threads']}; Python {platform.python_version()}; "
        f"{datetime.date.today().isoformat()}; medians of {rounds} interleaved rounds.",
    ]
    if busy_cores > QUIET:
        lines.append(
            f"Other programs kept {busy_cores:.1f} cores busy meanwhile: the times are too long. The faster ways "
            "suffer most, because they consist of many small steps."
        )
    lines.append(f"Device: {device}." if device else "This machine has no GPU: nothing was measured on one.")
    return "\n".join(lines)


def processor() -> str:
    """The processor's name, if the system tells it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        return name or platform.processor()
    return platform.processor() or platform.machine()


def verdict(checks: Sequence[Check], about: str = "") -> str:
    """Says which targets were met. about: a remark on all of them."""
    met = sum(is_met for is_met, _ in checks)
    lines = [f"Verdict: {met} of {len(checks)} targets met{about}."]
    return "\n".join(lines + [f"- {'met' if is_met else 'MISSED'}: {text}" for is_met, text in checks])
