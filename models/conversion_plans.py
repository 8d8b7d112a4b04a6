"""What Load LLM Encoder and Load Cross-Adapter take → how it becomes a smaller file."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from .checkpoint import ADAPTER_MARK, T5_MARK, recognise_adapter, recognise_t5
from .conversion import Conversion, dtypes_of, t5_tokenizer
from .cross_adapter import CrossAdapter
from .decoder import Decoder
from .decoder_checkpoint import is_transformers_folder, recognise_decoder
from .errors import UnknownCheckpoint
from .filling import describe, find_prefix
from .formats import TOKENIZER_FILE, is_gguf
from .gguf_conversion import plan_gguf
from .recipe import recipe_metadata
from .t5 import T5Encoder
from .weights import Weights, open_weights
from .widths import DTYPES

ENCODER_DTYPE = "bf16"  # unless another is asked for: half of fp32, and no T5's weights leave its range
BESIDE = (".json", ".jinja", ".model", ".txt")  # of a transformers folder: its config and its tokenizer


def plan_conversion(path: Path, dtype: str | None = None) -> Conversion:
    """Recognises what Load LLM Encoder or Load Cross-Adapter takes, and lays out the new file.

    dtype: None is `ENCODER_DTYPE` for an encoder, the file's own for an adapter.
    Raises: UnreadableFile, UnknownCheckpoint, IncompleteCheckpoint, WrongRecipe.
    """
    if is_gguf(path):
        return plan_gguf(path, dtype or ENCODER_DTYPE)
    weights = open_weights(path)
    if is_transformers_folder(path):
        return plan_decoder(weights, dtype or ENCODER_DTYPE)
    if find_prefix(weights, T5_MARK) is not None:
        return plan_t5(weights, dtype or ENCODER_DTYPE)
    if find_prefix(weights, ADAPTER_MARK) is not None:
        return plan_adapter(weights, dtype)
    raise UnknownCheckpoint(
        f"{weights.name} holds neither a T5 encoder (no {T5_MARK}) nor a Cross-Adapter (no {ADAPTER_MARK}) "
        f"among its {describe(list(weights.tensors))}. RankGen's pytorch_model.bin, LLM4GEN's projector.pth, and "
        "folders of other LLMs with their config.json can be converted."
    )


def plan_t5(weights: Weights, dtype: str) -> Conversion:
    config, names = recognise_t5(weights)
    own, tokenizer = t5_tokenizer(weights.path)
    return Conversion(
        weights,
        f"T5 encoder, {config.layers} layers of width {config.width}",
        dtype,
        dtypes_of(T5Encoder(config, device="meta"), names, dtype),
        {"tokenizer": tokenizer},
        own,
    )


def plan_decoder(weights: Weights, dtype: str) -> Conversion:
    """Another LLM: it is known by its folder's config.json, and read with the tokenizer there."""
    config, names = recognise_decoder(weights)
    folder = weights.path.resolve()
    return Conversion(
        weights,
        f"{config.transformers.model_type}, {config.layers} layers of width {config.width}",
        dtype,
        dtypes_of(Decoder(config), names, dtype),
        {"tokenizer": f"{folder.name}/{TOKENIZER_FILE}"},
        furnish=partial(copy_beside, folder),
    )


def plan_adapter(weights: Weights, dtype: str | None) -> Conversion:
    config, recipe, names = recognise_adapter(weights)
    mark = next(name for name in names if name.endswith(ADAPTER_MARK))
    stored = weights.tensors[mark].dtype
    dtype = dtype or next((name for name, known in DTYPES.items() if known == stored), "fp32")
    return Conversion(
        weights,
        f"Cross-Adapter, from width {config.llm_dim} to {config.clip_dim}",
        dtype,
        dtypes_of(CrossAdapter(config, device="meta"), names, dtype),
        recipe_metadata(recipe),
    )


def copy_beside(source: Path, target: Path) -> None:
    """A folder's config and tokenizer, without what tells of its shards."""
    for path in sorted(source.iterdir()):
        if path.suffix in BESIDE and not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / path.name)
