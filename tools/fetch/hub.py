"""Looks up repositories and downloads files from the Hugging Face Hub, through the library `huggingface_hub`.

Files are downloaded with the library's `http_get`, which can resume at any byte: `hf_hub_download` of huggingface_hub 2
discards a partial file when it is interrupted. It is only used if a later library no longer has such a `http_get`.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from fetch.failures import FAILED, CannotFetch, hub_failure, is_network_error, with_resume_advice
from files.interruptible import lock

LOOK_UP_SECONDS = 30  # how long the hub may take to answer what a repository holds
RETRY_SECONDS = 1  # the pause before a lost connection is made anew


@dataclass(frozen=True)
class RemoteFile:
    """A file in a repository.

    path:   its path in the repository.
    size:   in bytes.
    sha256: its checksum; None if the hub states none.
    """

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class Repository:
    """A repository at one commit. licence: the licence that its page states."""

    name: str
    commit: str
    licence: str
    files: tuple[RemoteFile, ...]


def look_up(name: str, revision: str | None) -> Repository:
    """Asks the hub what a repository holds.

    revision: a commit, branch or tag; None is the newest commit.
    Raises: CannotFetch.
    """
    try:
        info = (
            hub_library()
            .HfApi()
            .model_info(name, revision=revision, files_metadata=True, timeout=LOOK_UP_SECONDS)
        )
    except Exception as error:
        failure = hub_failure(error, name, revision)
        if failure is None:
            raise
        raise failure from error
    files = (
        RemoteFile(file.rfilename, file.size or 0, (file.lfs or {}).get("sha256"))
        for file in info.siblings or ()
    )
    return Repository(name, info.sha, stated_licence(info), tuple(files))


def stated_licence(info: object) -> str:
    """The licence in a repository's card, or else in its tags."""
    card, tags = getattr(info, "card_data", None), getattr(info, "tags", None) or ()
    in_tags = (tag.removeprefix("license:") for tag in tags if tag.startswith("license:"))
    stated = getattr(card, "license_name", None) or getattr(card, "license", None) or next(in_tags, None)
    return str(stated or "not stated")


def download(repository: Repository, file: RemoteFile, part: Path) -> None:
    """Downloads a file to `part`, after the bytes that `part` already has.

    A lost connection is made anew, unless the last one brought no bytes.
    Raises: CannotFetch; OSError if the disk fails.
    """
    http_get = resumable_http_get()
    while True:
        before = size_of(part)
        try:
            if http_get is None:
                download_whole(repository, file, part)
            else:
                download_rest(http_get, repository, file, part)
            return
        except Exception as error:
            if size_of(part) > file.size:
                part.unlink()
            if not is_network_error(error) or size_of(part) <= before:
                failure = hub_failure(error, repository.name, repository.commit)
                if failure is None:
                    raise
                raise with_resume_advice(failure) from error
        time.sleep(RETRY_SECONDS)


def resumable_http_get() -> Callable[..., None] | None:
    """The library's `http_get`; None if it has none that can start in the middle of a file."""
    hub_library()
    try:
        from huggingface_hub.file_download import http_get  # noqa: PLC0415
    except ImportError:
        return None
    needed = {"resume_size", "headers", "expected_size", "displayed_filename"}
    return http_get if needed <= inspect.signature(http_get).parameters.keys() else None


def download_rest(
    http_get: Callable[..., None], repository: Repository, file: RemoteFile, part: Path
) -> None:
    """Appends the missing bytes to `part`. Raises: CannotFetch if another process does the same, and others."""
    library = hub_library()
    with part.open("ab") as stream:
        try:
            lock(stream)
        except BlockingIOError as error:
            raise CannotFetch(
                FAILED, f"Another run is downloading {file.path}. Wait until it has ended."
            ) from error
        http_get(
            library.hf_hub_url(repository.name, file.path, revision=repository.commit),
            stream,
            resume_size=stream.tell(),
            headers=library.utils.build_hf_headers(),
            expected_size=file.size,
            displayed_filename=file.path,
        )


def download_whole(repository: Repository, file: RemoteFile, part: Path) -> None:
    """Downloads the file from its first byte."""
    folder = part.parent / "library"
    path = hub_library().hf_hub_download(
        repository.name, file.path, revision=repository.commit, local_dir=folder
    )
    os.replace(path, part)


def size_of(path: Path) -> int:
    """The size of a file in bytes, or 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def hub_library() -> ModuleType:
    """The package `huggingface_hub`. Raises: CannotFetch."""
    # hf_transfer writes several parts of a file at the same time, so what a killed run leaves could not be resumed.
    os.environ["HF_HUB_ENABLE_HF_TRANSFER"] = "0"
    try:
        import huggingface_hub  # noqa: PLC0415
    except ImportError as error:
        raise CannotFetch(
            FAILED,
            "This Python does not have the package huggingface_hub, which ComfyUI's Python has. Run this with the "
            "Python that runs ComfyUI.",
        ) from error
    return huggingface_hub
