"""The model folders: lists encoders and adapters for the drop-downs, and finds the file behind a name.

Names are paths relative to a model folder, always written with `/`, so that a workflow saved on Windows opens on other
systems.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from itertools import count
from pathlib import Path

import folder_paths

from ..models.errors import MissingFile, WrongTraining
from ..models.files.formats import GGUF, SUFFIXES, has_tokenizer, is_hidden, tokenizer_beside
from ..models.files.listing import models_under, stamp

ADAPTERS = "llm4gen"
ENCODERS = "text_encoders"
FEATURES = "llm4gen_cache"
ADVICE = {
    ADAPTERS: "put LLM4GEN's projector.pth in ComfyUI/models/llm4gen, or run this pack's tools/fetch_weights.py, "
    "then refresh",
    ENCODERS: "put the T5 encoder (rankgen-t5-xl-all) in ComfyUI/models/text_encoders, or run this pack's "
    "tools/fetch_weights.py, then refresh",
}
# The last list of each key: the folders that were searched, and what was found.
LISTED: dict[str, tuple[list[str], dict[str, Path]]] = {}
# A name that Windows, Linux and macOS can store: no control characters or signs that one of them keeps for itself, and
# neither a space at its ends nor a full stop at its end.
FILE_NAME = re.compile(r'(?=\S)[^<>:"|?*/\\\x00-\x1f]{1,100}(?<![\s.])')
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices of Windows
# The folders in front of a file name in a message, from a drive, a root or a network share on.
FOLDERS_IN_TEXT = re.compile(r"(?<![\w.~/\\])(?:[A-Za-z]:)?[/\\]{1,2}(?:[^\s/\\'\":]+[/\\])+")


def register() -> None:
    """Adds our folder key to ComfyUI's. Folders that `extra_model_paths.yaml` gave to the key stay in front."""
    folder_paths.add_model_folder_path(ADAPTERS, str(Path(folder_paths.models_dir) / ADAPTERS))


def choices(key: str) -> list[str]:
    """The entries of a drop-down: the names found, or a single entry that says which file to put where."""
    return sorted(listed(key)) or [ADVICE[key]]


def resolve(key: str, name: str) -> Path:
    """The file or folder that an entry of a drop-down stands for.

    Only listed entries are found, so that a name cannot lead out of the model folders.
    Raises: MissingFile.
    """
    found = listed(key)
    path = look_up(key, found, name)
    if path is None:
        roots = " or ".join(folder_paths.get_folder_paths(key))
        raise MissingFile(
            f"{name!r} is not among the {len(found)} files for this node in {roots}. "
            f"To use this node, {ADVICE[key]}."
        )
    return path


def find(key: str, name: str | None) -> Path | None:
    """As `resolve`, but None for a name that is not listed, and from the last list that was made.

    So a keystroke and a fingerprint do not search the folders, which may be on a slow drive. ComfyUI makes a list when
    the page is refreshed and before each run. The file may have gone since then.
    """
    roots, found = LISTED.get(key, ([], {}))
    return look_up(key, found if roots == folder_paths.get_folder_paths(key) else listed(key), name)


def fingerprint(key: str, name: str | None) -> str:
    """A text that changes when the file behind a name does, so that ComfyUI runs the loader again.

    name: None if the name arrives over a wire, in which case ComfyUI does not tell it here.
    """
    path = find(key, name)
    return str(name) if path is None else stamp(path)


def listed(key: str) -> dict[str, Path]:
    """Name → path of all models under a folder key, searched anew. Of equal names, the first root's counts.

    ComfyUI's own list leaves `.gguf` out, and holds hidden and unfinished files.
    """
    suffixes = (*SUFFIXES, GGUF) if key == ENCODERS else SUFFIXES
    roots = folder_paths.get_folder_paths(key)
    found: dict[str, Path] = {}
    for root in map(Path, roots):
        for name in models_under(root, suffixes):
            found.setdefault(name, root / name)
    LISTED[key] = roots, found
    return found


