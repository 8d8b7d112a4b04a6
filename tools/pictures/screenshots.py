"""Draws the pictures that README and the help pages show: graphs in the real front end, on random stand-in weights.

python tools/dev.py setup && .host/venv/bin/python tools/screenshots.py
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from host.comfyui import COMFYUI_DIR, ROOT, VENV_DIR, Installation, venv_python
from pictures.thumbnails import (
    BROWSERS,
    SETTLED,
    WIDTH,
    find_browser,
    open_page,
    photograph,
    quiet_front_end,
    wait_for_canvas,
)
from sandbox.model_choice import make_standins
from sandbox.server import Server
from sandbox.workflow import TEXT_TO_IMAGE, model_files, read_workflow

if TYPE_CHECKING:
    from playwright.sync_api import Page

# Beside the help pages: the front end shows what lies there alone.
PICTURES = ROOT / "web" / "docs" / "pictures"
PROMPT = "a blue sheep next to a brown vase, behind them a red bookcase and a window with yellow curtains"
SHEEP = "a blue sheep next to a brown vase"
TOO_LONG = (
    f"{PROMPT}, a small green frog sits on the vase, a white cat sleeps on the lowest shelf, beside it three orange "
    "pumpkins and a silver lamp, through the window one sees a black mountain under a pink sky, and on the floor "
    "lies a striped carpet with purple and golden tassels"
)
SUFFIX, MAP_SUFFIX = ".jpg", ".png"
NARROW = 1100  # pixels of a picture, at most
COLOURS = 128
RUN_TIMEOUT = 120_000  # ms

_BUILD = """
([nodes, links]) => {
  app.graph.clear();
  const made = nodes.map(([type, [x, y, width, height], values]) => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.pos = [x, y];
    node.setSize([width, height]);
    for (const [name, value] of Object.entries(values)) node.widgets.find((w) => w.name === name).value = value;
    return node;
  });
  for (const [from, output, to, input] of links) {
    made[from].connect(output, made[to], made[to].findInputSlot(input));
  }
}
"""
_SAID = """(types) => app.graph.nodes.every(
  (node) => !types.includes(node.type) || node.widgets.some((widget) => widget.name === "llm4gen_note"),
)"""
_SHOWN = "() => app.graph.nodes.some((node) => node.imgs?.[0]?.complete && node.imgs[0].naturalWidth)"


@dataclass(frozen=True)
class Node:
    """place: left, top, width and height, the title above it. links: input → the number of the node that feeds it,
    and of its output."""

    type: str
    place: tuple[int, int, int, int]
    values: dict[str, Any] = field(default_factory=dict)
    links: dict[str, tuple[int, int]] = field(default_factory=dict)


LLM_LOADER, ADAPTER_LOADER, ATTENTION = (
    "LLM4GEN_LoadLLMEncoder",
    "LLM4GEN_LoadCrossAdapter",
    "LLM4GEN_Attention",
)
LOADERS = (
    Node("CheckpointLoaderSimple", (0, 0, 300, 98)),
    Node(LLM_LOADER, (0, 150, 300, 106)),
    Node(ADAPTER_LOADER, (0, 308, 300, 58)),
)
FUSION = {"clip": (0, 1), "llm": (1, 0), "adapter": (2, 0)}  # outputs of LOADERS
CONDITIONING = Node("LLM4GEN_Conditioning", (350, 0, 330, 366), {"text": PROMPT}, FUSION)
CLIP = Node("LLM4GEN_ApplyToCLIP", (350, 0, 270, 146), {}, FUSION)
SAMPLER = Node("KSampler", (730, 0, 240, 262), {}, {"model": (0, 0), "positive": (3, 0)})
# Picture → what it shows. Of the help pages': the node and its neighbours.
SCENES = {
    LLM_LOADER: (
        Node(LLM_LOADER, (0, 0, 300, 106)),
        Node(ADAPTER_LOADER, (0, 158, 300, 58)),
        Node(CLIP.type, (350, 0, 270, 146), {}, {"llm": (0, 0), "adapter": (1, 0)}),
    ),
    ADAPTER_LOADER: (*LOADERS, CONDITIONING),
    CONDITIONING.type: (*LOADERS, CONDITIONING, SAMPLER),
    CLIP.type: (
        *LOADERS,
        CLIP,
        Node("CLIPTextEncode", (670, 0, 270, 170), {"text": PROMPT}, {"clip": (3, 0)}),
        Node("CLIPTextEncode", (670, 222, 270, 144), {"text": "blurry"}, {"clip": (3, 0)}),
    ),
    ATTENTION: (
        *LOADERS,
        Node(ATTENTION, (350, 0, 250, 200), {"text": SHEEP}, FUSION),
        Node("PreviewImage", (650, 0, 400, 366), {}, {"images": (3, 0)}),
    ),
    "too_long": (*LOADERS, replace(CONDITIONING, values={"text": TOO_LONG})),
}
EMPTY_LISTS = (Node(LLM_LOADER, (0, 0, 300, 106)), Node(ADAPTER_LOADER, (350, 0, 300, 58)))


def draw(host: Installation, executable: str, target: Path = PICTURES) -> Iterator[Path]:
    """Writes all the pictures into `target`."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        models, empty = Path(name, "models"), Path(name, "empty")
        put_under_published_names(make_standins(host), models)
        with opened(host, executable, Path(name, "full"), [models]) as (page, server):
            page.evaluate("(workflow) => app.loadGraphData(workflow)", read_workflow(TEXT_TO_IMAGE))
            yield take(page, target / f"text_to_image{SUFFIX}", WIDTH)
            for scene, nodes in SCENES.items():
                build(page, nodes)
                if ATTENTION in {node.type for node in nodes}:
                    run(page)
                    yield keep_map(server, target / f"attention_map{MAP_SUFFIX}")
                yield take(page, target / f"{scene}{SUFFIX}")
        with opened(host, executable, empty) as (page, _):
            build(page, EMPTY_LISTS)
            yield take(page, target / f"nothing_to_choose{SUFFIX}", speaking=(LLM_LOADER, ADAPTER_LOADER))


