"""Makes ComfyUI's own module `folder_paths` usable in this process, with the folders that its main.py would use."""

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

# The ComfyUI whose custom_nodes folder this pack is in. Links are not followed: they lead to where it was cloned.
ENCLOSING_COMFYUI = Path(os.path.abspath(__file__)).parents[4]
CONFIG = "extra_model_paths.yaml"
CONFIG_ADVICE = f"Compare it with ComfyUI's {CONFIG}.example; ComfyUI does not start with this one."
# ComfyUI also looks for models of these kinds in its output folder.
KEYS_IN_OUTPUT = ("checkpoints", "clip", "vae", "diffusion_models", "loras")


@dataclass(frozen=True)
class ExtraPathsFile:
    """A file that adds model folders, as `extra_model_paths.yaml` does.

    error: why it cannot be read, in one line; None if it was read.
    """

    path: Path
    error: str | None = None


def load_folder_paths(comfyui: Path, arguments: Sequence[str]) -> list[ExtraPathsFile]:
    """Imports ComfyUI's `folder_paths` with the folders of a server that is started with these arguments.

    Starts no server. Call it once in a process: a second ComfyUI's folders would be added to the first's.

    Returns: the files that add folders.
    Raises: ImportError; SystemExit, with a line on stderr, if ComfyUI refuses the arguments.
    """
    sys.path.insert(0, str(comfyui))
    options = parse_as_comfyui(comfyui / "main.py", arguments)
    import folder_paths  # noqa: PLC0415

    default = comfyui / CONFIG
    paths = [default] if default.is_file() else []
    paths += map(Path, chain(*(options.extra_model_paths_config or [])))
    files = [ExtraPathsFile(path, add_folders(path)) for path in paths]
    if options.output_directory:
        folder_paths.set_output_directory(os.path.abspath(options.output_directory))
    for key in KEYS_IN_OUTPUT:
        folder_paths.add_model_folder_path(key, os.path.join(folder_paths.get_output_directory(), key))
    return files


def parse_as_comfyui(main: Path, arguments: Sequence[str]) -> Namespace:
    """Parses arguments with ComfyUI's own parser. Raises: SystemExit if it refuses them."""
    sys.argv = [str(main), *arguments]
    import comfy.options  # noqa: PLC0415

    comfy.options.enable_args_parsing()
    stderr = io.StringIO()
    try:
        with redirect_stderr(stderr):
            from comfy.cli_args import args  # noqa: PLC0415
    except SystemExit:
        lines = stderr.getvalue().splitlines() or [""]
        problem = (
            lines[-1].partition("error: ")[2] or lines[-1]
        )  # the lines before it are ComfyUI's long usage
        print(
            f"error: {problem}. This command passes ComfyUI's own arguments on, and ComfyUI refuses these; --help "
            "lists the command's other arguments.",
            file=sys.stderr,
        )
        raise
    return args


def add_folders(path: Path) -> str | None:
    """Adds the model folders that a file names. Returns why it cannot be read, or None."""
    from utils.extra_config import load_extra_path_config  # noqa: PLC0415

    try:
        load_extra_path_config(str(path))
    except (
        Exception
    ) as error:  # ComfyUI's reader checks nothing, so the file's content decides what is raised
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None
