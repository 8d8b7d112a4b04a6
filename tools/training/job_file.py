"""The job of train.py: a YAML file whose keys are the inputs of the nodes, and `key=value` on the command line."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


class WrongJob(ValueError):
    """The job file cannot be used. The message says what to write."""


@dataclass(frozen=True)
class Key:
    """A key of the job.

    kind:    int, float, bool, str or list (of texts).
    default: None: it must be given, unless it is optional.
    least, most, options: what a value may be.
    """

    kind: type
    default: Any = None
    optional: bool = False
    least: float | None = None
    most: float | None = None
    options: Sequence[str] = field(default=())


# Everything that is not an input of the nodes that train. Files are named as in the nodes' lists.
FILES = {
    "checkpoint": Key(str),
    "unet_file": Key(str, optional=True),
    "llm": Key(str),
    "llm_dtype": Key(str, "auto"),
    "adapter": Key(str, optional=True),
    "start_from": Key(str, optional=True),
    "data": Key(list),
    "resolution": Key(int, 512, least=64, most=4096),
    "features_gb": Key(float, 50.0, least=0.001),
    "features": Key(str, optional=True),
    "run": Key(str, "run"),
    "teacher_llm": Key(str, optional=True),
    "teacher_adapter": Key(str, optional=True),
    "teacher_unet_file": Key(str, optional=True),
}
# What the trainer can be told and a graph leaves at its default, see `models/training/settings.py`.
ADVANCED = {
    "weight_decay": Key(float, 1e-2, least=0),
    "warm_up": Key(int, 100, least=0),
    "decay": Key(str, "constant", options=("constant", "cosine")),
    "clip_norm": Key(float, 1.0, least=0),
    "ema": Key(float, 0.999, least=0, most=1),
    "noises": Key(int, 1, least=1),
    "drop_clip_tokens": Key(float, 0.0, least=0, most=1),
    "weighting": Key(str, "min-snr", options=("min-snr", "debiased")),
}
PATHS = {"data", "run", "features"}  # relative to the job file's folder


def keys_of(inputs: Iterable[Any]) -> dict[str, Key]:
    """The keys of a node's inputs, with the same names, defaults and bounds. Sockets have none."""
    kinds = {"INT": int, "FLOAT": float, "BOOLEAN": bool, "STRING": str, "COMBO": str}
    found = {}
    for one in inputs:
        kind = kinds.get(one.get_io_type())
        if kind is not None:
            options = tuple(getattr(one, "options", None) or ())
            least, most = getattr(one, "min", None), getattr(one, "max", None)
            found[one.id] = Key(kind, one.default, one.default is None, least, most, options)
    return found


def read_job(path: Path, changes: Sequence[str], schema: Mapping[str, Key]) -> dict[str, Any]:
    """The values of all keys. Paths are absolute.

    changes: `key=value` texts, which stand above the file.
    Raises: WrongJob, OSError.
    """
    given = parsed(path.read_bytes(), path) or {}
    if not isinstance(given, dict):
        raise WrongJob(f"{path} holds {type(given).__name__}, not lines of `key: value`.")
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise WrongJob(f"{change!r} is not of the form key=value.")
        given[key] = parsed(value, change)
    for key in given:
        if key not in schema:
            near = difflib.get_close_matches(str(key), schema, 1)
            advice = f"Did you mean {near[0]}?" if near else f"There are {', '.join(schema)}."
            raise WrongJob(f"A job has no key {key!r}. {advice}")
    job = {key: checked(key, given.get(key), entry) for key, entry in schema.items()}
    folder = path.absolute().parent
    for key in job.keys() & PATHS:
        value = job[key]
        names = value if isinstance(value, list) else [value]
        if any(name is not None and (not name or "\0" in name) for name in names):
            raise WrongJob(f"{key} is {value!r}; the name of a file or folder is wanted.")
        job[key] = [folder / one for one in value] if isinstance(value, list) else value and folder / value
    return job


def parsed(text: str | bytes, source: object) -> Any:
    """Raises: WrongJob."""
    try:
        return yaml.safe_load(text)
    # ValueError: numbers and dates that there are not. RecursionError: lists within lists without end.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise WrongJob(f"{source} is not YAML: {error}") from error


def checked(key: str, value: Any, entry: Key) -> Any:
    """The value in its kind, or the default. Raises: WrongJob."""
    if value is None:
        if entry.default is None and not entry.optional:
            raise WrongJob(f"The job lacks {key}.")
        return entry.default
    if entry.kind is list:
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not value or not all(map(is_text, value)):
            raise WrongJob(f"{key} is {value!r}; a text or a list of texts is wanted.")
        return value
    if entry.kind is float and isinstance(value, (str, int)) and not isinstance(value, bool):
        value = number(value)  # YAML takes 1e-4 for a text
    if (
        not isinstance(value, entry.kind)
        or (isinstance(value, str) and not is_text(value))
        or value in (math.inf, -math.inf)
        or (isinstance(value, bool) and entry.kind is not bool)
    ):
        raise WrongJob(f"{key} is {value!r}; {KINDS[entry.kind]} is wanted.")
    if entry.options and value not in entry.options:
        raise WrongJob(f"{key} is {value!r}; it can be {', '.join(map(str, entry.options))}.")
    if entry.least is not None and not entry.least <= value <= (
        math.inf if entry.most is None else entry.most
    ):
        most = "" if entry.most is None else f" and at most {entry.most:g}"
        raise WrongJob(f"{key} is {value}; it must be at least {entry.least:g}{most}.")
    return entry.kind(value)


def is_text(value: Any) -> bool:
    """YAML also knows texts with halves of characters, which nothing can store or show."""
    return isinstance(value, str) and not any("\ud800" <= one <= "\udfff" for one in value)


KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def number(given: str | int) -> float | str | int:
    try:
        return float(given)
    except (ValueError, OverflowError):
        return given
