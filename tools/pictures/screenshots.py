"""Draws the pictures in the README and on the help pages: graphs in the real front end, with random stand-in weights.

`python tools/dev.py pictures` runs thumbnails.py and this. By itself, in tools/, with ComfyUI's Python:

    python -m pictures.screenshots
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from host.comfyui import COMFYUI_DIR, ROOT, Installation
from pictures.browser import (
    SETTLED,
    WIDTH,
    open_page,
    photograph,
    quiet_front_end,
    require_browser,
    wait_for_canvas,
)
from sandbox.model_choice import make_standins
from sandbox.server import Server
from sandbox.workflow import TEXT_TO_IMAGE, model_files, read_workflow

if TYPE_CHECKING:
    from playwright.sync_api import Page

# The front end shows only pictures that are in the folder of the help pages.
PICTURES = ROOT / "web" / "docs" / "pictures"
PROMPT = "a blue sheep next to a brown vase, behind them a red bookcase and a window with yellow curtains"
SHEEP = "a blue sheep next to a brown vase"
TOO_LONG = (
    f"{PROMPT}, a small green frog sits on the vase, a white cat sleeps on the lowest shelf, beside it three orange "
    "pumpkins and a silver lamp, through the window one sees a black mountain under a pink sky, and on the floor "
    "lies a striped carpet with purple and golden tassels"
)
SUFFIX, MAP_SUFFIX = ".jpg", ".png"
NARROW = 1100  # largest width of a picture of a few nodes, in pixels
COLOURS = 128
RUN_TIMEOUT = 120_000  # ms

# Replaces the open graph by new nodes and links. clean() also forgets what nodes of the same ids have shown.
_BUILD = """
([nodes, links]) => {
  app.clean();
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
# Whether the pack shows a note under each node of these types.
_NOTES_SHOWN = """(types) => app.graph.nodes.every(
  (node) => !types.includes(node.type) || node.widgets.some((widget) => widget.name === "llm4gen_note"),
)"""
# Whether a node shows a picture that is completely loaded.
_PICTURE_SHOWN = "() => app.graph.nodes.some((node) => node.imgs?.[0]?.complete && node.imgs[0].naturalWidth)"


@dataclass(frozen=True)
class Node:
    """A node to draw.

    type:   the node's id.
    box:    left, top, width and height; the title is above the box.
    values: widget → its value.
    links:  input → the index of the node that it is connected to, and of that node's output.
    """

    type: str
    box: tuple[int, int, int, int]
    values: dict[str, Any] = field(default_factory=dict)
    links: dict[str, tuple[int, int]] = field(default_factory=dict)


LLM_LOADER, ADAPTER_LOADER, FUSE, ATTENTION = (
    "LLM4GEN_LoadLLMEncoder",
    "LLM4GEN_LoadCrossAdapter",
    "LLM4GEN_FuseConditioning",
    "LLM4GEN_Attention",
)
LOADERS = (
    Node("CheckpointLoaderSimple", (0, 0, 300, 98)),
    Node(LLM_LOADER, (0, 150, 300, 106)),
    Node(ADAPTER_LOADER, (0, 308, 300, 58)),
)
FUSION = {"clip": (0, 1), "llm": (1, 0), "adapter": (2, 0)}  # connects a node to LOADERS
CONDITIONING = Node("LLM4GEN_Conditioning", (350, 0, 330, 366), {"text": PROMPT}, FUSION)
CLIP = Node("LLM4GEN_ApplyToCLIP", (350, 0, 270, 146), {}, FUSION)
SAMPLER = Node("KSampler", (730, 0, 240, 262), {}, {"model": (0, 0), "positive": (3, 0)})
NEW, SET, TRAIN, SAVE = (
    f"LLM4GEN_{name}" for name in ("NewCrossAdapter", "TrainingSet", "TrainCrossAdapter", "SaveCrossAdapter")
)
# A whole training, in an order in which the first nodes are a graph by themselves.
TRAINING = (
    Node(LLM_LOADER, (0, 0, 300, 106)),
    Node(NEW, (350, 0, 300, 330), {}, {"llm": (0, 0)}),
    Node("CheckpointLoaderSimple", (0, 158, 300, 98)),
    Node("LoadImageTextDataSetFromFolder", (0, 308, 300, 80)),
    Node(
        SET,
        (700, 0, 260, 150),
        {},
        {"texts": (3, 1), "clip": (2, 1), "llm": (0, 0), "adapter": (1, 0), "images": (3, 0), "vae": (2, 2)},
    ),
    Node(TRAIN, (1010, 0, 300, 546), {}, {"model": (2, 0), "training_set": (4, 0), "adapter": (1, 0)}),
    Node(SAVE, (1360, 0, 270, 150), {}, {"adapter": (5, 0)}),
)
# Name of a picture → the nodes in it. A help page shows its node and the neighbours.
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
    FUSE: (
        *LOADERS,
        Node("CLIPTextEncode", (350, 0, 270, 170), {"text": PROMPT}, {"clip": (0, 1)}),
        Node(
            FUSE,
            (670, 0, 330, 260),
            {"text": PROMPT},
            {"conditioning": (3, 0), "llm": (1, 0), "adapter": (2, 0)},
        ),
    ),
    ATTENTION: (
        *LOADERS,
        Node(ATTENTION, (350, 0, 250, 200), {"text": SHEEP}, FUSION),
        Node("PreviewImage", (650, 0, 400, 366), {}, {"images": (3, 0)}),
    ),
    NEW: TRAINING[:2],
    SET: TRAINING[:5],
    TRAIN: TRAINING,
    SAVE: (
        replace(TRAINING[5], box=(0, 0, 300, 546), links={}),
        replace(TRAINING[6], box=(350, 0, 270, 150), links={"adapter": (0, 0)}),
    ),
    "too_long": (*LOADERS, replace(CONDITIONING, values={"text": TOO_LONG})),
}
EMPTY_LISTS = (Node(LLM_LOADER, (0, 0, 300, 106)), Node(ADAPTER_LOADER, (350, 0, 300, 58)))


