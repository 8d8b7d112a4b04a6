"""Which downloads a run consists of, at which commits, and whether the disks have room for them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fetch.hub import NO_ROOM, REFUSED, CannotFetch, RemoteFile, Repository
from fetch.items import Item
from fetch.task import Task, read_manifest, scratch_of


def plan_task(item: Item, repository: Repository, folder: Path, dtype: str | None) -> Task:
    """Raises: CannotFetch if the repository does not hold the file."""
    file = choose_file(item, repository)
    target = folder / item.target_name(dtype, Path(file.path).suffix)
    return Task(item, repository, file, target, item.dtype(dtype))


def choose_file(item: Item, repository: Repository) -> RemoteFile:
    """The file itself, or of a folder's weights the safetensors, and of variants the plain one: its name is the
    shortest."""
    if not item.in_folder:
        found = [file for file in repository.files if file.path == item.file]
    else:
        inside = [file for file in repository.files if file.path.startswith(item.file)]
        weights = [file for file in inside if file.path.endswith((".safetensors", ".bin"))]
        found = [file for file in weights if "-of-" not in file.path]
        found.sort(key=lambda file: (not file.path.endswith(".safetensors"), len(file.path)))
    if not found:
        held = ", ".join(file.path for file in repository.files[:12]) or "nothing"
        raise CannotFetch(
            REFUSED,
            f"{repository.name} holds no weights in one file at {item.file} (commit {repository.commit}); it holds "
            f"{held}. Leave this out with --only, or name another commit with --revision.",
        )
    return found[0]


def kept_commit(items: Iterable[Item], places: Mapping[str, Sequence[Path]], repository: str) -> str | None:
    """The commit that an interrupted run took of a repository."""
    for item in items:
        manifest = read_manifest(scratch_of(item, places[item.key][0]))
        if manifest.get("repository") == repository:
            return manifest.get("commit")
    return None


def check_room(tasks: Sequence[Task]) -> None:
    """Whether each disk has room at the fullest moment: published files go when they are converted.

    Raises: CannotFetch.
    """
    folders: dict[int, Path] = {}
    held: dict[int, int] = {}
    most: dict[int, int] = {}
    for task in tasks:
        folder = next((place for place in task.scratch.parents if place.exists()), None)
        if folder is None:
            raise CannotFetch(NO_ROOM, f"There is no disk for {task.target}, which ComfyUI's folders name.")
        disk = folder.stat().st_dev
        folders.setdefault(disk, folder)
        now = held.get(disk, 0) + task.missing() + task.converted_size()
        most[disk] = max(most.get(disk, 0), now)
        held[disk] = now - (task.file.size if task.item.kind else 0)
    for disk, needed in most.items():
        free = shutil.disk_usage(folders[disk]).free
        if free < needed:
            raise CannotFetch(
                NO_ROOM,
                f"The disk of {folders[disk]} lacks {needed - free:,} bytes: downloads and conversions need "
                f"{needed:,} there, {free:,} are free. Make room, choose less with --only, or name folders on "
                "another disk in extra_model_paths.yaml.",
            )
