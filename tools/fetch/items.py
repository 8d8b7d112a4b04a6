"""What the pack needs of the hub, where it goes in a ComfyUI, what of it is there, and how to bring it by hand."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convert import NAMES
from fetch.hub import FAILED, HUB, CannotFetch
from host import folders as host_folders
from host.comfyui import MODEL_FOLDERS, TOOLS

LLM4GEN = "Shui-VL/LLM4GEN-models"
RANKGEN = "kalpeshk2011/rankgen-t5-xl-all"
# Commits to take, where one is known to be right; None is the newest one when a download begins.
PINNED: dict[str, str | None] = {LLM4GEN: None, RANKGEN: None}
DTYPE = "bf16"
AMBIGUOUS = "pytorch_model.bin"  # many models have this name


@dataclass(frozen=True)
class Item:
    """One thing that the pack needs.

    kind: what the converter calls it; "" is put in as it is, with its own ending. file: in its repository, or the
    folder that holds it, with `/`. key: ComfyUI's, of the folder it goes into. target: its name there, with
    `{dtype}` if it has a choice. by_hand: the name for the file as published. about: bytes, if known. other_names:
    under which it may be there, too.
    """

    name: str
    kind: str
    repository: str
    file: str
    key: str
    target: str
    by_hand: str
    about: int | None = None
    other_names: tuple[str, ...] = ()

    @property
    def in_folder(self) -> bool:
        return self.file.endswith("/")

    def dtype(self, asked: str | None) -> str | None:
        """To convert to; None is the file's own."""
        return (asked or DTYPE) if "{dtype}" in self.target else None

    def target_name(self, dtype: str | None, suffix: str = ".safetensors") -> str:
        """suffix: of the published file."""
        stem = self.target.format(dtype=dtype or DTYPE)
        return stem + (".safetensors" if self.kind else suffix)

    def names(self, dtype: str | None) -> list[str]:
        """The names under which it may be there already. dtype: None if any will do."""
        dtypes = [dtype] if dtype else [DTYPE, *NAMES]
        ready = [self.target_name(name, suffix) for name in dtypes for suffix in (".safetensors", ".bin")]
        return list(dict.fromkeys([*ready, self.by_hand, *self.other_names]))


ITEMS = {
    item.name: item
    for item in (
        Item(
            name="adapter",
            kind="Cross-Adapter",
            repository=LLM4GEN,
            file="projector.pth",
            key="llm4gen",
            target="projector",
            by_hand="projector.pth",
            about=34_700_000,
            other_names=("projector-fp32.safetensors",),
        ),
        Item(
            name="encoder",
            kind="T5 encoder",
            repository=RANKGEN,
            file="pytorch_model.bin",
            key="text_encoders",
            target="rankgen-t5-xl-all-{dtype}",
            by_hand="rankgen-t5-xl-all.bin",
            about=4_910_000_000,
            other_names=(AMBIGUOUS,),
        ),
        Item(
            name="unet",
            kind="",
            repository=LLM4GEN,
            file="unet/",
            key="diffusion_models",
            target="llm4gen_sd15_unet",
            by_hand="llm4gen_sd15_unet.safetensors",
        ),
    )
}


def model_folders(comfyui: Path, arguments: Sequence[str]) -> dict[str, list[Path]]:
    """Where a ComfyUI looks for models, by its keys, as it answers itself; new ones go into the first place.

    arguments: what this ComfyUI is started with. Raises: CannotFetch, SystemExit.
    """
    try:
        configs = host_folders.enter(comfyui, arguments)
        import folder_paths  # noqa: PLC0415
    except ImportError as error:
        raise CannotFetch(
            FAILED,
            f"{sys.executable} cannot run the ComfyUI in {comfyui} ({error}). Run this with ComfyUI's own Python.",
        ) from error
    for config in configs:
        if config.error:
            raise CannotFetch(FAILED, f"{config.path} cannot be read ({config.error}). {host_folders.CURE}")
    own = Path(folder_paths.models_dir)
    # As nodes/folders.py does it; to import that would take all of ComfyUI.
    folder_paths.add_model_folder_path("llm4gen", str(own / "llm4gen"))
    return {
        item.key: in_order(map(Path, folder_paths.get_folder_paths(item.key)), own, item.key)
        for item in ITEMS.values()
    }


def in_order(places: Iterable[Path], own: Path, key: str) -> list[Path]:
    """Of two folders of the host's own, the one with the newer name in front: it lists `unet` first."""
    places = list(places)
    older = [own / name for name in MODEL_FOLDERS[key][1:]]
    if places[0] in older and own / key in places:
        places.remove(own / key)
        places.insert(0, own / key)
    return places


def find_present(item: Item, places: Sequence[Path], dtype: str | None) -> Path | None:
    """Where it lies already. Raises: CannotFetch if what has its name is something else."""
    for name in item.names(dtype):
        for path in (place / name for place in places):
            if not path.is_file():
                continue
            wrong = what_is_wrong(item, path)
            if wrong is None:
                return path
            if name != AMBIGUOUS:
                raise CannotFetch(
                    FAILED, f"{path} is there already, but: {wrong} Remove or rename it, and run this again."
                )
    return None


def what_is_wrong(item: Item, path: Path) -> str | None:
    """Why the pack would not take a file for this; None if it would. A UNet is the host's to read."""
    if not item.kind:
        return None if path.stat().st_size else "It is empty."
    from llm4gen.models.conversion.plans import plan_conversion  # noqa: PLC0415
    from llm4gen.models.errors import LLM4GENError  # noqa: PLC0415

    try:
        kind = plan_conversion(path).kind
    except LLM4GENError as error:
        return str(error)
    return None if kind.startswith(item.kind) else f"It holds another model ({kind})."


def convert_command(source: Path, target: Path, dtype: str | None) -> str:
    """As it can be pasted into the system's shell."""
    words = [sys.executable, str(TOOLS / "convert.py"), str(source), str(target)]
    words += ["--dtype", dtype] if dtype else []
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def instructions(items: Iterable[Item], places: Mapping[str, Sequence[Path]], dtype: str | None) -> str:
    """How to do it without this program."""
    lines, named = ["By hand, with a browser, here or on another machine:"], []
    for item in items:
        folder = places[item.key][0]
        page = f"{HUB}/{item.repository}/tree/{PINNED[item.repository] or 'main'}"
        size = f"about {item.about:,} bytes" if item.about else "size not known"
        what = item.file
        if item.in_folder:
            page = f"{page}/{item.file}"
            what = "the .safetensors in it, or else the .bin, which keeps that ending"
        lines += [f"{item.name}:", f"  page  {page}", f"  file  {what} ({size})"]
        lines += [f"  to    {folder / item.by_hand}"]
        lines += [] if folder.is_dir() else ["  (make the folder)"]
        if item.kind:
            target = folder / item.target_name(dtype)
            named.append(item.target_name(None))
            command = convert_command(folder / item.by_hand, target, item.dtype(dtype))
            lines += [f"  then  run this, which makes {target.name} of it:", f"        {command}"]
    if named:
        lines += [
            f"The example workflows name {' and '.join(named)}; any other file is chosen in their loaders."
        ]
    return "\n".join(lines)