def look_up(key: str, found: dict[str, Path], name: object) -> Path | None:
    """Finds a name as we list it, with Windows' backslashes, or the only adapter of this name in another format.

    Workflows name the published `projector.pth`, or its copy `projector.safetensors` that our tools make. The copy of
    an adapter keeps every number; one of an encoder often does not, so an encoder must be named exactly.
    """
    exact = found.get(str(name)) or found.get(str(name).replace("\\", "/"))
    if exact or key != ADAPTERS:
        return exact
    copies = [path for other, path in found.items() if without_suffix(other) == without_suffix(str(name))]
    return copies[0] if len(copies) == 1 else None


def without_suffix(name: str) -> str:
    """A listed name, or one with Windows' backslashes, without the ending that says its format."""
    name = name.replace("\\", "/")
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)


def without_folders(message: str) -> str:
    """A message that may be sent to a browser: file names stay in it, their folders on this machine do not."""
    roots = {Path(root) for key in (ENCODERS, ADAPTERS) for root in folder_paths.get_folder_paths(key)}
    roots = {*roots, *map(resolved, roots), host_t5_tokenizer().parent}
    # Known roots first: the pattern below cannot tell where a path with spaces begins.
    for root in sorted(map(str, roots), key=len, reverse=True):
        for written in (root, root.replace("\\", "/"), root.replace("\\", "\\\\")):
            message = re.sub(rf"{re.escape(written)}[/\\]*", "", message)
    return FOLDERS_IN_TEXT.sub("", message)


@cache
def resolved(root: Path) -> Path:
    """A model folder without links. It is looked up once, because a keystroke may ask for it."""
    return root.resolve()


def feature_folder() -> Path | None:
    """The folder for an LLM's hidden states on disk: the first that `extra_model_paths.yaml` gives for
    `llm4gen_cache`. None, and nothing is kept on disk, if it gives none."""
    roots, _ = folder_paths.folder_names_and_paths.get(FEATURES, ([], set()))
    return Path(roots[0]) if roots else None


def training_folder() -> Path:
    """The folder for the states of trainings, in ComfyUI's output folder. It is made if it is missing."""
    folder = Path(folder_paths.get_output_directory()) / "llm4gen_training"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def new_adapter_file(prefix: str) -> Path:
    """A new file in models/llm4gen: the prefix, as in core's Save nodes, and a number. Makes the folder.

    A name that another root has is not taken, because the loader would find that file first.
    Raises: WrongTraining if the prefix is no name that every system can store and Load Cross-Adapter lists.
    """
    root = Path(folder_paths.models_dir) / ADAPTERS
    parts = prefix.replace("\\", "/").split("/")
    if any(not FILE_NAME.fullmatch(part) or RESERVED.fullmatch(part) or is_hidden(part) for part in parts):
        raise WrongTraining(
            f"The prefix {prefix!r} is no file name that every system can store in {root.name}. Use a name such as "
            "my_adapter or mine/my_adapter."
        )
    place = root.joinpath(*parts)
    place.parent.mkdir(parents=True, exist_ok=True)
    taken = {name.lower() for name in listed(ADAPTERS)}
    paths = (place.with_name(f"{place.name}_{number:05}_.safetensors") for number in count(1))
    return next(
        path for path in paths if path.relative_to(root).as_posix().lower() not in taken and not path.exists()
    )


def tokenizer_folder(encoder: Path) -> Path | None:
    """The folder that an encoder does not share with other models, and that may hold its tokenizer; None if it lies
    directly in a model folder."""
    folder = encoder if encoder.is_dir() else encoder.parent
    shared = {Path(root) for root in folder_paths.get_folder_paths(ENCODERS)}
    return None if folder in shared else folder


def tokenizer_place(encoder: Path, is_t5: bool) -> Path:
    """Where an encoder's tokenizer is: in its own folder or, as in a pipeline of diffusers, beside it; else ComfyUI's
    for a T5, or inside a `.gguf` file."""
    own = tokenizer_folder(encoder)
    for place in (own, own and tokenizer_beside(own)):
        if place and has_tokenizer(place):
            return place
    return host_t5_tokenizer() if is_t5 else encoder


def host_t5_tokenizer() -> Path:
    """The folder of the T5 tokenizer that ComfyUI ships."""
    spec = importlib.util.find_spec("comfy.text_encoders")
    assert spec is not None and spec.submodule_search_locations is not None
    (package, *_) = spec.submodule_search_locations
    return Path(package) / "t5_tokenizer"
