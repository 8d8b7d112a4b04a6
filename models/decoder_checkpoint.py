"""A transformers folder → a Decoder: recognised by its config, strictly filled."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig

from .decoder import Decoder, DecoderConfig
from .errors import UnknownCheckpoint, UnreadableFile
from .filling import check_names, describe, fill, find_prefix
from .progress import Progress, silent
from .weights import Weights, open_weights

T5_TYPES = ("t5", "mt5", "umt5")
# The head and its norm's like are not run; tables of positions are computed.
UNUSED = re.compile(r"(.*\.)?lm_head\..*|.*rotary_emb\.inv_freq")


def is_transformers_folder(path: Path) -> bool:
    """Whether a folder's config.json names a model other than T5, whose encoder this pack has itself."""
    return path.is_dir() and model_type(path) not in (None, *T5_TYPES)


def model_type(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None


def load_decoder(
    path: Path,
    *,
    depth: int | None = None,
    dtype: torch.dtype | None = None,
    operations=nn,
    progress: Progress = silent,
) -> Decoder:
    """Loads the first `depth` layers of an LLM (None: all) from a folder.

    dtype: of the matrices in memory; None keeps the file's, memory-mapped. All else: fp32.
    Raises: UnreadableFile, UnknownCheckpoint, IncompleteCheckpoint.
    """
    weights = open_weights(path)
    config, names = recognise_decoder(weights)
    return fill(partial(Decoder, config, depth=depth), operations, weights, names, dtype, progress)


def recognise_decoder(weights: Weights) -> tuple[DecoderConfig, dict[str, str]]:
    """An LLM's config, and the file's names → ours.

    Raises: UnreadableFile, UnknownCheckpoint, IncompleteCheckpoint.
    """
    config = read_config(weights.path)
    blueprint = Decoder(config)
    ours = list(blueprint.state_dict())
    mark = next(name for name in ours if ".0." in name).removeprefix("model.")
    prefix = find_prefix(weights, mark)
    if prefix is None:
        raise UnknownCheckpoint(
            f"{weights.name}: its config.json says {config.transformers.model_type}, but there is no {mark} among "
            f"its {describe(list(weights.tensors))}. Put the config.json of these very weights beside them."
        )
    names = {prefix + name.removeprefix("model."): name for name in ours}
    check_names(blueprint, weights, names, UNUSED)
    return config, names


def read_config(folder: Path) -> DecoderConfig:
    """Raises: UnreadableFile, UnknownCheckpoint."""
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged or unknown config makes of the library
        kind = model_type(folder)
        raise UnreadableFile(
            f"{folder.name}/config.json ({kind}) cannot be read by the transformers that is installed "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Models with code of their own are never run; "
            "for a newer family, update transformers."
        ) from error
    config = config.get_text_config()
    if config.is_encoder_decoder or type(config) not in MODEL_MAPPING:
        raise UnknownCheckpoint(
            f"{folder.name} holds a {config.model_type}, which is no model that reads text from left to right. "
            "Load a T5 encoder, or an LLM such as Llama, Mistral, Qwen, Gemma, Phi or SmolLM."
        )
    return DecoderConfig(config)
