"""Draws the thumbnail of each example workflow, as the real front end shows its graph.

`python tools/dev.py pictures` runs this and screenshots.py. By itself, in tools/, with ComfyUI's Python:

    python -m pictures.thumbnails ../example_workflows/llm4gen_compare.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from host.comfyui import COMFYUI_DIR, Installation
from pictures.browser import (
    SETTLED,
    WIDTH,
    open_page,
    photograph,
    quiet_front_end,
    require_browser,
    wait_for_canvas,
)
from sandbox.server import Server
from sandbox.workflow import example_workflows, model_files, read_workflow


def draw(host: Installation, files: Sequence[Path], executable: str) -> Iterator[Path]:
    """Writes the picture of each workflow file beside it, and yields its path. executable: the browser's path."""
    workflows = {file: read_workflow(file) for file in files}
    with tempfile.TemporaryDirectory() as name:
        base, models = Path(name, "base"), Path(name, "models")
        # The front end marks missing models red. Empty files with the names that the workflows use are enough for it.
        for file in {file for workflow in workflows.values() for file in model_files(workflow)}:
            # A name without an ending is a folder's.
            names = [file] if Path(file).suffix else [f"{file}/config.json", f"{file}/model.safetensors"]
            for path in (models / name for name in names):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        (base / "input" / "my_pictures").mkdir(parents=True)
        quiet_front_end(base)
        with Server(host, base, [models]) as server, open_page(executable) as page:
            # Without its route, the pack cannot report in the graph that the files are empty.
            page.route("**/llm4gen/report", lambda route: route.abort())
            for file, workflow in workflows.items():
                wait_for_canvas(page, server.url)
                page.wait_for_timeout(SETTLED)
                page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
                target = file.with_suffix(".jpg")
                photograph(page, WIDTH).save(target, quality=88, optimize=True)
                yield target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workflow", type=Path, nargs="*", help="(default: all in example_workflows/)")
    parser.add_argument("--comfyui", type=Path, default=COMFYUI_DIR, metavar="DIR", help="ComfyUI's folder")
    options = parser.parse_args()
    host = Installation(options.comfyui.absolute(), Path(sys.executable))
    for target in draw(host, options.workflow or example_workflows(), require_browser()):
        print(f"{target} ({target.stat().st_size / 1024:.0f} KB)")


if __name__ == "__main__":
    main()
