"""ComfyUI's model folders, and which of the needed files are in them already."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from fetch.failures import FAILED, CannotFetch
from fetch.items import AMBIGUOUS, ITEMS, Item
from host import folders as host_folders
from host.comfyui import MODEL_FOLDERS


def model_folders(comfyui: Path, arguments: Sequence[str]) -> dict[str, list[Path]]:
    """ComfyUI's folder keys → the folders that it searches, as its own code answers. New files go into the first.

    arguments: the arguments that this ComfyUI is started with.
    Raises: CannotFetch; SystemExit if ComfyUI refuses the arguments.
    """
    try:
        files = host_folders.load_folder_paths(comfyui, arguments)
        import folder_paths  # noqa: PLC0415
    except ImportError as error:
        raise CannotFetch(
            FAILED,
            f"{sys.executable} cannot run the ComfyUI in {comfyui} ({error}). Run this with ComfyUI's own Python.",
        ) from error
    for file in files:
        if file.error:
            raise CannotFetch(
                FAILED, f"{file.path} cannot be read ({file.error}). {host_folders.CONFIG_ADVICE}"
            )
    models = Path(folder_paths.models_dir)
    # As `register` in nodes/folders.py does it, which cannot be imported without the rest of ComfyUI.
    folder_paths.add_model_folder_path("llm4gen", str(models / "llm4gen"))
    return {
        key: newer_name_first(map(Path, folder_paths.get_folder_paths(key)), models, key)
        for key in (item.folder_key for item in ITEMS.values())
    }


def newer_name_first(folders: Iterable[Path], models: Path, key: str) -> list[Path]:
    """Puts ComfyUI's own folder with the newer name in front of the one with the older name.

    ComfyUI lists `unet` before `diffusion_models`. models: ComfyUI's models directory.
    """
    folders = list(folders)
    newer, *older = (models / name for name in MODEL_FOLDERS[key])
    if folders[0] in older and newer in folders:
        folders.remove(newer)
        folders.insert(0, newer)
    return folders


def find_installed(item: Item, folders: Sequence[Path], dtype: str | None) -> Path | None:
    """The item's file in one of these folders, if it is there.

    dtype: None if any dtype will do.
    Raises: CannotFetch if a file of the item's name holds something else.
    """
    for name in item.possible_names(dtype):
        for path in (folder / name for folder in folders):
            if not path.is_file():
                continue
            problem = why_unusable(item, path)
            if problem is None:
                return path
            if name != AMBIGUOUS:
                raise CannotFetch(
                    FAILED,
                    f"{path} exists already, but cannot be used: {problem} Remove or rename it, and run this again.",
                )
    return None


def why_unusable(item: Item, path: Path) -> str | None:
    """Why a file cannot serve as this item; None if it can. A UNet is not opened, because ComfyUI reads it."""
    if not item.is_converted:
        return None if path.stat().st_size else "It is empty."
    from llm4gen.models.conversion.plans import plan_conversion  # noqa: PLC0415
    from llm4gen.models.errors import LLM4GENError  # noqa: PLC0415

    try:
        kind = plan_conversion(path).kind
    except LLM4GENError as error:
        return str(error)
    return None if kind.startswith(item.model_kind) else f"It holds another model ({kind})."
