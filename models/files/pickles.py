"""PyTorch's pickles → named tensors. Code in a file is never run: only tensors and plain containers are unpickled."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UnreadableFile, is_out_of_memory, words_of
from .formats import PICKLES
from .quantised import ADVICE, scheme_of_class


@dataclass(frozen=True)
class Pickle:
    """tensors: by name; those of a training checkpoint are named by the keys that lead to them.
    parts:   the beginnings of the names of each model in a file that holds several: `model.`, `ema.`
    mapped:  whether the tensors are memory-mapped.
    """

    tensors: dict[str, Tensor]
    parts: tuple[str, ...]
    mapped: bool


def read_pickle(path: Path) -> Pickle:
    """Raises: UnreadableFile."""
    mapped = True
    try:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used with files saved with" not in str(error):
                raise
            mapped = False  # the file is in the format of torch before 1.6
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        model = innermost(loaded) if isinstance(loaded, dict) else {}
        tensors = dict(named_tensors(model))
    except pickle.UnpicklingError as error:
        raise UnreadableFile(why_refused(path, error)) from error
    except Exception as error:  # a damaged pickle can raise any of them
        if is_out_of_memory(error):
            raise
        if "TorchScript" in str(error):
            raise UnreadableFile(
                f"{path.name} is a TorchScript program, and programs in files are never run. Get the weights that it "
                "was made from (a state dict), as .safetensors if there is one."
            ) from error
        raise UnreadableFile(
            f"{path.name} ({path.stat().st_size} bytes) is damaged, cut short, or not a PyTorch file "
            f"({words_of(error)}). Compare its size with the original and download it again."
        ) from error
    if not tensors:
        raise UnreadableFile(
            f"{path.name} holds {describe(loaded)}, but no dictionary of named tensors. "
            "A file of weights (a state dict) is needed."
        )
    parts = tuple(f"{key}." for key, value in model.items() if isinstance(value, dict))
    return Pickle(tensors, parts, mapped)


def is_legacy_pickle(path: Path) -> bool:
    """Whether a file is a pickle of torch before 1.6, which must be read whole before anything is known of it."""
    if path.suffix.lower() not in PICKLES or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(1) == pickle.PROTO


def innermost(saved: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The dictionary of tensors in what a training program saved; one that holds several of them if there are several.

    By convention, `state_dict` is the one that is meant.
    """
    if isinstance(saved.get("state_dict"), dict):
        return innermost(saved["state_dict"])
    if any(isinstance(value, Tensor) for value in saved.values()):
        return saved
    models = [value for value in saved.values() if isinstance(value, dict) and any(named_tensors(value))]
    return innermost(models[0]) if len(models) == 1 else saved


def named_tensors(saved: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested dictionaries, each named by the keys that lead to it. An optimizer's are left out."""
    if "param_groups" in saved or not all(isinstance(key, str) for key in saved):
        return
    for key, value in saved.items():
        if isinstance(value, Tensor):
            yield path + key, value
        elif isinstance(value, dict) and not key.startswith("optim"):
            yield from named_tensors(value, f"{path}{key}.")


def describe(loaded: Any) -> str:
    """What was found in a pickle, for people."""
    if not isinstance(loaded, dict):
        return f"a {type(loaded).__name__}"
    return f"a dictionary with {', '.join(map(repr, list(loaded)[:6])) or 'nothing in it'}"


def why_refused(path: Path, error: pickle.UnpicklingError) -> str:
    """Why a pickle is not loaded. torch's own text advises to load it all the same."""
    found = re.search(r"GLOBAL ([\w.]+)|([\w.]+)`* must be imported", str(error))
    if found is None:
        return (
            f"{path.name} is refused: it is damaged, or not a plain file of tensors. Nothing was executed. Compare its "
            "size with the original and download it again."
        )
    kind = found[1] or found[2]
    scheme = scheme_of_class(kind)
    if scheme is not None:
        return f"{path.name} is quantised with {scheme}: it holds objects of {kind}. {ADVICE}"
    return (
        f"{path.name} is refused: it holds more than plain tensors ({kind}), and loading that would run code. Nothing "
        "was executed. Get the file from its publisher, as .safetensors if there is one; if it is your own, save its "
        "state dict alone."
    )
