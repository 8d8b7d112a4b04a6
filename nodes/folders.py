"""Where weights lie on the host: lists them for the drop-downs and finds them again.

Names are paths relative to their folder, always with `/`, so that a workflow saved on Windows opens elsewhere.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import folder_paths

from ..models.errors import MissingFile
from ..models.formats import SUFFIXES, TOKENIZER_FILE, has_tokenizer, is_gguf

ADAPTERS = "llm4gen"
ENCODERS = "text_encoders"
FEATURES = "llm4gen_cache"
ADVICE = {
    ADAPTERS: "put LLM4GEN's projector.pth in ComfyUI/models/llm4gen, then refresh",
    ENCODERS: "put the T5 encoder (rankgen-t5-xl-all) in ComfyUI/models/text_encoders, then refresh",
}
# The folders before a name in a message, from a drive, a root or a share on.
PLACE = re.compile(r"(?<![\w.~/\\])(?:[A-Za-z]:)?[/\\]{1,2}(?:[^\s/\\'\":]+[/\\])+")


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
    path = look_up(found, name)
    if path is None:
        places = " or ".join(folder_paths.get_folder_paths(key))
        raise MissingFile(
            f"{name!r} is not among the {len(found)} files for this node in {places}. "
            f"To use this node, {ADVICE[key]}."
        )
    return path


def find(key: str, name: str | None) -> Path | None:
    """As `resolve`, and None for what is not there."""
    return look_up(listed(key), name)


def fingerprint(key: str, name: str | None) -> str:
    """Changes when the file behind a name does, so that the host loads it anew. Of a name that comes over a
    wire the host tells None here."""
    path = find(key, name)
    if path is None:
        return str(name)
    return stamp(path)


def stamp(path: Path) -> str:
    """Changes when a model does: the files of its folder, or its file and a tokenizer beside it."""
    try:
        files = path.iterdir() if path.is_dir() else [path, path.with_name(TOKENIZER_FILE)]
        files = sorted(file for file in files if file.is_file())
        return repr([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])
    except OSError as error:  # and when what was gone or forbidden no longer is
        return str(error)


def listed(key: str) -> dict[str, Path]:
    """Name → path of all weights under a folder key: files, and folders with a `config.json` as one entry."""
    names = [Path(name) for name in folder_paths.get_filename_list(key)]
    names = [name for name in names if name.suffix.lower() in SUFFIXES]
    names += gguf_names() if key == ENCODERS else []
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(key)):  # the first place wins
        for name in names:
            if not (root / name).is_file():
                continue
            is_model = name.parent.name and (root / name.parent / "config.json").is_file()
            entry = name.parent if is_model and not is_gguf(name) else name
            found.setdefault(entry.as_posix(), root / entry)
    return found


def gguf_names() -> list[Path]:
    """The `.gguf` files among the encoders. The host lists what its folder key allows, and these it does not; to
    allow them would show them to every other node. One folder often holds several, each a model of its own."""
    roots = folder_paths.get_folder_paths(ENCODERS)
    found = {name for root in roots for name in folder_paths.recursive_search(root, [".git"])[0]}
    return [name for name in map(Path, sorted(found)) if is_gguf(name)]


def look_up(found: dict[str, Path], name: object) -> Path | None:
    """A name as we list it, or as Windows writes it."""
    return found.get(str(name)) or found.get(str(name).replace("\\", "/"))


def without_places(message: str) -> str:
    """A message for other eyes: the names of files stay, where they lie on this machine goes."""
    roots = {Path(root) for key in (ENCODERS, ADAPTERS) for root in folder_paths.get_folder_paths(key)}
    roots = {*roots, *(root.resolve() for root in roots), host_t5_tokenizer().parent}
    for root in sorted(map(str, roots), key=len, reverse=True):  # a name with spaces is known here alone
        for written in (root, root.replace("\\", "/"), root.replace("\\", "\\\\")):
            message = re.sub(rf"{re.escape(written)}[/\\]*", "", message)
    return PLACE.sub("", message)


def feature_folder() -> Path | None:
    """Where the user wants what LLMs have read kept on disk: the first place that `extra_model_paths.yaml` gives
    for `llm4gen_cache`. None, nothing is kept, unless it does."""
    places, _ = folder_paths.folder_names_and_paths.get(FEATURES, ([], set()))
    return Path(places[0]) if places else None


def tokenizer_folder(encoder: Path) -> Path | None:
    """The folder that belongs to an encoder alone and may hold its tokenizer, if it has one."""
    folder = encoder if encoder.is_dir() else encoder.parent
    shared = {Path(root) for root in folder_paths.get_folder_paths(ENCODERS)}
    return None if folder in shared else folder


def tokenizer_place(encoder: Path, is_t5: bool) -> Path:
    """Where an encoder's tokenizer is: in its own folder, else T5's with the host, and a .gguf file's in itself."""
    own = tokenizer_folder(encoder)
    if own and has_tokenizer(own):
        return own
    return host_t5_tokenizer() if is_t5 else encoder


def host_t5_tokenizer() -> Path:
    """The T5 tokenizer that ComfyUI ships."""
    (package, *_) = importlib.util.find_spec("comfy.text_encoders").submodule_search_locations
    return Path(package) / "t5_tokenizer"
