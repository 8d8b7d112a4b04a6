"""Draws a prompt in a real ComfyUI and checks the picture.

With the weights of the published model if they are there, else with the demo model. Runs under ComfyUI's Python.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo_model import models as demo_model
from demo_model.picture import SIZE, found_in, said_of
from host.comfyui import HOST_DIR, HostError, Installation, end_cleanly_when_terminated
from sandbox.client import Client, ExecutionError, ValidationError, image_paths
from sandbox.model_choice import with_present_models
from sandbox.progress import TextProgress
from sandbox.server import Server
from sandbox.workflow import TEXT_TO_IMAGE, Prompt, UnknownNodes, read_workflow, to_prompt
from scenes.language import OutsideTheWorld, check_prompt

DEMO_DIR = HOST_DIR / "demo"
RESULT, DEMO_RESULT = "llm4gen_text_to_image.png", "llm4gen_demo.png"
# Title of the node that holds the prompt → its input, in the demo's graph and in the text-to-image workflow.
PROMPTS = {"Prompt": "value", "LLM4GEN Conditioning (positive)": "text"}
FLAT = 8.0  # a picture whose values (0 to 255) have a smaller standard deviation shows nothing


class BadPicture(RuntimeError):
    """The workflow ran, but the saved picture is flat or has the wrong size."""


def demo(
    host: Installation,
    models: Sequence[Path] = (),
    base: Path = DEMO_DIR,
    steps: int | None = None,
    text: str | None = None,
) -> Path:
    """Starts the server, runs a workflow, and returns the path of the checked picture.

    models: models directories with real weights. If they lack any, the demo model draws.
    base:   ComfyUI's base directory, in which the picture is saved.
    steps:  sampling steps; None: as in the workflow file.
    text:   the prompt; None: that of the workflow file.

    Raises: HostError, UnknownNodes, ValidationError, ExecutionError, BadPicture; OutsideTheWorld for a prompt that the
    demo model cannot draw.
    """
    folders = [*models, demo_model.demo_models(host)]
    print("starting ComfyUI ...", flush=True)
    with Server(host, base, folders) as server:
        client = Client(server.url)
        object_info = client.object_info()
        workflow, chosen = with_present_models(read_workflow(TEXT_TO_IMAGE), object_info, models)
        is_demo = any(choice.standin for choice in chosen)
        prompt = to_prompt(read_workflow(demo_model.GRAPH) if is_demo else workflow, object_info)
        text = set_up(prompt, text, steps)
        if is_demo:
            check_prompt(text)
            print("The weights of the published model are not there: a small demo model draws.")
            print("  Its CLIP knows no language, so that the right half shows what the LLM adds.")
            read = client.post("/llm4gen/tokens", {"text": text, **demo_model.NAMES})
            print(f"  the LLM reads: {text} ({read['llm']['tokens']} tokens)")
        else:
            for choice in chosen:
                print(f"  {choice}", flush=True)
        start = time.monotonic()
        (picture,) = image_paths(client.run(prompt, TextProgress(prompt)), server.output)
        print(f"done in {time.monotonic() - start:.0f} s")
    size = inputs_of(prompt, "EmptyLatentImage")
    check_picture(picture, SIZE if is_demo else (size["width"], size["height"]))
    result = base / (DEMO_RESULT if is_demo else RESULT)
    shutil.copyfile(picture, result)
    if is_demo:
        for half, things in zip(("left, with the LLM", "right, CLIP alone"), found_in(result), strict=True):
            print(f"  {half}: {said_of(things)}")
    return result


def set_up(prompt: Prompt, text: str | None, steps: int | None) -> str:
    """Puts a prompt and a number of steps into a graph, unless they are None. Returns the graph's prompt."""
    for node in prompt.values():
        if steps is not None and node["class_type"] == "KSampler":
            node["inputs"]["steps"] = steps
    ((inputs, name),) = (
        (node["inputs"], PROMPTS[title])
        for node in prompt.values()
        if (title := node["_meta"]["title"]) in PROMPTS
    )
    if text is not None:
        inputs[name] = text
    return inputs[name]


def inputs_of(prompt: Prompt, node_type: str) -> dict[str, Any]:
    """The inputs of the only node of a type. They may be changed in place."""
    (inputs,) = (node["inputs"] for node in prompt.values() if node["class_type"] == node_type)
    return inputs


def check_picture(path: Path, size: tuple[int, int]) -> None:
    """Raises: BadPicture unless the file is a picture with this width and height, in pixels, that is not flat."""
    with Image.open(path) as picture:
        found = picture.size
        pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    if found != size:
        raise BadPicture(f"{path} is {found[0]}x{found[1]} pixels, wanted {size[0]}x{size[1]}.")
    # ComfyUI saves NaN as black, so a picture of NaN is flat too.
    spread = float(pixels.std(axis=(0, 1)).max())
    if spread < FLAT:
        raise BadPicture(
            f"{path} is flat: the standard deviation of its values (0 to 255) is {spread:.1f}. "
            "If it is black, NaN was computed on the way."
        )


def main() -> int:
    options = _parse()
    end_cleanly_when_terminated()
    host = Installation(options.comfyui.absolute(), Path(sys.executable))
    try:
        picture = demo(host, options.models, options.base, options.steps, options.prompt)
    except KeyboardInterrupt:
        return 130
    except OutsideTheWorld as error:
        print(f"The demo model cannot draw this prompt. {error}", file=sys.stderr)
        return 1
    except (HostError, UnknownNodes, ValidationError, ExecutionError, BadPicture, ConnectionError) as error:
        print(f"demo failed: {error}", file=sys.stderr)
        print(f"The server's log: {options.base / 'server.log'}", file=sys.stderr)
        return 1
    print(f"picture: {picture}")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, metavar="DIR", help="ComfyUI's folder")
    parser.add_argument(
        "--models",
        type=Path,
        nargs="*",
        default=[],
        metavar="DIR",
        help="models folders with real weights",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="what to draw (default: as in the workflow)")
    parser.add_argument("--steps", type=int, metavar="N", help="sampling steps (default: as in the workflow)")
    parser.add_argument(
        "--base",
        type=Path,
        default=DEMO_DIR,
        metavar="DIR",
        help="an absolute path: ComfyUI's base directory for this run (default: .host/demo)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
