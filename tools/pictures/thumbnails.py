"""Draws the example workflows' thumbnails: each graph in the real front end, in headless Chromium.

python tools/dev.py setup && .host/venv/bin/python tools/picture.py
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from host.comfyui import COMFYUI_DIR, VENV_DIR, Installation, venv_python
from sandbox.server import Server
from sandbox.workflow import example_workflows, model_files, read_workflow

if TYPE_CHECKING:
    from PIL import Image
    from playwright.sync_api import Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
# A bare browser: no first-run pages, nothing that talks to the network by itself.
BROWSER_ARGUMENTS = (
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTH = 1500  # pixels of the thumbnail
MARGIN = 24  # around the graph, in its own units
SETTLED = 2000  # ms after which the front end has drawn what it was told to

# Moves the open graph into the canvas's corner, so large that it fits; its place in the page.
_PREPARE = """
([margin, width, largest]) => {
  // Not its own getBounding(): a node that has just grown tells its former size there.
  const box = ({ pos: [x, y], size: [wide, high] }, title) => [x, y - title, wide, high + title];
  const nodes = app.graph.nodes.map((node) => box(node, LiteGraph.NODE_TITLE_HEIGHT));
  const boxes = [...nodes, ...app.graph.groups.map((group) => box(group, 0))];
  const left = Math.min(...boxes.map((b) => b[0])) - margin;
  const top = Math.min(...boxes.map((b) => b[1])) - margin;
  const right = Math.max(...boxes.map((b) => b[0] + b[2])) + margin;
  const bottom = Math.max(...boxes.map((b) => b[1] + b[3])) + margin;
  const scale = Math.min(largest, width / (right - left));
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [-left, -top];
  app.canvas.show_info = false;
  app.canvas.setDirty(true, true);
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const [wide, high] = [right - left, bottom - top].map((length) => Math.round(length * scale));
  return { x: canvas.x, y: canvas.y, width: wide, height: high };
}
"""
# Menus and toasts float over the canvas. The nodes' text fields lie over it too, and stay.
_HIDE = """
body * { visibility: hidden !important; }
#graph-canvas, .dom-widget, .dom-widget * { visibility: visible !important; }
"""


def find_browser() -> str | None:
    """An installed Chromium; nothing is downloaded."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def open_page(url: str, executable: str, width: int = 1920, height: int = 1080) -> Iterator[Page]:
    """The front end in headless Chromium, ready to be given a workflow."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 -- only where a browser is driven

    arguments = list(BROWSER_ARGUMENTS)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium refuses its sandbox to root, as in a container
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        try:
            yield browser.new_page(viewport={"width": width, "height": height})
        finally:
            browser.close()


def quiet_front_end(base: Path) -> None:
    """Settings of someone who has used ComfyUI before: no welcome, no templates over the canvas."""
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}), encoding="utf-8")


def wait_for_canvas(page: Page, url: str) -> None:
    page.goto(url)
    page.wait_for_function("window.app?.canvas?.graph?.nodes !== undefined", timeout=120_000)
    page.wait_for_function("app.graph.nodes.length > 0", timeout=60_000)


def photograph(page: Page, width: int, largest: float = math.inf) -> Image.Image:
    """The open graph as the front end draws it, without all that floats over it.

    width: of the picture, in pixels. largest: the scale that small graphs stop at, where they get narrower.
    """
    from PIL import Image  # noqa: PLC0415

    clip = page.evaluate(_PREPARE, [MARGIN, width, largest])
    hiding = page.add_style_tag(content=_HIDE)
    page.wait_for_timeout(SETTLED)
    picture = page.screenshot(clip=clip)
    hiding.evaluate("(element) => element.remove()")
    return Image.open(io.BytesIO(picture)).convert("RGB")


def draw(host: Installation, files: Sequence[Path], executable: str) -> Iterator[Path]:
    """Writes the picture of each workflow file beside it, as the front end draws it."""
    workflows = {file: read_workflow(file) for file in files}
    with tempfile.TemporaryDirectory() as name:
        base, models = Path(name, "base"), Path(name, "models")
        # Empty files under the names that the workflows use: else the front end marks them red as missing.
        for file in {file for workflow in workflows.values() for file in model_files(workflow)}:
            (models / file).parent.mkdir(parents=True, exist_ok=True)
            (models / file).touch()
        quiet_front_end(base)
        with Server(host, base, [models]) as server, open_page(server.url, executable) as page:
            page.route("**/llm4gen/report", lambda route: route.abort())  # it would tell of the empty files
            for file, workflow in workflows.items():
                wait_for_canvas(page, server.url)
                page.wait_for_timeout(SETTLED)
                page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
                picture = photograph(page, WIDTH)
                target = file.with_suffix(".jpg")
                picture.save(target, quality=88, optimize=True)
                yield target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workflow", type=Path, nargs="*", help="(default: all in example_workflows/)")
    options = parser.parse_args()
    browser = find_browser()
    if browser is None:
        raise SystemExit(f"no browser: one of {', '.join(BROWSERS)} is needed on the PATH.")
    host = Installation(COMFYUI_DIR, VENV_DIR / venv_python())
    for target in draw(host, options.workflow or example_workflows(), browser):
        print(f"{target} ({target.stat().st_size / 1024:.0f} KB)")


if __name__ == "__main__":
    main()