def draw(host: Installation, executable: str, target: Path = PICTURES) -> Iterator[Path]:
    """Writes all pictures into the folder `target`, and yields their paths. executable: the browser's path."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        models, empty = Path(name, "models"), Path(name, "empty")
        put_under_published_names(make_standins(host), models)
        with front_end(host, executable, Path(name, "full"), [models]) as (page, server):
            page.evaluate("(workflow) => app.loadGraphData(workflow)", read_workflow(TEXT_TO_IMAGE))
            yield save_picture(page, target / f"text_to_image{SUFFIX}", WIDTH)
            for scene, nodes in SCENES.items():
                build(page, nodes)
                if ATTENTION in {node.type for node in nodes}:
                    run_graph(page)
                    yield save_map(server, target / f"attention_map{MAP_SUFFIX}")
                yield save_picture(page, target / f"{scene}{SUFFIX}")
        with front_end(host, executable, empty) as (page, _):
            build(page, EMPTY_LISTS)
            yield save_picture(
                page, target / f"nothing_to_choose{SUFFIX}", noted=(LLM_LOADER, ADAPTER_LOADER)
            )


def put_under_published_names(standins: Path, models: Path) -> None:
    """Copies the stand-ins to the file names in the example workflow, which are those that users see."""
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
def front_end(
    host: Installation, executable: str, base: Path, models: Sequence[Path] = ()
) -> Iterator[tuple[Page, Server]]:
    """Starts a server and opens its front end in a browser. base: the server's base directory."""
    quiet_front_end(base)
    with Server(host, base, models) as server, open_page(executable) as page:
        wait_for_canvas(page, server.url)
        page.wait_for_timeout(SETTLED)
        yield page, server


def build(page: Page, nodes: Sequence[Node]) -> None:
    """Replaces the open graph by these nodes."""
    links = [[*node.links[name], to, name] for to, node in enumerate(nodes) for name in node.links]
    page.evaluate(_BUILD, [[[node.type, node.box, node.values] for node in nodes], links])


def save_picture(
    page: Page, target: Path, width: int = NARROW, noted: Sequence[str] = (CONDITIONING.type,)
) -> Path:
    """Saves a picture of the open graph with the pack's notes under its nodes.

    noted: node types that always get a note. The picture is taken after these notes are shown.
    """
    page.wait_for_function(_NOTES_SHOWN, arg=list(noted))
    page.wait_for_timeout(SETTLED)  # for the notes of other nodes
    photograph(page, width, largest=1).save(target, quality=85, optimize=True)
    return target


def run_graph(page: Page) -> None:
    """Runs the open graph, and waits until one of its nodes shows a picture."""
    page.evaluate("() => app.queuePrompt(0)")
    page.wait_for_function(_PICTURE_SHOWN, timeout=RUN_TIMEOUT)


def save_map(server: Server, target: Path) -> Path:
    """Saves the attention map that was just previewed. It has so few colours that a palette makes its file small."""
    (preview,) = (server.base / "temp").glob("*.png")
    with Image.open(preview) as picture:
        picture.convert("RGB").quantize(COLOURS).save(target, optimize=True)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, default=COMFYUI_DIR, metavar="DIR", help="ComfyUI's folder")
    host = Installation(parser.parse_args().comfyui.absolute(), Path(sys.executable))
    for target in draw(host, require_browser()):
        print(f"{target} ({target.stat().st_size / 1024:.0f} KB)")


if __name__ == "__main__":
    main()
