"""One download from the hub to its model folder, with its scratch folder, which an interrupted run leaves, and its
conversion."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convert import convert
from fetch.failures import DAMAGED, CannotFetch
from fetch.hub import RemoteFile, Repository, download, size_of
from fetch.items import Item
from files.interruptible import interruptible_steps, sha256

# The size of a converted encoder, as a fraction of the published fp32 file's, rounded up.
SIZE_RATIOS = {"fp32": 1.0, "bf16": 0.51, "fp16": 0.51, "fp8": 0.3}
SCRATCH_PREFIX = ".llm4gen-fetch-"


@dataclass(frozen=True)
class Task:
    """One download, and what is made of it.

    dtype: what it is converted to; None keeps the file's own dtype.

    Its scratch folder lies beside the target, on the same disk, so that a finished file only has to be renamed.
    """

    item: Item
    repository: Repository
    file: RemoteFile
    target: Path
    dtype: str | None

    @property
    def scratch(self) -> Path:
        return scratch_folder(self.item, self.target.parent)

    @property
    def verified(self) -> Path:
        """The path of the published file after its checksum has been verified."""
        return self.scratch / Path(self.file.path).name

    @property
    def part(self) -> Path:
        """The path of the published file until then."""
        return self.scratch / f"{self.verified.name}.part"

    @property
    def manifest(self) -> dict[str, object]:
        """What the scratch folder holds, for the next run."""
        return {"repository": self.repository.name, "commit": self.repository.commit, **asdict(self.file)}

    def is_started(self) -> bool:
        """Whether the scratch folder belongs to this very file. Several commits may hold the same file."""
        found = read_manifest(self.scratch)
        entries = ("path", "size", "sha256") if self.file.sha256 else tuple(self.manifest)
        return all(found.get(entry) == self.manifest[entry] for entry in entries)

    def bytes_missing(self) -> int:
        """The number of bytes that must still be downloaded."""
        if not self.is_started():
            return self.file.size
        return self.file.size - size_of(self.verified) - size_of(self.part)

    def converted_size(self) -> int:
        """The approximate size of the converted file, in bytes; 0 if the download is not converted."""
        return int(self.file.size * SIZE_RATIOS[self.dtype or "fp32"]) if self.item.is_converted else 0


def scratch_folder(item: Item, folder: Path) -> Path:
    """The folder for an item's unfinished files, inside the model folder that the item belongs to."""
    return folder / f"{SCRATCH_PREFIX}{item.name}"


def run_task(task: Task) -> None:
    """Downloads the file, verifies it, converts it, and removes the scratch folder.

    Raises: CannotFetch, CannotWrite, LLM4GENError, OSError, Interrupted.
    """
    prepare_scratch(task)
    if not task.verified.exists():
        print(f"downloading {task.file.path} ...", flush=True)
        download(task.repository, task.file, task.part)
        verify(task)
        os.replace(task.part, task.verified)
    if task.item.is_converted:
        with interruptible_steps() as check:
            convert(task.verified, task.target, task.dtype, False, check)
    else:
        os.replace(task.verified, task.target)
        print(f"done: {task.target}", flush=True)  # as convert() prints it
    remove_scratch(task.scratch)


def verify(task: Task) -> None:
    """Compares the checksum with the one that the hub states. Raises: CannotFetch; the download is then deleted."""
    with interruptible_steps() as check:
        found = sha256(task.part, check)
    if task.file.sha256 not in (None, found):
        remove_scratch(task.scratch)
        raise CannotFetch(
            DAMAGED,
            f"{task.file.path} came with the sha256 {found}, but the hub states {task.file.sha256}. The download was "
            "deleted. Run this again. If that happens again, something between the hub and this machine changes files.",
        )


def remove_scratch(scratch: Path) -> None:
    """Removes a scratch folder, or prints that it cannot be removed."""
    gc.collect()  # Windows removes no file that is still mapped
    shutil.rmtree(scratch, ignore_errors=True)
    if scratch.exists():
        print(
            f"{scratch} could not be removed. It is not needed any more; you can delete it.", file=sys.stderr
        )


def prepare_scratch(task: Task) -> None:
    """Makes the scratch folder. Removes an old one first, if it belongs to another file."""
    if not task.is_started():
        shutil.rmtree(task.scratch, ignore_errors=True)
    task.scratch.mkdir(parents=True, exist_ok=True)
    unfinished = task.scratch / "manifest.json.new"
    unfinished.write_text(json.dumps(task.manifest), encoding="utf-8")
    os.replace(unfinished, task.scratch / "manifest.json")


def read_manifest(scratch: Path) -> dict[str, Any]:
    """What an interrupted run wrote into a scratch folder; empty if there is nothing, or nothing readable."""
    try:
        return json.loads((scratch / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
