"""The state of a training in its file: kept whatever ends the training, and found again by the same job."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ...models.training.ranks import Ranks
from ...models.training.state import job_in, load_state, save_state
from ...models.training.trainer import Trainer
from .job import Job

log = logging.getLogger(__name__)


class KeptState:
    """file: where the state is kept. digest: of all that decides on a step, see `job_digest`.
    step: whose state is kept, in words; None: there is none yet.

    The quiet start has the same file until it is over. The first of several processes writes it.
    """

    def __init__(self, file: Path, digest: str, job: Job, ranks: Ranks):
        self.file, self.digest, self.job, self.ranks = file, digest, job, ranks
        self.step: str | None = None

    def resumed(self, trainer: Trainer) -> bool:
        """Goes on from the state of the same job, if there is one and its quiet start is over."""
        if not self.file.is_file():
            if self.job.resume:
                log.info("There is no kept state of these inputs, so the training starts anew.")
            return False
        if not self.job.resume:
            if self.ranks.number > 0:
                return False
            before = self.file.with_suffix(".before.safetensors")
            self.file.replace(before)
            log.warning("resume is off, so the training starts anew. Its state so far is kept as %s.", before)
            return False
        if job_in(self.file) == self.quiet_digest:
            return False
        load_state(trainer, self.file, self.digest)
        self.step = f"{trainer.steps}"
        log.info("The training goes on after step %d of %d.", trainer.steps, self.job.settings.steps)
        return True

    def resume_quiet_start(self, trainer: Trainer) -> None:
        """Goes on from the state of a quiet start, if there is one."""
        if self.job.resume and self.file.is_file():
            load_state(trainer, self.file, self.quiet_digest)
            log.info("The quiet start goes on after step %d of %d.", trainer.steps, trainer.settings.steps)

    @property
    def quiet_digest(self) -> str:
        """Tells the state of a quiet start from that of the training after it, which takes its place in the file."""
        return f"quiet start of {self.digest}"

    @contextmanager
    def kept(self, trainer: Trainer) -> Iterator[None]:
        """Saves the state when the block ends, also by Cancel or an error."""
        before = trainer.steps
        try:
            yield
        finally:
            if trainer.steps > before:
                self.save(trainer)

    def save_if_due(self, trainer: Trainer, *, is_quiet: bool = False) -> None:
        if self.job.save_every and trainer.steps % self.job.save_every == 0:
            self.save(trainer, is_quiet=is_quiet)

    def save(self, trainer: Trainer, *, is_quiet: bool = False) -> None:
        """Keeps the state. Where that fails, as on a full disk, the training goes on and the log says so."""
        if self.ranks.number > 0:  # all have the same
            return
        step = f"{trainer.steps} of the quiet start" if is_quiet else f"{trainer.steps}"
        try:
            save_state(trainer, self.file, self.quiet_digest if is_quiet else self.digest)
        except (OSError, SafetensorError) as error:
            log.warning("The state after step %s cannot be kept in %s: %s.", step, self.file, error)
            return
        self.step = step
        log.info(
            "The state after step %s is kept in %s. Run it again with the same inputs to go on from there.",
            step,
            self.file,
        )
