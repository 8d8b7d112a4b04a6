"""What a user reads when memory is short in a training."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...models.errors import OutOfMemory, memory_wanted
from ...models.training.trainer import Trainer
from .job import LORA, WHOLE, Job


def shortage(
    error: Exception, job: Job, dtype: torch.dtype, at_once: int | None, saved: str | None
) -> OutOfMemory:
    """The error for a training that does not fit in memory.

    error:   the library's.
    dtype:   in which the UNet is computed.
    at_once: how many examples were computed together; None: the models were not loaded yet.
    saved:   the step whose state is kept; None: there is no state.
    """
    what = {None: "to load the models of this training", 1: "for this training, even one picture at a time"}
    wanted = memory_wanted(error)
    kept = f"The state after step {saved} is kept, from which the same inputs go on"
    return OutOfMemory(
        f"There is not enough memory {what.get(at_once, 'for this training')}"
        + (f": another {wanted} is wanted. " if wanted else ". ")
        + " ".join(advice(job, dtype))
        + (f" {kept}{', also with gradient_checkpointing' * (not job.checkpointing)}." if saved else "")
    )


def advice(job: Job, dtype: torch.dtype) -> Iterator[str]:
    """What takes less memory than this job does, from what costs least."""
    yield "End other programs that use the GPU."
    if not job.checkpointing:
        yield "Turn on gradient_checkpointing, which gives the same result."
    if dtype is torch.float32:
        yield "Choose bf16 as precision."
    if job.entity_weight:
        yield "Set entity_weight to 0."
    yield "Use smaller pictures."
    if job.unet == WHOLE:
        yield "Train a LoRA in place of the whole UNet."
    if job.unet == LORA:
        yield "Choose frozen as unet."


def parts_of(trainer: Trainer) -> str:
    """A line for the node where batches are computed in parts; else nothing."""
    if trainer.at_once == trainer.batch:
        return ""
    return f"\nshort of memory: {trainer.batch} at once do not fit, so at most {trainer.at_once} are computed together"
