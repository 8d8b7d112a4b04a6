"""Shows how far a running prompt is, as text. Needs tqdm, which ComfyUI's Python has."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from sandbox.client import Prompt


class TextProgress:
    """Handles a client's events: prints the title of each node that starts, and the steps of nodes that count them.

    A terminal shows a progress bar. A log file gets a line for about each quarter of the steps.
    """

    def __init__(self, prompt: Prompt) -> None:
        self.titles = {node: entry.get("_meta", {}).get("title", node) for node, entry in prompt.items()}
        self.bar: tqdm | None = None

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data.get("max", 0) > 1:
            self.show_step(int(data["value"]), int(data["max"]))
        elif kind == "executing" and data.get("node") is not None:
            self.close_bar()
            print(f"  {self.titles.get(str(data['node']), data['node'])}", flush=True)
        elif kind.startswith("execution_"):
            self.close_bar()

    def show_step(self, value: int, total: int) -> None:
        if not sys.stdout.isatty():
            if value == total or value % max(1, total // 4) == 0:
                print(f"    {value}/{total}", flush=True)
            return
        # A node may count two things, as the layers that it loads and the layers that it runs.
        if self.bar is None or self.bar.total != total:
            self.close_bar()
            self.bar = tqdm(total=total, desc="   ", file=sys.stdout)
        self.bar.update(value - self.bar.n)

    def close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None
