"""Why a file is not the model that was wanted, where its tensors or its name tell more than that some are missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import IncompleteCheckpoint, LLM4GENError, UnknownCheckpoint
from ..files.quantised import ADVICE, OTHER_SCALES, find_scheme
from ..files.weights import Weights, weight_files

EXACTLY = "The file must hold the whole model and nothing else. Get the original from the model's publisher."
# `model-00001-of-00002.safetensors`, also with a variant between the number and the extension.
SHARD_NAME = re.compile(r"[-_](\d+)-of-(\d+)(?!\d)")
LORA = re.compile(r"(.*\.)?lora_(A|B|up|down|embedding_A|embedding_B)(\..*)?")


def refusal(
    weights: Weights,
    problem: str,
    advice: str = EXACTLY,
    error: type[LLM4GENError] = IncompleteCheckpoint,
) -> LLM4GENError:
    """The error to raise for weights that cannot be loaded: the cause if it is known, else the problem.

    problem: what was seen, for a sentence that begins with the file's name.

    It is asked for when something is missing or superfluous, so a trace that changes nothing is no reason to refuse.
    """
    for cause in (quantised, one_shard, partitioned, lora):
        reason = cause(weights)
        if reason is not None:
            return UnknownCheckpoint(f"{weights.name} {reason}")
    if traces_of_quantisation(weights):
        advice = f"It is quantised in a way that is not known here. {ADVICE}"
    return error(f"{weights.name} {problem}. {advice}")


def quantised(weights: Weights) -> str | None:
    method = quantisation_method(weights.path)
    scheme, names = find_scheme(weights.tensors) or (method, traces_of_quantisation(weights))
    if scheme is None or not names:
        return None
    said = f" (its config.json says {method})" if method and method != scheme else ""
    return f"is quantised with {scheme}{said}: it holds {list_tensors(names)}. {ADVICE}"


def traces_of_quantisation(weights: Weights) -> list[str]:
    """The names of scales that no reader took, or of matrices of whole numbers if most matrices are such."""
    matrices = [
        name for name, tensor in weights.tensors.items() if name.endswith("weight") and tensor.ndim >= 2
    ]
    whole = [name for name in matrices if not is_fractional(weights.tensors[name])]
    scales = [name for name in weights.tensors if OTHER_SCALES.fullmatch(name)]
    return scales or (whole if len(whole) * 2 > len(matrices) else [])


def is_fractional(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def quantisation_method(path: Path) -> str | None:
    """The scheme that a folder's config.json names."""
    config = read_json(path / "config.json")
    entry = config.get("quantization_config") or config.get("compression_config")
    if isinstance(entry, dict):
        return entry.get("quant_method")
    return "MLX" if isinstance(config.get("quantization"), dict) else None


def one_shard(weights: Weights) -> str | None:
    files = weight_files(weights.path)
    match = SHARD_NAME.search(files[0].name)
    if len(files) > 1 or match is None or int(match[2]) < 2:
        return None
    part = "" if files[0] == weights.path else f"holds only {files[0].name}, which "
    return (
        f"{part}is part {int(match[1])} of {int(match[2])} of a model, and a part alone cannot be loaded. Put all of "
        "them, their index (its name ends in .index.json) and the model's config.json into a folder of its own, and "
        "choose that folder."
    )


def partitioned(weights: Weights) -> str | None:
    empty = [name for name, tensor in weights.tensors.items() if not tensor.numel()]
    if not empty or len(empty) * 2 < len(weights.tensors):
        return None
    return (
        f"is a checkpoint of a training on several GPUs, which left its weights in other files: {list_tensors(empty)} "
        "are empty. Join them with that program's own tool (DeepSpeed's is zero_to_fp32.py), and load the result."
    )


def lora(weights: Weights) -> str | None:
    found = [name for name in weights.tensors if LORA.fullmatch(name)]
    if not found:
        return None
    return (
        f"holds LoRA layers that are not merged into a model: {list_tensors(found)}. Merge them first, or load "
        "the model without them."
    )


def read_json(path: Path) -> dict[str, Any]:
    """The entries of a JSON file; none if it cannot be read."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def list_tensors(names: list[str], most: int = 4) -> str:
    """`3 tensors (a, b, c)`, with only the first few names."""
    listed = ", ".join(names[:most]) + (", …" if len(names) > most else "")
    count = f"{len(names)} tensor" + ("s" if len(names) != 1 else "")
    return f"{count} ({listed})" if names else count
