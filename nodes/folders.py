"""The model folders: lists encoders and adapters for the drop-downs, and finds the file behind a name.

Names are paths relative to a model folder, always written with `/`, so that a workflow saved on Windows opens on other
systems.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import folder_paths

from ..models.errors import MissingFile, WrongTraining
from ..models.files.formats import SUFFIXES, TOKENIZER_FILE, has_tokenizer, is_gguf

ADAPTERS = "llm4gen"
ENCODERS = "text_encoders"
FEATURES = "llm4gen_cache"
ADVICE = {
    ADAPTERS: "put LLM4GEN's projector.pth in ComfyUI/models/llm4gen, then refresh",
    ENCODERS: "put the T5 encoder (rankgen-t5-xl-all) in ComfyUI/models/text_encoders, then refresh",
}
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
    path = look_up(found, name)
    if path is None:
        roots = " or ".join(folder_paths.get_folder_paths(key))
        raise MissingFile(
            f"{name!r} is not among the {len(found)} files for this node in {roots}. "
            f"To use this node, {ADVICE[key]}."
        )
    return path


def find(key: str, name: str | None) -> Path | None:
    """As `resolve`, but returns None for a name that is not listed."""
    return look_up(listed(key), name)


def fingerprint(key: str, name: str | None) -> str:
    """A text that changes when the file behind a name does, so that ComfyUI runs the loader again.

    name: None if the name arrives over a wire, in which case ComfyUI does not tell it here.
    """
    path = find(key, name)
    return str(name) if path is None else stamp(path)


def stamp(path: Path) -> str:
    """A text that changes when a model does: names, sizes and times of a folder's files, or of a file and a tokenizer
    beside it."""
    try:
        files = path.iterdir() if path.is_dir() else iter([path, path.with_name(TOKENIZER_FILE)])
        present = sorted(file for file in files if file.is_file())
        return repr([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in present])
    except OSError as error:  # the text changes again when the file can be read
        return str(error)


def listed(key: str) -> dict[str, Path]:
    """Name → path of all weights under a folder key. A folder with a `config.json` is one entry."""
    names = [Path(name) for name in folder_paths.get_filename_list(key)]
    names = [name for name in names if name.suffix.lower() in SUFFIXES]
    names += gguf_names() if key == ENCODERS else []
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(key)):  # of equal names, the first root's counts
        for name in names:
            if not (root / name).is_file():
                continue
            is_model = name.parent.name and (root / name.parent / "config.json").is_file()
            entry = name.parent if is_model and not is_gguf(name) else name
            found.setdefault(entry.as_posix(), root / entry)
    return found


def gguf_names() -> list[Path]:
    """The `.gguf` files among the encoders. In one folder there may be several, each a model of its own.

    ComfyUI's own list leaves this extension out. Adding it to ComfyUI's list would show the files to every other
    node too, so the folders are searched here.
    """
    roots = folder_paths.get_folder_paths(ENCODERS)
    found = {name for root in roots for name in folder_paths.recursive_search(root, [".git"])[0]}
    return [name for name in map(Path, sorted(found)) if is_gguf(name)]


def look_up(found: dict[str, Path], name: object) -> Path | None:
    """Finds a name as we list it, or with Windows' backslashes."""
    return found.get(str(name)) or found.get(str(name).replace("\\", "/"))


def without_folders(message: str) -> str:
    """A message that may be sent to a browser: file names stay in it, their folders on this machine do not."""
    roots = {Path(root) for key in (ENCODERS, ADAPTERS) for root in folder_paths.get_folder_paths(key)}
    roots = {*roots, *(root.resolve() for root in roots), host_t5_tokenizer().parent}
    # Known roots first: the pattern below cannot tell where a path with spaces begins.
    for root in sorted(map(str, roots), key=len, reverse=True):
        for written in (root, root.replace("\\", "/"), root.replace("\\", "\\\\")):
            message = re.sub(rf"{re.escape(written)}[/\\]*", "", message)
    return FOLDERS_IN_TEXT.sub("", message)


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

    Raises: WrongTraining if the prefix leads out of the folder.
    """
    root = Path(folder_paths.models_dir) / ADAPTERS
    place = (root / prefix).resolve()
    if not prefix.strip() or place == root.resolve() or not place.is_relative_to(root.resolve()):
        raise WrongTraining(f"The prefix {prefix!r} leads out of {root.name}. Use a name such as my_adapter.")
    folder, name, number, *_ = folder_paths.get_save_image_path(prefix, str(root))
    return Path(folder) / f"{name}_{number:05}_.safetensors"


def tokenizer_folder(encoder: Path) -> Path | None:
    """The folder that an encoder does not share with other models, and that may hold its tokenizer; None if it lies
    directly in a model folder."""
    folder = encoder if encoder.is_dir() else encoder.parent
    shared = {Path(root) for root in folder_paths.get_folder_paths(ENCODERS)}
    return None if folder in shared else folder


def tokenizer_place(encoder: Path, is_t5: bool) -> Path:
    """Where an encoder's tokenizer is: in its own folder, else ComfyUI's for a T5, or inside a `.gguf` file."""
    own = tokenizer_folder(encoder)
    if own and has_tokenizer(own):
        return own
    return host_t5_tokenizer() if is_t5 else encoder


def host_t5_tokenizer() -> Path:
    """The folder of the T5 tokenizer that ComfyUI ships."""
    spec = importlib.util.find_spec("comfy.text_encoders")
    assert spec is not None and spec.submodule_search_locations is not None
    (package, *_) = spec.submodule_search_locations
    return Path(package) / "t5_tokenizer"
