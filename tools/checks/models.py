"""The models that the host's folders hold, looked at for tools/doctor.py: found, sound, fitting, in their place.

Imported when the host's `folder_paths` and the pack can be.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import folder_paths

from checks.findings import Finding
from files.sd15 import is_sd15_checkpoint
from llm4gen.models.files.formats import GGUF, SUFFIXES, is_gguf
from llm4gen.nodes import folders
from llm4gen.nodes.pages import inventory

# Folders of the host's where people put what belongs in ours.
OTHERS = ("checkpoints", "diffusion_models", "loras", "vae", "controlnet", "clip_vision")
KINDS = {folders.ENCODERS: "encoder", folders.ADAPTERS: "Cross-Adapter"}
USELESS = "is of no use as it is."


class Examination:
    """Each method's findings. pack: the folder of the pack, whose own `models` is code."""

    def __init__(self, pack: Path):
        self.pack = pack
        folders.register()

    @cached_property
    def strays(self) -> dict[Path, str | None]:
        """What lies where its node does not list it → the folder key that it belongs to, if it is known."""
        inside = [path for path in (self.pack / "models").rglob("*") if is_weights(path, GGUF)]
        strays = {path: kind_of(path) for path in inside}
        elsewhere = [path for key in OTHERS for path in files_of(key)]
        strays |= {path: kind for path in elsewhere if (kind := kind_of(path))}
        for key in KINDS:
            kinds = {path: kind_of(path) for path in folders.listed(key).values()}
            strays |= {path: kind for path, kind in kinds.items() if kind and kind != key}
        return strays

    def in_place(self, key: str) -> dict[str, inventory.Encoder | inventory.Adapter]:
        found = inventory.encoders() if key == folders.ENCODERS else inventory.adapters()
        return {name: facts for name, facts in found.items() if folders.find(key, name) not in self.strays}

    def absent(self, key: str) -> Iterable[Finding]:
        """Unless there is one that only has to be moved."""
        if key not in self.strays.values():
            advice = folders.ADVICE[key].removesuffix(", then refresh")
            advice = advice.replace(f"ComfyUI/models/{key}", str(home(key)))
            yield Finding(
                f"There is no {KINDS[key]}.",
                f"{advice[:1].upper()}{advice[1:]}, or let tools/fetch_weights.py do it.",
            )

    def places(self) -> Iterable[Finding]:
        for key in KINDS:
            found = folders.listed(key).values()
            for place in map(Path, folder_paths.get_folder_paths(key)):
                number = sum(path.is_relative_to(place) for path in found)
                yield Finding(f"{key}: {place} ({f'{number} found' if place.is_dir() else 'not there'})")

    def encoders(self) -> Iterable[Finding]:
        found, able = self.in_place(folders.ENCODERS), importlib.util.find_spec("gguf") is not None
        closed = [] if able else [name for name in found if is_gguf(Path(name))]
        for name, encoder in found.items():
            if name in closed:
                continue
            if encoder.error:
                yield Finding(f"{name} {USELESS}", encoder.error)
            elif encoder.width is None:
                yield Finding(f"{name}: not for LLM4GEN. {encoder.reason}")
            else:
                sizes = f"{encoder.kind}, {encoder.layers} layers, width {encoder.width}, {encoder.dtype}"
                yield Finding(f"{name}: {sizes}, tokenizer: {encoder.tokenizer}")
        if closed:
            needed = "The Python package gguf is not installed, which is needed to read"
            yield Finding(f"{needed} {', '.join(closed)}.", f'"{sys.executable}" -m pip install gguf')
        elif not any(encoder.width or encoder.error for encoder in found.values()):
            yield from self.absent(folders.ENCODERS)

    def adapters(self) -> Iterable[Finding]:
        found = self.in_place(folders.ADAPTERS)
        for name, adapter in found.items():
            if adapter.error:
                yield Finding(f"{name} {USELESS}", adapter.error)
                continue
            recipe = adapter.recipe
            yield Finding(
                f"{name}: from width {adapter.llm_width} to {adapter.clip_width}, {adapter.dtype}; "
                f"{recipe.template!r}, {recipe.tokens} tokens, padding: {recipe.padding}, layer {recipe.layer}, "
                f"{recipe.heads} heads"
            )
        if not found:
            yield from self.absent(folders.ADAPTERS)

    def together(self) -> Iterable[Finding]:
        """Which encoder feeds which adapter."""
        found = {name: one for name, one in self.in_place(folders.ENCODERS).items() if one.width}
        theirs = {name: one for name, one in self.in_place(folders.ADAPTERS).items() if one.recipe}
        pairs = {
            name: [other for other, encoder in found.items() if inventory.fits(encoder, adapter)]
            for name, adapter in theirs.items()
        }
        for name, fitting in pairs.items():
            width = f"no encoder here, it wants one of width {theirs[name].llm_width}"
            yield Finding(f"{name} with {' or '.join(fitting) or width}")
        if found and theirs and not any(pairs.values()):
            yield Finding(
                "No encoder fits an adapter.",
                "Get the encoder that the adapter was trained with (the published one: rankgen-t5-xl-all, width 2048).",
            )

    def checkpoints(self) -> Iterable[Finding]:
        paths = files_of("checkpoints")
        fitting = [path.name for path in paths if is_sd15_checkpoint(path)]
        pickles = [path for path in paths if path.suffix.lower() not in (".safetensors", ".sft")]
        pickles = [path for path in pickles if path not in self.strays]
        if fitting:
            more = f" and {len(fitting) - 4} more" if len(fitting) > 4 else ""
            yield Finding(f"SD1.5: {', '.join(fitting[:4])}{more}")
        elif pickles:
            yield Finding(
                f"No .safetensors of SD1.5; {', '.join(path.name for path in pickles)} may be, or not."
            )
        else:
            cure = f"Put any SD1.5 checkpoint in {home('checkpoints')}."
            yield Finding("There is no SD1.5 checkpoint.", cure)

    def misplaced(self) -> Iterable[Finding]:
        for path, key in self.strays.items():
            what = f"an LLM4GEN {KINDS[key]}, and" if key else "no code, and"
            place = home(key) if key else f"the folder of its kind in {folder_paths.models_dir}"
            yield Finding(f"{path} is {what} is not found there.", f"Move it to {place}.")


def home(key: str) -> Path:
    """Where new files of a folder key go on this machine."""
    return Path(folder_paths.get_folder_paths(key)[0])


def kind_of(path: Path) -> str | None:
    """The folder key that a file belongs to, if it is one of ours."""
    if inventory.ADAPTERS(path).recipe:
        return folders.ADAPTERS
    return folders.ENCODERS if inventory.ENCODERS(path).width else None


def files_of(key: str) -> list[Path]:
    """What may hold weights under a folder key of the host's."""
    names, roots = folder_paths.get_filename_list(key), folder_paths.get_folder_paths(key)
    paths = (Path(root) / name for name in names for root in roots)
    return sorted({path for path in paths if is_weights(path, ".ckpt")})


def is_weights(path: Path, *also: str) -> bool:
    return path.suffix.lower() in (*SUFFIXES, *also) and path.is_file()
