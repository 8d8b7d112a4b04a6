"""Why a download can fail: the exit codes, and the messages for errors of the hub and the network."""

from __future__ import annotations

HUB = "https://huggingface.co"
# The exit codes of tools/fetch_weights.py.
FAILED, USAGE, UNREACHABLE, REFUSED, DISK_PROBLEM, DAMAGED, UNCONFIRMED = 1, 2, 3, 4, 5, 6, 7


class CannotFetch(Exception):
    """Ends the program with the exit code `code`. The message says why and what to do."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


def is_network_error(error: Exception) -> bool:
    """Whether a connection failed or ended too early.

    Some of the libraries' network errors are OSErrors; those have no errno, unlike the errors of a disk. The others
    are httpx's, whose package has been renamed several times.
    """
    if http_status(error) is not None:
        return False
    if isinstance(error, OSError):
        return error.errno is None or isinstance(error, (ConnectionError, TimeoutError))
    return any(kind.__module__.startswith("httpx") for kind in type(error).__mro__)


def http_status(error: Exception) -> int | None:
    """The HTTP status of the answer that caused an error; None if it had another cause."""
    return getattr(getattr(error, "response", None), "status_code", None)


def hub_failure(error: Exception, name: str, revision: str | None) -> CannotFetch | None:
    """The error to show to the user; None if the hub and the network did not cause it. name: of the repository."""
    status, page = http_status(error), f"{HUB}/{name}"
    if status == 401:
        return CannotFetch(
            REFUSED,
            f"The hub needs a valid token for {name}, or has no such repository (401). Open {page}: if it exists, "
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
            f"The hub has no {name} at {revision or 'any revision'} (404). Open {page} to see what it has now. "
            f"--revision {name}=HASH chooses a commit; --only leaves out what no longer exists.",
        )
    if status is None and not is_network_error(error):
        return None
    message = str(error).strip() or type(error).__name__
    reason = f"it answers {status}" if status else message.splitlines()[0].rstrip(".")
    return CannotFetch(UNREACHABLE, f"The hub cannot be reached for {name}: {reason}")


def with_resume_advice(failure: CannotFetch) -> CannotFetch:
    """A failure of a download that has begun. If the network failed, the message says that it can be resumed."""
    if failure.code != UNREACHABLE:
        return failure
    return CannotFetch(
        UNREACHABLE, f"{failure}. The bytes that came are kept: run this again to continue the download."
    )
