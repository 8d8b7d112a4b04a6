"""A training's state in a file, from which it goes on: weights, their average, AdamW's moments, the losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UnusableState
from ..files.atomic import written_whole
from ..files.sums import sum_of
from .adamw import MOMENTS
from .trainer import Trainer

STATE_KEY = "llm4gen_training_state"  # the metadata entry that holds version, steps, job and sum as JSON
VERSION = 2  # 1 had the adapter in the scale of its file


def save_state(trainer: Trainer, path: Path, job: str) -> None:
    """Writes the state whole or not at all, so that a process may be killed while it writes.

    job: a text that says what is trained, such as a digest. Only the same job goes on from this file.
    """
    tensors = {name: tensor.contiguous().cpu() for name, tensor in state_of(trainer).items()}
    entry = {"version": VERSION, "steps": trainer.steps, "job": job, "sum": sum_of(tensors)}
    with written_whole(path) as unfinished:
        save_file(tensors, unfinished, {STATE_KEY: json.dumps(entry)})


def job_in(path: Path) -> str | None:
    """The job whose state a file holds. Raises: UnusableState."""
    return read(path)[0].get("job")


def load_state(trainer: Trainer, path: Path, job: str) -> None:
    """Continues from a file. If it cannot be used, the trainer stays as it was.

    Raises: UnusableState.
    """
    entry, tensors = read(path)
    if entry.get("version") != VERSION or entry.get("job") != job:
        raise UnusableState(
            f"{path.name} is not the state of this training: it says {entry}, and version {VERSION} of job {job} is "
            "wanted. Use the settings and data that it was begun with, or start anew."
        )
    check_shapes(trainer, tensors, entry.get("steps"), path.name)
    if entry.get("sum", total := sum_of(tensors)) != total:  # states of older versions have none
        raise UnusableState(
            f"{path.name} is damaged: the sum of its tensors is {total}, and {entry['sum']} was written. Delete it to "
            "start anew."
        )
    put(trainer, tensors)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A state's entry and its mapped tensors. Raises: UnusableState."""
    try:
        with safe_open(path, framework="pt") as file:
            entry = json.loads((file.metadata() or {}).get(STATE_KEY, "{}"))
            return entry, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UnusableState(f"{path.name} cannot be read ({error}). Delete it to start anew.") from error


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor that decides on the steps to come."""
    tensors = {"losses": torch.tensor(trainer.losses, dtype=torch.float64)}
    for name, weight in trainer.weights.items():
        tensors[f"weight.{name}"] = weight.detach()
        tensors[f"average.{name}"] = trainer.ema.average[name]
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = trainer.optimizer.state[weight][moment]
    return tensors


def check_shapes(trainer: Trainer, tensors: dict[str, Tensor], steps: object, file: str) -> None:
    """Raises: UnusableState if the file lacks a tensor that it needs, or has one of another shape."""
    wanted = {
        f"{kind}.{name}": list(weight.shape)
        for name, weight in trainer.weights.items()
        for kind in ("weight", "average")
    }
    for name, shape in {**wanted, "losses": [steps]}.items():
        found = list(tensors[name].shape) if name in tensors else "missing"
        if found != shape:
            raise UnusableState(
                f"{file} does not fit this training: {name} is {found}, and {shape} is wanted. Delete it to start anew."
            )


@torch.no_grad()
def put(trainer: Trainer, tensors: dict[str, Tensor]) -> None:
    trainer.losses = tensors["losses"].tolist()
    for name, weight in trainer.weights.items():
        weight.copy_(tensors[f"weight.{name}"])
        trainer.ema.average[name].copy_(tensors[f"average.{name}"])
        kept = [tensors.get(f"{moment}.{name}") for moment in MOMENTS]
        # Older versions kept none for a weight that had no gradient yet, or where memory ended in the first step.
        is_whole = all(value is not None for value in kept)
        for moment, value in zip(MOMENTS, kept, strict=True):
            trainer.optimizer.state[weight][moment].copy_(value if is_whole else torch.zeros(()))
