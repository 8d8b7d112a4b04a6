"""The hub, through the library `huggingface_hub`: what a repository holds, one file of it, and what may go wrong.

A file is received by the library's `http_get`, which goes on at any byte: `hf_hub_download` of huggingface_hub 2
drops what it has when it is interrupted. Should a later library lack it, `hf_hub_download` does the work.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from files.interruptible import lock

HUB = "https://huggingface.co"
PATIENCE = 30  # seconds that the hub may take to answer what a repository holds
PAUSE = 1  # seconds before a lost connection is made anew
FAILED, USAGE, UNREACHED, REFUSED, NO_ROOM, DAMAGED, UNCONFIRMED = 1, 2, 3, 4, 5, 6, 7  # exit codes


class CannotFetch(Exception):
    """Ends the run with the exit code `code`; the message says why and what to do."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class RemoteFile:
    """path: in its repository. size: bytes. sha256: None if the hub states none."""

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class Repository:
    """A repository at one commit. licence: as its card states it."""

    name: str
    commit: str
    licence: str
    files: tuple[RemoteFile, ...]


def look_up(name: str, revision: str | None) -> Repository:
    """Asks the hub. revision: a commit, branch or tag; None is the newest. Raises: CannotFetch."""
    try:
        info = library().HfApi().model_info(name, revision=revision, files_metadata=True, timeout=PATIENCE)
    except Exception as error:
        if told := explained(error, name, revision):
            raise told from error
        raise
    files = (
        RemoteFile(file.rfilename, file.size or 0, (file.lfs or {}).get("sha256"))
        for file in info.siblings or ()
    )
    return Repository(name, info.sha, licence_of(info), tuple(files))


def licence_of(info: object) -> str:
    card, tags = getattr(info, "card_data", None), getattr(info, "tags", None) or ()
    tagged = (tag.removeprefix("license:") for tag in tags if tag.startswith("license:"))
    stated = getattr(card, "license_name", None) or getattr(card, "license", None) or next(tagged, None)
    return str(stated or "not stated")


def receive(repository: Repository, file: RemoteFile, part: Path) -> None:
    """Brings `part` to the file's size, going on with the bytes that it has.

    A lost connection is made anew as long as each brings something. Raises: CannotFetch, OSError of the disk.
    """
    get = resuming_get()
    while True:
        before = size_of(part)
        try:
            if get is None:
                receive_whole(repository, file, part)
            else:
                receive_rest(get, repository, file, part)
            return
        except Exception as error:
            if size_of(part) > file.size:
                part.unlink()
            if not of_network(error) or size_of(part) <= before:
                told = explained(error, repository.name, repository.commit)
                if told is None:
                    raise
                if told.code == UNREACHED:
                    told = CannotFetch(
                        UNREACHED, f"{told}. What came is kept: run this again to go on with it."
                    )
                raise told from error
            time.sleep(PAUSE)


def resuming_get() -> Callable[..., None] | None:
    """The library's `http_get`, if it has one that can begin in the middle of a file."""
    library()
    try:
        from huggingface_hub.file_download import http_get  # noqa: PLC0415
    except ImportError:
        return None
    wanted = {"resume_size", "headers", "expected_size", "displayed_filename"}
    return http_get if wanted <= inspect.signature(http_get).parameters.keys() else None


def receive_rest(get: Callable[..., None], repository: Repository, file: RemoteFile, part: Path) -> None:
    hub = library()
    with part.open("ab") as stream:
        try:
            lock(stream)
        except BlockingIOError as error:
            raise CannotFetch(FAILED, f"Another run downloads {file.path} just now. Wait for it.") from error
        get(
            hub.hf_hub_url(repository.name, file.path, revision=repository.commit),
            stream,
            resume_size=stream.tell(),
            headers=hub.utils.build_hf_headers(),
            expected_size=file.size,
            displayed_filename=file.path,
        )


def receive_whole(repository: Repository, file: RemoteFile, part: Path) -> None:
    folder = part.parent / "library"
    got = library().hf_hub_download(repository.name, file.path, revision=repository.commit, local_dir=folder)
    os.replace(got, part)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def library() -> ModuleType:
    # hf_transfer fills a file from several places at once: what a killed run leaves could not be gone on with.
    os.environ["HF_HUB_ENABLE_HF_TRANSFER"] = "0"
    try:
        import huggingface_hub  # noqa: PLC0415
    except ImportError as error:
        raise CannotFetch(
            FAILED,
            "This Python has no huggingface_hub, which ComfyUI's has. Run this with the Python that runs ComfyUI.",
        ) from error
    return huggingface_hub


def of_network(error: Exception) -> bool:
    """Whether the connection failed, or gave less than it should. Of the libraries' errors those that are the
    system's kind have no number, as the disk's have; the others are httpx's, whose package has had several names."""
    if status_of(error) is not None:
        return False
    if isinstance(error, OSError):
        return error.errno is None or isinstance(error, (ConnectionError, TimeoutError))
    return any(kind.__module__.startswith("httpx") for kind in type(error).__mro__)


def status_of(error: Exception) -> int | None:
    """Of an answer that is an error: HTTP's number."""
    return getattr(getattr(error, "response", None), "status_code", None)


def explained(error: Exception, name: str, revision: str | None) -> CannotFetch | None:
    """The error as a user is told it; None if it is none of the hub's. name: of the repository."""
    status, page = status_of(error), f"{HUB}/{name}"
    if status == 401:
        return CannotFetch(
            REFUSED,
            f"The hub wants a valid token for {name} (401), or has no such repository. Open {page}: if it is there, "
            "accept its terms and set HF_TOKEN to a token of yours.",
        )
    if status == 403:
        return CannotFetch(
            REFUSED,
            f"The hub does not let you read {name} (403). Open {page}, accept its terms, and set HF_TOKEN to a "
            "token that may read it.",
        )
    if status == 404:
        return CannotFetch(
            REFUSED,
            f"The hub has no {name} at {revision or 'any revision'} (404). Open {page} to see what it has now; "
            f"--revision {name}=HASH names a commit, --only leaves out what is gone.",
        )
    if status is not None or of_network(error):
        reason = (
            f"it answers {status}" if status else (str(error).strip() or type(error).__name__).splitlines()[0]
        )
        return CannotFetch(UNREACHED, f"The hub cannot be reached for {name}: {reason.rstrip('.')}")
    return None
