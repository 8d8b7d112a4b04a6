"""Runs the shared text-to-image workflow through a real ComfyUI, to a picture. Needs the host's Python."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from host.comfyui import HOST_DIR, HostError, Installation, end_cleanly_when_terminated
from sandbox.client import Client, ExecutionError, TextProgress, ValidationError, image_paths
from sandbox.model_choice import make_standins, with_present_models
from sandbox.server import Server
from sandbox.workflow import TEXT_TO_IMAGE, Prompt, UnknownNodes, read_workflow, to_prompt

DEMO_DIR = HOST_DIR / "demo"
RESULT = "llm4gen_text_to_image.png"
FLAT = 8.0  # of 255: a picture whose values spread less than this shows nothing


class BadPicture(RuntimeError):
    """The workflow ran, but what it saved is no picture of the size asked for."""


def demo(host: Installation, models: Sequence[Path] = (), base: Path = DEMO_DIR) -> Path:
    """Starts the server, runs the workflow file, checks the picture and returns where it lies.

    `models` are models directories with real weights; `base` is the server's base directory. Raises HostError,
    UnknownNodes, ValidationError, ExecutionError or BadPicture.
    """
    places = [*models, make_standins(host)]
    print("starting ComfyUI ...", flush=True)
    with Server(host, base, places) as server:
        client = Client(server.url)
        object_info = client.object_info()
        workflow, chosen = with_present_models(read_workflow(TEXT_TO_IMAGE), object_info, models)
        for choice in chosen:
            print(f"  {choice}", flush=True)
        prompt = to_prompt(workflow, object_info)
        print(f"running {TEXT_TO_IMAGE.name}", flush=True)
        start = time.monotonic()
        (picture,) = image_paths(client.run(prompt, TextProgress(prompt)), server.output)
        print(f"done in {time.monotonic() - start:.0f} s")
    check_picture(picture, wanted_size(prompt))
    result = base / RESULT
    shutil.copyfile(picture, result)
    if any(choice.standin for choice in chosen):
        print(
            "Some weights are random stand-ins: the picture is coloured noise, and shows that all of it runs."
        )
    return result


def wanted_size(prompt: Prompt) -> tuple[int, int]:
    """Width and height, in pixels, that a prompt's Empty Latent Image asks for."""
    (latent,) = (node["inputs"] for node in prompt.values() if node["class_type"] == "EmptyLatentImage")
    return latent["width"], latent["height"]


def check_picture(path: Path, size: tuple[int, int]) -> None:
    """Raises BadPicture unless the file is a picture of that size with something in it."""
    import numpy as np  # noqa: PLC0415 -- only here, so that the rest needs no numpy
    from PIL import Image  # noqa: PLC0415

    with Image.open(path) as picture:
        found = picture.size
        pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    if found != size:
        raise BadPicture(f"{path} is {found[0]}x{found[1]} pixels, wanted {size[0]}x{size[1]}.")
    # NaN in the picture is saved as black, so this catches it too.
    spread = float(pixels.std(axis=(0, 1)).max())
    if spread < FLAT:
        raise BadPicture(
            f"{path} is flat: its values spread by {spread:.1f} of 255. Black means NaN on the way."
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    end_cleanly_when_terminated()
    try:
        picture = demo(Installation(options.comfyui, Path(sys.executable)), options.models)
    except KeyboardInterrupt:
        return 130
    except (HostError, UnknownNodes, ValidationError, ExecutionError, BadPicture, ConnectionError) as error:
        print(f"demo failed: {error}", file=sys.stderr)
        print(f"The server's log: {DEMO_DIR / 'server.log'}", file=sys.stderr)
        return 1
    print(f"picture: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
