"""Where weights lie on the host: lists them for the drop-downs and finds them again.

Names are paths relative to their folder, always with `/`, so that a workflow saved on Windows opens elsewhere.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import folder_paths

from ..models.errors import MissingFile
from ..models.weights import SUFFIXES

ADAPTERS = "llm4gen"
ENCODERS = "text_encoders"
ADVICE = {
    ADAPTERS: "put LLM4GEN's projector.pth in ComfyUI/models/llm4gen, then refresh",
    ENCODERS: "put the T5 encoder (rankgen-t5-xl-all) in ComfyUI/models/text_encoders, then refresh",
}


def register() -> None:
    """Tells the host about our folder key; paths that `extra_model_paths.yaml` gave it stay in front."""
    folder_paths.add_model_folder_path(ADAPTERS, str(Path(folder_paths.models_dir) / ADAPTERS))


def choices(key: str) -> list[str]:
    """What a drop-down offers: the weights found, or one entry that says what to put where."""
    return sorted(listed(key)) or [ADVICE[key]]


def resolve(key: str, name: str) -> Path:
    """The file or folder that a drop-down's entry stands for.

    Only what was listed is found, so a name cannot lead out of the model folders.
    Raises: MissingFile.
    """
    found = listed(key)
    path = found.get(portable(name))
    if path is None:
        places = " or ".join(folder_paths.get_folder_paths(key))
        raise MissingFile(
            f"{name!r} is not among the {len(found)} files for this node in {places}. "
            f"To use this node, {ADVICE[key]}."
        )
    return path


def fingerprint(key: str, name: str) -> str:
    """Changes when the file behind a name does, so that the host loads it anew."""
    path = listed(key).get(portable(name))
    if path is None:
        return name
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return repr([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])


def listed(key: str) -> dict[str, Path]:
    """Name → path of all weights under a folder key: files, and folders with a `config.json` as one entry."""
    found: dict[str, Path] = {}
    for name in folder_paths.get_filename_list(key):
        full = folder_paths.get_full_path(key, name)
        if full is None or Path(name).suffix.lower() not in SUFFIXES:
            continue
        inner, path = Path(name), Path(full)
        if inner.parent.name and (path.parent / "config.json").is_file():
            inner, path = inner.parent, path.parent
        found[inner.as_posix()] = path
    return found


def portable(name: str) -> str:
    """A name as any system writes it → as we list it."""
    return name.replace("\\", "/")


def tokenizer_folder(encoder: Path) -> Path | None:
    """The folder that belongs to an encoder alone and may hold its tokenizer, if it has one."""
    folder = encoder if encoder.is_dir() else encoder.parent
    shared = {Path(root) for root in folder_paths.get_folder_paths(ENCODERS)}
    return None if folder in shared else folder


def host_t5_tokenizer() -> Path:
    """The T5 tokenizer that ComfyUI ships."""
    (package, *_) = importlib.util.find_spec("comfy.text_encoders").submodule_search_locations
    return Path(package) / "t5_tokenizer"
