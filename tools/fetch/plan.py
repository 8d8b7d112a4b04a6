"""Decides what a run downloads, from which commits, and whether the disks have enough space for it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fetch.failures import DISK_PROBLEM, REFUSED, CannotFetch
from fetch.hub import RemoteFile, Repository, look_up
from fetch.items import PINNED, Item
from fetch.task import Task, read_manifest, scratch_folder


def look_up_all(
    items: Sequence[Item], folders: Mapping[str, Sequence[Path]], revisions: Mapping[str, str]
) -> dict[str, Repository]:
    """The items' repositories by name, each looked up once.

    The commit is the one that the user chose, or that an interrupted run was downloading, or that is pinned.

    revisions: repository → the user's choice.
    Raises: CannotFetch.
    """
    found = {}
    for name in dict.fromkeys(item.repository for item in items):
        print(f"asking the hub for {name} ...", flush=True)
        started = None if name in revisions else interrupted_commit(items, folders, name)
        try:
            found[name] = look_up(name, revisions.get(name) or started or PINNED[name])
        except CannotFetch as error:
            if started is None or error.code != REFUSED:
                raise
            # The commit may have been removed, while the same file is in a newer one.
            found[name] = look_up(name, PINNED[name])
    return found


def interrupted_commit(
    items: Iterable[Item], folders: Mapping[str, Sequence[Path]], repository: str
) -> str | None:
    """The commit of a repository that an interrupted run was downloading, if there was one."""
    for item in items:
        manifest = read_manifest(scratch_folder(item, folders[item.folder_key][0]))
        if manifest.get("repository") == repository:
            return manifest.get("commit")
    return None


def plan_task(item: Item, repository: Repository, folder: Path, dtype: str | None) -> Task:
    """Plans the download of an item into a model folder. Raises: CannotFetch if the repository lacks its file."""
    file = choose_file(item, repository)
    target = folder / item.target_name(dtype, Path(file.path).suffix)
    return Task(item, repository, file, target, item.target_dtype(dtype))


def choose_file(item: Item, repository: Repository) -> RemoteFile:
    """The item's file in a repository.

    If only the file's folder is known, .safetensors is preferred to .bin, and the shortest name to variants such as
    `.fp16.safetensors`. Shards are not taken.
    Raises: CannotFetch if there is none.
    """
    if not item.is_in_folder:
        found = [file for file in repository.files if file.path == item.remote_path]
    else:
        inside = [file for file in repository.files if file.path.startswith(item.remote_path)]
        weights = [file for file in inside if file.path.endswith((".safetensors", ".bin"))]
        found = [file for file in weights if "-of-" not in file.path]
        found.sort(key=lambda file: (not file.path.endswith(".safetensors"), len(file.path)))
    if not found:
        listed = ", ".join(file.path for file in repository.files[:12]) or "nothing"
        raise CannotFetch(
            REFUSED,
            f"{repository.name} holds no weights in one file at {item.remote_path} (commit {repository.commit}). It "
            f"holds {listed}. Leave this item out with --only, or choose another commit with --revision.",
        )
    return found[0]


def check_disk_space(tasks: Sequence[Task]) -> None:
    """Checks that each disk has enough space for the tasks. Raises: CannotFetch."""
    for folder, needed in peak_bytes(tasks).items():
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise CannotFetch(
                DISK_PROBLEM,
                f"The disk of {folder} lacks {needed - free:,} bytes: downloads and conversions need {needed:,} there, "
                f"{free:,} are free. Make room, choose less with --only, or name folders on another disk in "
                "extra_model_paths.yaml.",
            )


def peak_bytes(tasks: Sequence[Task]) -> dict[Path, int]:
    """A folder on each disk → the most bytes that are needed there at a time, when one task runs after the other.

    Raises: CannotFetch if the disk of a target does not exist.
    """
    folders: dict[int, Path] = {}  # by disk
    kept: dict[int, int] = {}  # by disk: the bytes that stay there after the tasks so far
    peaks: dict[Path, int] = {}
    for task in tasks:
        existing = next((folder for folder in task.scratch.parents if folder.exists()), None)
        if existing is None:
            raise CannotFetch(
                DISK_PROBLEM,
                f"The disk for {task.target} does not exist. One of ComfyUI's model folders is on it.",
            )
        disk = existing.stat().st_dev
        folder = folders.setdefault(disk, existing)
        needed = kept.get(disk, 0) + task.bytes_missing() + task.converted_size()
        peaks[folder] = max(peaks.get(folder, 0), needed)
        # A converted file replaces the published one.
        kept[disk] = needed - (task.file.size if task.item.is_converted else 0)
    return peaks


def print_tasks(tasks: Sequence[Task]) -> None:
    """Prints the repositories with their licences, then each file with its size and target."""
    for repository in {task.repository.name: task.repository for task in tasks}.values():
        print(f"{repository.name}: commit {repository.commit}, licence: {repository.licence}")
    for task in tasks:
        present = task.file.size - task.bytes_missing()
        already = f", {present:,} already downloaded" if present else ""
        print(f"{task.item.name}: {task.file.path}, {task.file.size:,} bytes{already}")
        converted = f", converted to {task.dtype}" if task.dtype else ""
        print(f"  will be {task.target}{converted}", flush=True)
