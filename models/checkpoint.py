"""Weights → models: recognised by keys, measured by shapes, renamed at the door."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import torch
from torch import nn

from .cross_adapter import CrossAdapter, CrossAdapterConfig
from .errors import IncompleteCheckpoint, UnknownCheckpoint, UnreadableFile, WrongRecipe
from .filling import check_names, describe, fill, find_prefix, measure
from .progress import Progress, silent
from .recipe import Recipe, recipe_from_metadata
from .t5 import T5Config, T5Encoder
from .weights import Weights, open_weights

# The checkpoint's names → ours. kv_norm and q_norm are crossed in the published file: the first normalises
# the queries, the second the keys and values.
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
ADAPTER_MARK = "llm_proj.weight"
T5_BLOCK_NAMES = {
    "layer.0.layer_norm": "attention_norm",
    "layer.0.SelfAttention.q": "attention.query",
    "layer.0.SelfAttention.k": "attention.key",
    "layer.0.SelfAttention.v": "attention.value",
    "layer.0.SelfAttention.o": "attention.out",
    "layer.1.layer_norm": "mlp_norm",
    "layer.1.DenseReluDense.wi_0": "mlp.gate",
    "layer.1.DenseReluDense.wi_1": "mlp.up",
    "layer.1.DenseReluDense.wo": "mlp.down",
}
T5_MARK = "encoder.block.0.layer.0.SelfAttention.q.weight"
# Parts of whole models that an encoder does without: RankGen's own projection, T5's decoder and head, and
# the embedding's second name.
T5_UNUSED = re.compile(
    r"projection\.weight|(.*\.)?(decoder\..*|lm_head\.weight|encoder\.embed_tokens\.weight)"
)


def load_cross_adapter(
    path: Path, *, operations=nn, progress: Progress = silent
) -> tuple[CrossAdapter, Recipe]:
    """Loads a Cross-Adapter, in fp32, with the recipe that it was trained with.

    Raises: UnreadableFile, UnknownCheckpoint, IncompleteCheckpoint, WrongRecipe.
    """
    weights = open_weights(path)
    config, recipe, names = recognise_adapter(weights)
    build = partial(CrossAdapter, config, device="meta")
    return fill(build, operations, weights, names, torch.float32, progress), recipe


def recognise_adapter(weights: Weights) -> tuple[CrossAdapterConfig, Recipe, dict[str, str]]:
    """A Cross-Adapter's sizes, its recipe, and the file's names → ours; all are there and of the right shape.

    Raises: UnknownCheckpoint, IncompleteCheckpoint, WrongRecipe.
    """
    prefix = find_prefix(weights, ADAPTER_MARK)
    if prefix is None:
        raise UnknownCheckpoint(
            f"{weights.name} holds no Cross-Adapter: no {ADAPTER_MARK} among its "
            f"{describe(list(weights.tensors))}. Put LLM4GEN's projector.pth in models/llm4gen."
        )
    recipe = recipe_from_metadata(weights.metadata)
    clip_dim, llm_dim = measure(weights, prefix + ADAPTER_MARK)
    mlp_dim, _ = measure(weights, f"{prefix}FFN.0.weight")
    if clip_dim % recipe.heads:
        raise WrongRecipe(
            f"{weights.name} is {clip_dim} wide, which {recipe.heads} attention heads do not divide. "
            "The right number of heads belongs in the file's metadata."
        )
    names = {
        f"{prefix}{theirs}.{part}": f"{ours}.{part}"
        for theirs, ours in ADAPTER_NAMES.items()
        for part in ("weight", "bias")
    }
    config = CrossAdapterConfig(clip_dim, llm_dim, mlp_dim, recipe.heads)
    check_names(CrossAdapter(config, device="meta"), weights, names)
    return config, recipe, names


def load_t5_encoder(
    path: Path,
    *,
    depth: int | None = None,
    dtype: torch.dtype | None = None,
    operations=nn,
    progress: Progress = silent,
) -> T5Encoder:
    """Loads the encoder of RankGen, T5 v1.1 or flan-T5, of any size, from a file or a folder.

    depth: blocks to load, from the first; None: all.
    dtype: of the weights in memory; None keeps the file's, memory-mapped. Norms and position bias: fp32.
    Raises: UnreadableFile, UnknownCheckpoint, IncompleteCheckpoint.
    """
    weights = open_weights(path)
    config, names = recognise_t5(weights)
    build = partial(T5Encoder, config, depth=depth, device="meta")
    return fill(build, operations, weights, names, dtype, progress)


def recognise_t5(weights: Weights) -> tuple[T5Config, dict[str, str]]:
    """A T5 encoder's sizes, and the file's names → ours; all are there and of the right shape.

    Raises: UnreadableFile for a damaged config.json beside it, UnknownCheckpoint, IncompleteCheckpoint.
    """
    prefix = find_prefix(weights, T5_MARK)
    if prefix is None:
        raise UnknownCheckpoint(
            f"{weights.name} holds no T5 encoder: no {T5_MARK} among its {describe(list(weights.tensors))}. "
            "Put rankgen-t5-xl-all in models/text_encoders."
        )
    if f"{prefix}encoder.block.0.layer.1.DenseReluDense.wi.weight" in weights.tensors:
        raise UnknownCheckpoint(
            f"{weights.name} is the first T5, without gates in its feed-forward (one wi instead of wi_0 and "
            "wi_1). RankGen, T5 v1.1 and flan-T5 can be loaded."
        )
    check_config(weights.path / "config.json")
    block = re.compile(re.escape(prefix) + r"encoder\.block\.(\d+)\.")
    layers = len({match[1] for name in weights.tensors if (match := block.match(name))})
    words = "shared" if f"{prefix}shared.weight" in weights.tensors else "encoder.embed_tokens"
    names = t5_names(prefix, layers, words)
    config = measure_t5(weights, {ours: theirs for theirs, ours in names.items()})
    check_names(T5Encoder(config, device="meta"), weights, names, T5_UNUSED)
    return config, names


def t5_names(prefix: str, layers: int, words: str = "shared") -> dict[str, str]:
    """The published names → ours."""
    bias = f"{prefix}encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    names = {
        f"{prefix}{words}.weight": "embedding.weight",
        bias: "position_bias.weight",
        f"{prefix}encoder.final_layer_norm.weight": "final_norm.weight",
    }
    for index in range(layers):
        for theirs, ours in T5_BLOCK_NAMES.items():
            names[f"{prefix}encoder.block.{index}.{theirs}.weight"] = f"blocks.{index}.{ours}.weight"
    return names


def measure_t5(weights: Weights, theirs: dict[str, str]) -> T5Config:
    """The sizes of a T5 encoder. theirs: our names → the file's.

    How far its position bias reaches, its norms' epsilon and its activation leave no trace in the shapes;
    every published T5 v1.1 has the values that `T5Config` and `FeedForward` have (`check_config`).
    """
    vocabulary, width = measure(weights, theirs["embedding.weight"])
    buckets, heads = measure(weights, theirs["position_bias.weight"])
    inner, _ = measure(weights, theirs["blocks.0.attention.query.weight"])
    mlp_dim, _ = measure(weights, theirs["blocks.0.mlp.gate.weight"])
    if inner % heads or buckets < 4 or buckets % 4:
        raise IncompleteCheckpoint(
            f"{weights.name}: {heads} attention heads over a width of {inner} and {buckets} buckets of positions "
            "are no T5's. The file is damaged or another model's; download the original again."
        )
    layers = sum(name.endswith(".attention_norm.weight") for name in theirs)
    return T5Config(vocabulary, width, mlp_dim, heads, inner // heads, layers, buckets)


def check_config(path: Path) -> None:
    """Refuses what a T5's folder says of it and its weights do not show, if it is not T5 v1.1's."""
    if not path.is_file():
        return
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UnreadableFile(f"{path} is damaged: {error}. Download it again.") from error
    wanted = {
        "feed_forward_proj": "gated-gelu",
        "relative_attention_max_distance": T5Config.max_distance,
        "layer_norm_epsilon": T5Config.norm_eps,
    }
    other = {name: config[name] for name, value in wanted.items() if config.get(name, value) != value}
    if other:
        raise UnknownCheckpoint(
            f"{path.parent.name} is another kind of T5: its config.json has {other}; "
            f"{ {name: wanted[name] for name in other} } can be computed. Load RankGen, T5 v1.1 or flan-T5."
        )
