"""What Load LLM Encoder and Load Cross-Adapter take → the plan of a smaller file."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from ..checkpoints.adapter import ADAPTER_KEY, TRAINING_KEY, recognise_adapter
from ..checkpoints.decoder import is_transformers_folder, recognise_decoder
from ..checkpoints.fill import find_prefix
from ..checkpoints.refusal import list_tensors, refusal
from ..checkpoints.t5 import T5_KEY, recognise_t5
from ..errors import UnknownCheckpoint
from ..files.formats import DTYPE_NAMES, TOKENIZER_FILE, is_gguf
from ..files.values import dtype_name
from ..files.weights import Weights, open_weights
from ..recipe import recipe_metadata
from .conversion import Conversion, new_dtypes, t5_tokenizer
from .gguf import plan_gguf

# The default for encoders: half the size of fp32, and every T5's weights stay within its range.
ENCODER_DTYPE = "bf16"
COMPANION_SUFFIXES = (".json", ".jinja", ".model", ".txt")  # a transformers folder's config and tokenizer


def plan_conversion(path: Path, dtype: str | None = None) -> Conversion:
    """Recognises what Load LLM Encoder or Load Cross-Adapter takes, and plans the new file.

    dtype: None is `ENCODER_DTYPE` for an encoder, the file's own for an adapter.
    Raises: UnreadableFile, UnknownCheckpoint, IncompleteCheckpoint, WrongRecipe.
    """
    if is_gguf(path):
        return plan_gguf(path, dtype or ENCODER_DTYPE)
    weights = open_weights(path)
    if is_transformers_folder(path):
        return plan_decoder(weights, dtype or ENCODER_DTYPE)
    if find_prefix(weights, T5_KEY) is not None:
        return plan_t5(weights, dtype or ENCODER_DTYPE)
    if find_prefix(weights, ADAPTER_KEY) is not None:
        return plan_adapter(weights, dtype)
    raise refusal(
        weights,
        f"holds neither a T5 encoder (no {T5_KEY}) nor a Cross-Adapter (no {ADAPTER_KEY}) among its "
        f"{list_tensors(list(weights.tensors))}",
        "RankGen's pytorch_model.bin, LLM4GEN's projector.pth, and folders of other LLMs with their config.json can be "
        "converted.",
        UnknownCheckpoint,
    )


def plan_t5(weights: Weights, dtype: str) -> Conversion:
    found = recognise_t5(weights)
    own, tokenizer = t5_tokenizer(weights.path)
    return Conversion(
        weights,
        f"T5 encoder, {found.config.layers} layers of width {found.config.width}",
        dtype,
        new_dtypes(found.build(), found.names, dtype),
        {"tokenizer": tokenizer},
        own,
    )


def plan_decoder(weights: Weights, dtype: str) -> Conversion:
    """Plans a folder: any other LLM is recognised by its config.json, and read with the tokenizer beside it."""
    found = recognise_decoder(weights)
    folder = weights.path.resolve()
    return Conversion(
        weights,
        f"{found.config.family}, {found.config.layers} layers of width {found.config.width}",
        dtype,
        new_dtypes(found.build(), found.names, dtype),
        {"tokenizer": f"{folder.name}/{TOKENIZER_FILE}"},
        companions=partial(copy_companions, folder),
    )


def plan_adapter(weights: Weights, dtype: str | None) -> Conversion:
    found, recipe = recognise_adapter(weights)
    projection = next(name for name in found.names if name.endswith(ADAPTER_KEY))
    own_dtype = dtype_name(weights.tensors[projection].dtype)
    dtype = dtype or (own_dtype if own_dtype in DTYPE_NAMES else "fp32")
    kept = {name: entry for name, entry in weights.metadata.items() if name == TRAINING_KEY}
    return Conversion(
        weights,
        f"Cross-Adapter, from width {found.config.llm_dim} to {found.config.clip_dim}",
        dtype,
        new_dtypes(found.build(), found.names, dtype),
        {**kept, **recipe_metadata(recipe)},
    )


def copy_companions(source: Path, target: Path) -> None:
    """Copies a folder's config and tokenizer, but not the index of its shards."""
    for path in sorted(source.iterdir()):
        if path.suffix in COMPANION_SUFFIXES and not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / path.name)
