"""Draws the README's picture of the demo model: some prompts, each with the LLM's half and without it.

    python tools/dev.py pictures

Runs under ComfyUI's Python.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from demo_model import models as demo_model
from demo_model.picture import SIZE
from demo_model.prompts import PROMPTS
from host.comfyui import ROOT, HostError, Installation, end_cleanly_when_terminated
from sandbox.client import Client, image_paths
from sandbox.demo import set_up
from sandbox.server import Server
from sandbox.workflow import read_workflow, to_prompt

TARGET = ROOT / "web" / "docs" / "pictures" / "demo.png"
SHOWN, ACROSS = 6, 2  # prompts, and how many stand in a row
WIDTH, HEIGHT = SIZE[0] // 2, SIZE[1] // 2  # pixels of a prompt's two pictures here
TEXT, GAP = 40, 16  # pixels: height of a caption, and between prompts


def draw(host: Installation) -> Image.Image:
    """Raises: HostError, and what the client raises."""
    found = []
    with (
        tempfile.TemporaryDirectory() as base,
        Server(host, Path(base), [demo_model.demo_models(host)]) as server,
    ):
        client = Client(server.url)
        prompt = to_prompt(read_workflow(demo_model.GRAPH), client.object_info())
        for one in PROMPTS[:SHOWN]:
            set_up(prompt, one.text, None)
            (path,) = image_paths(client.run(prompt), server.output)
            with Image.open(path) as picture:
                found.append(picture.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.NEAREST))
    return sheet(found, [one.text for one in PROMPTS])


def sheet(pictures: list[Image.Image], texts: list[str]) -> Image.Image:
    """Pictures in rows, each under its text."""
    rows = -(-len(pictures) // ACROSS)
    side = WIDTH + GAP, HEIGHT + TEXT + GAP
    whole = Image.new("RGB", (GAP + ACROSS * side[0], GAP + rows * side[1]), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(14)
    for place, (picture, text) in enumerate(zip(pictures, texts, strict=False)):
        left, top = GAP + place % ACROSS * side[0], GAP + place // ACROSS * side[1]
        pen.multiline_text((left, top), text.replace("; ", ";\n", 1), "black", font, spacing=2)
        whole.paste(picture, (left, top + TEXT))
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, metavar="DIR", help="ComfyUI's folder")
    options = parser.parse_args()
    end_cleanly_when_terminated()
    try:
        draw(Installation(options.comfyui.absolute(), Path(sys.executable))).save(TARGET, optimize=True)
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