def put_under_published_names(standins: Path, models: Path) -> None:
    """The stand-ins under the names that the example workflow uses, so that what is seen is what a user sees."""
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    for file in model_files(read_workflow(TEXT_TO_IMAGE)):
        (source,) = (standins / Path(file).parent).iterdir()
        published = models / file
        published.parent.mkdir(parents=True)
        if source.suffix == published.suffix:
            shutil.copyfile(source, published)
        else:
            save_file(torch.load(source, weights_only=True), published)


@contextmanager
def opened(
    host: Installation, executable: str, base: Path, models: Sequence[Path] = ()
) -> Iterator[tuple[Page, Server]]:
    quiet_front_end(base)
    with Server(host, base, models) as server, open_page(server.url, executable) as page:
        wait_for_canvas(page, server.url)
        page.wait_for_timeout(SETTLED)
        yield page, server


def build(page: Page, nodes: Sequence[Node]) -> None:
    """Opens a graph of these nodes."""
    links = [[*node.links[name], to, name] for to, node in enumerate(nodes) for name in node.links]
    page.evaluate(_BUILD, [[[node.type, node.place, node.values] for node in nodes], links])


def take(
    page: Page, target: Path, width: int = NARROW, speaking: Sequence[str] = (CONDITIONING.type,)
) -> Path:
    """A picture of the open graph, with what the pack says under its nodes. speaking: types of which each says
    something for certain."""
    page.wait_for_function(_SAID, arg=list(speaking))
    page.wait_for_timeout(SETTLED)  # until the others have said theirs
    photograph(page, width, largest=1).save(target, quality=85, optimize=True)
    return target


def run(page: Page) -> None:
    """Runs the open graph, until its picture is shown in it."""
    page.evaluate("() => app.queuePrompt(0)")
    page.wait_for_function(_SHOWN, timeout=RUN_TIMEOUT)


def keep_map(server: Server, target: Path) -> Path:
    """The attention map that has just been previewed, in few colours: it has no others."""
    from PIL import Image  # noqa: PLC0415

    (made,) = (server.base / "temp").glob("*.png")
    with Image.open(made) as picture:
        picture.convert("RGB").quantize(COLOURS).save(target, optimize=True)
    return target


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    browser = find_browser()
    if browser is None:
        raise SystemExit(f"no browser: one of {', '.join(BROWSERS)} is needed on the PATH.")
    for target in draw(Installation(COMFYUI_DIR, VENV_DIR / venv_python()), browser):
        print(f"{target} ({target.stat().st_size / 1024:.0f} KB)")


if __name__ == "__main__":
    main()
