"""A ComfyUI's own list of folders, made in this process as its main.py makes it of its command line."""

from __future__ import annotations

import io
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

# The one whose custom_nodes this pack lies in: its links are not followed, which lead to where it was cloned.
AROUND = Path(os.path.abspath(__file__)).parents[4]
CONFIG = "extra_model_paths.yaml"
CURE = f"Compare it with ComfyUI's {CONFIG}.example; ComfyUI does not start with it."


@dataclass(frozen=True)
class Config:
    """A file that names more folders. error: why it cannot be read, in a line."""

    path: Path
    error: str | None = None


def enter(comfyui: Path, arguments: Sequence[str]) -> list[Config]:
    """From here on `folder_paths` can be imported, and knows what it would in a server that was started with these
    arguments. Starts nothing. Once in a process: a second ComfyUI's folders would be added to the first's.

    Raises: ImportError; SystemExit for arguments that ComfyUI does not take, with a line on stderr.
    """
    sys.path.insert(0, str(comfyui))
    given = command_line(comfyui / "main.py", arguments)
    import folder_paths  # noqa: PLC0415

    own = comfyui / CONFIG
    files = [*([own] if own.is_file() else []), *map(Path, chain(*(given.extra_model_paths_config or [])))]
    configs = [Config(file, read(file)) for file in files]
    if given.output_directory:
        folder_paths.set_output_directory(os.path.abspath(given.output_directory))
    for folder in ("checkpoints", "clip", "vae", "diffusion_models", "loras"):
        saved = os.path.join(folder_paths.get_output_directory(), folder)
        folder_paths.add_model_folder_path(folder, saved)
    return configs


def command_line(main: Path, arguments: Sequence[str]) -> Namespace:
    """What ComfyUI's own parser makes of it."""
    sys.argv = [str(main), *arguments]
    import comfy.options  # noqa: PLC0415

    comfy.options.enable_args_parsing()
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            from comfy.cli_args import args  # noqa: PLC0415
    except SystemExit:
        (*_, last) = ["", *said.getvalue().splitlines()]  # before it, ComfyUI's usage at length
        found = last.partition("error: ")[2] or last
        print(
            f"error: {found}: ComfyUI does not take that, and --help lists what else may be given",
            file=sys.stderr,
        )
        raise
    return args


def read(config: Path) -> str | None:
    """Adds the folders that it names; what is wrong with it."""
    from utils.extra_config import load_extra_path_config  # noqa: PLC0415

    try:
        load_extra_path_config(str(config))
    except Exception as error:  # whatever is in it
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None
