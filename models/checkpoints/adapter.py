"""The published Cross-Adapter file (LLM4GEN's `projector.pth`, or one of ours) → a `CrossAdapter` and its recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ..cross_adapter import CrossAdapter, CrossAdapterConfig
from ..errors import UnknownCheckpoint, WrongRecipe
from ..files.atomic import written_whole
from ..files.weights import Weights, open_weights
from ..progress import Progress, silent
from ..recipe import Recipe, recipe_from_metadata, recipe_metadata
from .fill import Recognised, check_names, fill, find_prefix, measure
from .refusal import list_tensors, refusal

# The file's names → ours. `kv_norm` and `q_norm` are crossed in the published file: the first normalises the queries,
# the second the keys and values.
ADAPTER_NAMES = {
    "llm_proj": "llm_proj",
    "kv_norm": "llm_norm",
    "q_norm": "clip_norm",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "out",
    "norm": "mlp_norm",
    "FFN.0": "mlp.0",
    "FFN.2": "mlp.2",
}
ADAPTER_KEY = "llm_proj.weight"  # a file with a tensor of this name holds a Cross-Adapter
PUBLISHED_PREFIX = "CrossFusionModule.0."
TRAINING_KEY = "llm4gen_training"  # the metadata entry that says, as JSON, how an adapter was trained
# A UNet that learnt as a whole, a LoRA that learnt, and LoRAs or merges that the MODEL had before.
WITH_UNET, WITH_LORA, WITH_PATCHES = "unet", "lora", "patches"


def load_cross_adapter(
    path: Path, *, operations: Any = nn, progress: Progress = silent, mapped: bool = True
) -> tuple[CrossAdapter, Recipe]:
    """Loads a Cross-Adapter in fp32, with the recipe that it was trained with.

    mapped: whether weights may stay memory-mapped.
    Raises: UnreadableFile, UnknownCheckpoint, IncompleteCheckpoint, WrongRecipe.
    """
    weights = open_weights(path)
    found, recipe = recognise_adapter(weights)
    adapter = fill(
        found, weights, operations=operations, dtype=torch.float32, progress=progress, mapped=mapped
    )
    return adapter, recipe


def recognise_adapter(weights: Weights) -> tuple[Recognised[CrossAdapterConfig], Recipe]:
    """Raises: UnknownCheckpoint, IncompleteCheckpoint, WrongRecipe."""
    prefix = find_prefix(weights, ADAPTER_KEY)
    if prefix is None:
        raise refusal(
            weights,
            f"does not hold a Cross-Adapter: there is no {ADAPTER_KEY} among its "
            f"{list_tensors(list(weights.tensors))}",
            "Put LLM4GEN's projector.pth in models/llm4gen.",
            UnknownCheckpoint,
        )
    recipe = recipe_from_metadata(weights.metadata)
    clip_dim, llm_dim = measure(weights, prefix + ADAPTER_KEY)
    mlp_dim, _ = measure(weights, f"{prefix}FFN.0.weight")
    if clip_dim % recipe.heads:
        raise WrongRecipe(
            f"{weights.name} is {clip_dim} wide, which {recipe.heads} attention heads do not divide. "
            "The file's metadata must name the right number of heads."
        )
    names = {
        f"{prefix}{theirs}.{part}": f"{ours}.{part}"
        for theirs, ours in ADAPTER_NAMES.items()
        for part in ("weight", "bias")
    }
    config = CrossAdapterConfig(clip_dim, llm_dim, mlp_dim, recipe.heads)
    build = partial(CrossAdapter, config, device="meta")
    check_names(build(), weights, names)
    return Recognised(config, names, build), recipe


def read_training(path: Path) -> str | None:
    """The JSON object, as text, that says how an adapter was trained; None if its file does not say.

    Raises: UnreadableFile.
    """
    return training_of(open_weights(path).metadata)


def training_of(metadata: Mapping[str, str]) -> str | None:
    """As `read_training`, from the metadata of an open file."""
    text = metadata.get(TRAINING_KEY)
    try:
        return text if isinstance(json.loads(text or "null"), dict) else None
    except (ValueError, RecursionError):
        return None


def trained_with(training: str | None) -> str | None:
    """The change of the UNet with which an adapter was trained and should be used: WITH_UNET, WITH_LORA, WITH_PATCHES.

    None if the UNet was as its file has it, or if `training`, a result of `read_training`, does not say.
    """
    entry = json.loads(training or "{}")
    found = (
        (WITH_UNET, entry.get("unet")),
        (WITH_LORA, entry.get("lora")),
        (WITH_PATCHES, entry.get("base_is_patched")),
    )
    return next((name for name, is_there in found if is_there), None)


def save_cross_adapter(
    adapter: CrossAdapter, recipe: Recipe, path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes an adapter in fp32 under the published names, whole or not at all. `load_cross_adapter` reads it back.

    metadata: more entries beside the recipe, such as `TRAINING_KEY`.
    """
    found = adapter.state_dict()
    tensors = {
        f"{PUBLISHED_PREFIX}{theirs}.{part}": found[f"{ours}.{part}"].float().cpu().contiguous()
        for theirs, ours in ADAPTER_NAMES.items()
        for part in ("weight", "bias")
    }
    with written_whole(path) as unfinished:
        save_file(tensors, unfinished, {**(metadata or {}), **recipe_metadata(recipe)})
