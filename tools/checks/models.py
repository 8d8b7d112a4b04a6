"""Checks of the models in ComfyUI's folders: which are found, usable, fitting each other, or in a wrong folder.

To import this module, ComfyUI's `folder_paths` and the pack must be importable.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import folder_paths

from checks.findings import Finding
from llm4gen.models.checkpoints.checkpoint_kind import KINDS, SD15
from llm4gen.models.checkpoints.same_llm import OTHER_LLM, SENTENCES
from llm4gen.models.files.formats import GGUF, SUFFIXES, UNFINISHED, is_gguf
from llm4gen.models.files.texts import is_online_only
from llm4gen.nodes import folders
from llm4gen.nodes.pages import inventory
from llm4gen.nodes.pages.checkpoints import width_in_header

# ComfyUI's other model folders, into which people may have put an encoder or an adapter.
OTHER_KEYS = ("checkpoints", "diffusion_models", "loras", "vae", "controlnet", "clip_vision")
MODEL_NAMES = {folders.ENCODERS: "encoder", folders.ADAPTERS: "Cross-Adapter"}
CHECKPOINTS_LISTED = 4
WAY_TO_TRAIN = (
    " That is for SD1.5; for {kinds}, train one, as the workflow llm4gen_sdxl_train_an_adapter does."
)


class ModelChecks:
    """The checks. Each `check_…` method yields findings.

    pack: the folder of the pack. Its own folder `models` holds code, and people may have put weights there.
    """

    def __init__(self, pack: Path):
        self.pack = pack
        folders.register()

    @cached_property
    def misplaced_files(self) -> dict[Path, str | None]:
        """Files that lie where no node lists them → the folder key that they belong to, or None if it is unknown."""
        in_pack = [path for path in (self.pack / "models").rglob("*") if is_weight_file(path, GGUF)]
        misplaced = {path: folder_key_for(path) for path in in_pack}
        for other_key in OTHER_KEYS:
            found = {path: folder_key_for(path) for path in weight_files_under(other_key)}
            misplaced |= {path: key for path, key in found.items() if key}
        for own_key in MODEL_NAMES:
            found = {path: folder_key_for(path) for path in folders.listed(own_key).values()}
            misplaced |= {path: key for path, key in found.items() if key and key != own_key}
        return misplaced

    @cached_property
    def widths(self) -> dict[Path, int | None]:
        """Checkpoints → the width of their context; None if it cannot be told by their header."""
        return {path: width_in_header(path) for path in weight_files_under("checkpoints")}

    def encoders(self) -> dict[str, inventory.Encoder]:
        """The encoders by name, without misplaced files."""
        found = inventory.encoders().items()
        return {name: encoder for name, encoder in found if self.is_in_place(folders.ENCODERS, name)}

    def adapters(self) -> dict[str, inventory.Adapter]:
        """The adapters by name, without misplaced files."""
        found = inventory.adapters().items()
        return {name: adapter for name, adapter in found if self.is_in_place(folders.ADAPTERS, name)}

    def is_in_place(self, key: str, name: str) -> bool:
        return folders.find(key, name) not in self.misplaced_files

    def missing_model(self, key: str) -> Iterable[Finding]:
        """Says that no model was found under a folder key, unless a misplaced file only has to be moved there."""
        if key not in self.misplaced_files.values():
            advice = folders.ADVICE[key].removesuffix(", then refresh")
            advice = advice.replace(f"ComfyUI/models/{key}", str(folder_for(key)))
            yield Finding(f"There is no {MODEL_NAMES[key]}.", f"{advice[:1].upper()}{advice[1:]}.")

    def check_folders(self) -> Iterable[Finding]:
        """The folders that are searched, and how many models each holds."""
        for key in MODEL_NAMES:
            found = folders.listed(key).values()
            for folder in map(Path, folder_paths.get_folder_paths(key)):
                number = sum(path.is_relative_to(folder) for path in found)
                state = f"{number} found" if folder.is_dir() else "does not exist"
                yield Finding(f"{key}: {folder} ({state})")

    def check_unfinished(self) -> Iterable[Finding]:
        """Downloads that are not complete, which no node lists."""
        folders_of_models = {Path(root) for key in MODEL_NAMES for root in folder_paths.get_folder_paths(key)}
        paths = {path for folder in folders_of_models for path in folder.rglob("*")}
        for path in sorted(path for path in paths if path.name.lower().endswith(UNFINISHED)):
            yield Finding(
                f"{path} belongs to a download that is not complete, so its model is not listed.",
                "Finish the download, or remove what is left of it.",
            )

    def check_encoders(self) -> Iterable[Finding]:
        found = self.encoders()
        has_gguf_package = importlib.util.find_spec("gguf") is not None
        unreadable = [] if has_gguf_package else [name for name in found if is_gguf(Path(name))]
        yield from (describe_encoder(name, found[name]) for name in found if name not in unreadable)
        if unreadable:
            yield Finding(
                f"{', '.join(unreadable)} cannot be read without the Python package gguf, which is not installed.",
                f'"{sys.executable}" -m pip install gguf',
            )
        elif not any(encoder.width or encoder.error for encoder in found.values()):
            yield from self.missing_model(folders.ENCODERS)

    def check_adapters(self) -> Iterable[Finding]:
        found = self.adapters()
        yield from (describe_adapter(name, adapter) for name, adapter in found.items())
        if not found:
            others = [
                kind for width, kind in KINDS.items() if width != SD15 and width in self.widths.values()
            ]
            for finding in self.missing_model(folders.ADAPTERS):
                more = WAY_TO_TRAIN.format(kinds=" or ".join(others)) if others else ""
                yield replace(finding, advice=f"{finding.advice}{more}")

    def check_pairs(self) -> Iterable[Finding]:
        """Which encoders each adapter can use."""
        encoders = {name: encoder for name, encoder in self.encoders().items() if encoder.width}
        adapters = {name: adapter for name, adapter in self.adapters().items() if adapter.recipe}
        has_pair = False
        for name, adapter in adapters.items():
            doubts = {
                other: inventory.doubt_of(encoder, adapter)
                for other, encoder in encoders.items()
                if inventory.fits(encoder, adapter)
            }
            usable = [other for other, doubt in doubts.items() if doubt != OTHER_LLM]
            has_pair = has_pair or bool(usable)
            if usable:
                yield Finding(f"{name} with {' or '.join(usable)}")
            elif not doubts:
                yield Finding(f"{name}: no encoder fits; it needs one of width {adapter.llm_width}")
            yield from describe_doubts(name, adapter, doubts)
        if encoders and adapters and not has_pair:
            yield Finding(
                "No encoder fits an adapter.",
                "Get the encoder that the adapter was trained with (the published one: rankgen-t5-xl-all, width 2048).",
            )

    def check_checkpoints(self) -> Iterable[Finding]:
        """Which kinds of checkpoints there are, and whether each adapter has one of its kind.

        Without an adapter a checkpoint of any kind will do: one can be trained for it. Pickles, and files that a cloud
        drive has online alone, cannot be recognised by their header.
        """
        found = self.widths
        for width, kind in KINDS.items():
            if names := [path.name for path in found if found[path] == width]:
                others = len(names) - CHECKPOINTS_LISTED
                more = f" and {others} more" if others > 0 else ""
                yield Finding(f"{kind}: {', '.join(names[:CHECKPOINTS_LISTED])}{more}")
        wanted = {adapter.clip_width for adapter in self.adapters().values() if adapter.clip_width}
        if not wanted and not any(found.values()):
            wanted = {SD15}
        lacking = [kind for width, kind in KINDS.items() if width in wanted - set(found.values())]
        unknown = [path.name for path in found if is_unknown(path) and path not in self.misplaced_files]
        if lacking and unknown:
            yield Finding(
                f"No file that can be looked into holds {' or '.join(lacking)}. These others may: {', '.join(unknown)}."
            )
        elif lacking:
            folder = folder_for("checkpoints")
            for kind in lacking:
                yield Finding(f"There is no {kind} checkpoint.", f"Put any {kind} checkpoint in {folder}.")

    def check_misplaced(self) -> Iterable[Finding]:
        for path, key in self.misplaced_files.items():
            if key:
                text, target = f"an LLM4GEN {MODEL_NAMES[key]}", str(folder_for(key))
            else:
                text, target = (
                    "in this pack's folder for code",
                    f"the folder for its kind in {folder_paths.models_dir}",
                )
            yield Finding(f"{path} is {text}, and no node looks for it there.", f"Move it to {target}.")


def describe_doubts(
    name: str, adapter: inventory.Adapter, doubts: dict[str, str | None]
) -> Iterable[Finding]:
    """doubts: the encoders that fit an adapter → `inventory.doubt_of` it."""
    for doubt, sentence in SENTENCES.items():
        others = " or ".join(other for other, found in doubts.items() if found == doubt)
        if adapter.llm and others:
            yield Finding(sentence.format(adapter=name, llm=adapter.llm.name, encoder=others))


def describe_encoder(name: str, encoder: inventory.Encoder) -> Finding:
    if encoder.error:
        return unusable(name, encoder.error)
    if encoder.width is None:
        return Finding(f"{name}: not for LLM4GEN. {encoder.reason}")
    sizes = f"{encoder.kind}, {encoder.layers} layers, width {encoder.width}, {encoder.dtype}"
    return Finding(f"{name}: {sizes}, tokenizer: {encoder.tokenizer}")


def describe_adapter(name: str, adapter: inventory.Adapter) -> Finding:
    recipe = adapter.recipe
    if adapter.error or recipe is None:
        return unusable(name, adapter.error)
    kind = KINDS.get(adapter.clip_width or 0, "no kind of checkpoint that is known")
    return Finding(
        f"{name}: for {kind}, from width {adapter.llm_width} to {adapter.clip_width}, {adapter.dtype}; "
        f"{recipe.template!r}, {recipe.tokens} tokens, padding: {recipe.padding}, layer {recipe.layer}, "
        f"{recipe.heads} heads"
    )


def unusable(name: str, error: str | None) -> Finding:
    """The finding for a damaged or incomplete file. error: what is wrong with it and what to do."""
    return Finding(f"{name} cannot be used as it is.", error or "")


def folder_for(key: str) -> Path:
    """The folder on this machine that new files of a folder key are put in."""
    return Path(folder_paths.get_folder_paths(key)[0])


def folder_key_for(path: Path) -> str | None:
    """The folder key that a file belongs to, if it is an adapter or an encoder for this pack."""
    if inventory.ADAPTERS(path).recipe:
        return folders.ADAPTERS
    return folders.ENCODERS if inventory.ENCODERS(path).width else None


def is_unknown(path: Path) -> bool:
    """Whether a checkpoint may be of any kind, because its header does not tell or is not on this machine."""
    return path.suffix.lower() not in (".safetensors", ".sft") or is_online_only(path)


def weight_files_under(key: str) -> list[Path]:
    """The files under one of ComfyUI's folder keys that may hold weights."""
    names, roots = folder_paths.get_filename_list(key), folder_paths.get_folder_paths(key)
    paths = (Path(root) / name for name in names for root in roots)
    return sorted({path for path in paths if is_weight_file(path, ".ckpt")})


def is_weight_file(path: Path, *more_suffixes: str) -> bool:
    return path.suffix.lower() in (*SUFFIXES, *more_suffixes) and path.is_file()
