"""Runs the text-to-image workflow in a real ComfyUI and checks its picture. Runs under ComfyUI's Python."""

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

from host.comfyui import HOST_DIR, HostError, Installation, end_cleanly_when_terminated
from sandbox.client import Client, ExecutionError, ValidationError, image_paths
from sandbox.model_choice import make_standins, with_present_models
from sandbox.progress import TextProgress
from sandbox.server import Server
from sandbox.workflow import TEXT_TO_IMAGE, Prompt, UnknownNodes, read_workflow, to_prompt

DEMO_DIR = HOST_DIR / "demo"
RESULT = "llm4gen_text_to_image.png"
FLAT = 8.0  # a picture whose values (0 to 255) have a smaller standard deviation shows nothing


class BadPicture(RuntimeError):
    """The workflow ran, but the saved picture is flat or has the wrong size."""


def demo(
    host: Installation, models: Sequence[Path] = (), base: Path = DEMO_DIR, steps: int | None = None
) -> Path:
    """Starts the server, runs the workflow file, and returns the path of the checked picture.

    models: models directories with real weights.
    base:   ComfyUI's base directory, in which the picture is saved.
    steps:  sampling steps; None: as in the workflow file.

    Raises: HostError, UnknownNodes, ValidationError, ExecutionError, BadPicture.
    """
    model_folders = [*models, make_standins(host)]
    print("starting ComfyUI ...", flush=True)
    with Server(host, base, model_folders) as server:
        client = Client(server.url)
        object_info = client.object_info()
        workflow, chosen = with_present_models(read_workflow(TEXT_TO_IMAGE), object_info, models)
        for choice in chosen:
            print(f"  {choice}", flush=True)
        prompt = to_prompt(workflow, object_info)
        if steps is not None:
            inputs_of(prompt, "KSampler")["steps"] = steps
        print(f"running {TEXT_TO_IMAGE.name}", flush=True)
        start = time.monotonic()
        (picture,) = image_paths(client.run(prompt, TextProgress(prompt)), server.output)
        print(f"done in {time.monotonic() - start:.0f} s")
    size = inputs_of(prompt, "EmptyLatentImage")
    check_picture(picture, (size["width"], size["height"]))
    result = base / RESULT
    shutil.copyfile(picture, result)
    if any(choice.standin for choice in chosen):
        print(
            "Some weights are random stand-ins: the picture is coloured noise. It shows that every node ran."
        )
    return result


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
        picture = demo(host, options.models, options.base, options.steps)
    except KeyboardInterrupt:
        return 130
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
