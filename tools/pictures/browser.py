"""Drives ComfyUI's front end in headless Chromium, and takes pictures of graphs in it. Needs playwright and Pillow."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
# Without first-run pages, and without network connections of the browser's own.
BROWSER_ARGUMENTS = (
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTH = 1500  # pixels of a picture of a whole workflow
MARGIN = 24  # around the graph, in the graph's units
SETTLED = 2000  # ms in which the front end draws a change

# Moves the open graph to the top left of the canvas, scaled to fit. Returns its rectangle in the page.
_PREPARE = """
([margin, width, largest]) => {
  // The nodes' own getBounding() is not used: it is out of date for a node that has just grown.
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
# Menus and messages that float over the canvas are hidden. Text fields float over it too, but belong to the nodes.
_HIDE = """
body * { visibility: hidden !important; }
#graph-canvas, .dom-widget, .dom-widget * { visibility: visible !important; }
"""


def find_browser() -> str | None:
    """The path of an installed Chromium. None is downloaded."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def require_browser() -> str:
    """As `find_browser`. Raises: SystemExit if there is none."""
    browser = find_browser()
    if browser is None:
        raise SystemExit(f"error: no browser was found. Install one of {', '.join(BROWSERS)} on the PATH.")
    return browser


@contextmanager
def open_page(executable: str, width: int = 1920, height: int = 1080) -> Iterator[Page]:
    """Starts headless Chromium and opens an empty page. width, height: the page's size in pixels."""
    # Imported here, because the tests that need no browser run without playwright.
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    arguments = list(BROWSER_ARGUMENTS)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium cannot use its sandbox as root, e.g. in a container
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        try:
            yield browser.new_page(viewport={"width": width, "height": height})
        finally:
            browser.close()


def quiet_front_end(base: Path) -> None:
    """Writes the settings of a returning user, so that neither a welcome nor templates cover the canvas.

    base: the server's base directory.
    """
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}), encoding="utf-8")


def wait_for_canvas(page: Page, url: str) -> None:
    """Opens the front end, and waits until it shows its first graph."""
    page.goto(url)
    page.wait_for_function("window.app?.canvas?.graph?.nodes !== undefined", timeout=120_000)
    page.wait_for_function("app.graph.nodes.length > 0", timeout=60_000)


def photograph(page: Page, width: int, largest: float = math.inf) -> Image.Image:
    """Takes a picture of the open graph as the front end draws it, without menus and messages.

    width:   of the picture, in pixels.
    largest: the largest scale; a picture of a small graph is narrower than `width`.
    """
    clip = page.evaluate(_PREPARE, [MARGIN, width, largest])
    hiding = page.add_style_tag(content=_HIDE)
    page.wait_for_timeout(SETTLED)
    picture = page.screenshot(clip=clip)
    hiding.evaluate("(element) => element.remove()")
    return Image.open(io.BytesIO(picture)).convert("RGB")
