"""One download, from the hub to its place: its scratch folder, what an interrupted run left there, its conversion."""

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
from fetch.hub import DAMAGED, CannotFetch, RemoteFile, Repository, receive, size_of
from fetch.items import Item
from files.interruptible import ended_between_steps, sha256

# Bytes of a converted encoder for each byte of the published fp32, rounded up.
SHRINKS = {"fp32": 1.0, "bf16": 0.51, "fp16": 0.51, "fp8": 0.3}
SCRATCH = ".llm4gen-fetch-"


@dataclass(frozen=True)
class Task:
    """One download. Its scratch folder lies beside the target, so that what is done only needs its name."""

    item: Item
    repository: Repository
    file: RemoteFile
    target: Path
    dtype: str | None  # to convert to; None is the file's own

    @property
    def scratch(self) -> Path:
        return scratch_of(self.item, self.target.parent)

    @property
    def whole(self) -> Path:
        """The file as published, when its checksum was found right."""
        return self.scratch / Path(self.file.path).name

    @property
    def part(self) -> Path:
        return self.scratch / f"{self.whole.name}.part"

    @property
    def manifest(self) -> dict[str, object]:
        return {"repository": self.repository.name, "commit": self.repository.commit, **asdict(self.file)}

    def is_begun(self) -> bool:
        """Whether the scratch folder is of this very file, which several commits may hold."""
        kept = read_manifest(self.scratch)
        same = ("path", "size", "sha256") if self.file.sha256 else tuple(self.manifest)
        return all(kept.get(entry) == self.manifest[entry] for entry in same)

    def missing(self) -> int:
        """Bytes to download yet."""
        return self.file.size - (size_of(self.whole) + size_of(self.part) if self.is_begun() else 0)

    def converted_size(self) -> int:
        """Bytes of the new file, about; 0 if the download itself is put in its place."""
        return int(self.file.size * SHRINKS[self.dtype or "fp32"]) if self.item.kind else 0


def scratch_of(item: Item, folder: Path) -> Path:
    return folder / f"{SCRATCH}{item.name}"


def carry_out(task: Task) -> None:
    """Downloads, checks, converts, tidies up. Raises: CannotFetch, CannotWrite, LLM4GENError, OSError, Ended."""
    begin(task)
    if not task.whole.exists():
        print(f"downloading {task.file.path} ...", flush=True)
        receive(task.repository, task.file, task.part)
        with ended_between_steps() as check:
            found = sha256(task.part, check)
        if task.file.sha256 not in (None, found):
            tidy(task.scratch)
            raise CannotFetch(
                DAMAGED,
                f"{task.file.path} came with the sha256 {found}, and the hub states {task.file.sha256}. It was "
                "deleted. Run this again; if it happens again, something between the hub and here changes files.",
            )
        os.replace(task.part, task.whole)
    if task.item.kind:
        with ended_between_steps() as check:
            convert(task.whole, task.target, task.dtype, False, check)
    else:
        os.replace(task.whole, task.target)
        print(f"done: {task.target}", flush=True)  # as the converter says it
    tidy(task.scratch)


def tidy(scratch: Path) -> None:
    gc.collect()  # Windows removes no file that is still mapped
    shutil.rmtree(scratch, ignore_errors=True)
    if scratch.exists():
        print(f"{scratch} could not be removed; it may go.", file=sys.stderr)


def begin(task: Task) -> None:
    """Makes the scratch folder; what it has of another file goes."""
    if not task.is_begun():
        shutil.rmtree(task.scratch, ignore_errors=True)
    task.scratch.mkdir(parents=True, exist_ok=True)
    new = task.scratch / "manifest.json.new"
    new.write_text(json.dumps(task.manifest), encoding="utf-8")
    os.replace(new, task.scratch / "manifest.json")


def read_manifest(scratch: Path) -> dict[str, Any]:
    try:
        return json.loads((scratch / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
