"""Every spelling of a T5 encoder (RankGen's, transformers', llama.cpp's) → a `T5Encoder`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from ..encoders.t5 import T5Config, T5Encoder
from ..errors import LLM4GENError, UnknownCheckpoint, UnreadableFile
from ..files.gguf import GgufFile
from ..files.weights import Weights
from .fill import Recognised, check_names, find_prefix, measure
from .refusal import list_tensors, refusal

# Names inside a block: transformers' (which RankGen has too) → ours.
BLOCK_NAMES = {
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
# A file with a tensor of this name, after any prefix, holds a T5 encoder.
T5_KEY = "encoder.block.0.layer.0.SelfAttention.q.weight"
# Parts of a whole model that the encoder does not need: RankGen's own projection, T5's decoder and head, and the
# second name of the token embedding.
UNUSED = re.compile(r"(.*\.)?(projection\.weight|decoder\..*|lm_head\.weight|encoder\.embed_tokens\.weight)")
LOADABLE = "RankGen, T5 v1.1, flan-T5 and mT5 can be loaded."
# Published T5s that have another tokenizer, by the rows of their token embedding.
OTHER_TOKENIZERS = {384: "byt5", 250112: "mt5", 256000: "madlad400"}
BIAS_IN_EACH_BLOCK = {256384: "umT5", 32128: "pile-T5"}
UL2_SIZES = (4096, 16384, 16, 256)  # width, mlp_dim, heads, head_dim
# Other text encoders in one file, by a tensor that they have.
OTHERS = {
    r"(model|language_model)\.layers\.0\.self_attn\.q_proj\.weight": "the weights of an LLM without its sizes",
    r"text_model\.encoder\.layers\.0\.self_attn\.q_proj\.weight": "CLIP's text encoder",
    r"blocks\.0\.pos_embedding\.embedding\.weight": "umT5 as Wan names it",
}

GGUF_ARCHITECTURES = ("t5", "t5encoder")
GGUF_NAMES = {
    "token_embd": "embedding",
    "enc.blk.0.attn_rel_b": "position_bias",
    "enc.output_norm": "final_norm",
}
GGUF_BLOCK_NAMES = {
    "attn_norm": "attention_norm",
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_o": "attention.out",
    "ffn_norm": "mlp_norm",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}
GGUF_UNUSED = re.compile(r"output\.weight|dec\..*")


def recognise_t5(weights: Weights) -> Recognised[T5Config]:
    """Raises: UnreadableFile for a damaged config.json beside the file, UnknownCheckpoint, IncompleteCheckpoint."""
    prefix = find_prefix(weights, T5_KEY)
    if prefix is None:
        raise not_a_t5(weights)
    if f"{prefix}encoder.block.0.layer.1.DenseReluDense.wi.weight" in weights.tensors:
        raise UnknownCheckpoint(
            f"{weights.name} is the first version of T5, whose feed-forward has no gates (one wi instead of wi_0 and "
            f"wi_1). {LOADABLE}"
        )
    block = re.compile(re.escape(prefix) + r"encoder\.block\.(\d+)\.")
    layers = len({match[1] for name in weights.tensors if (match := block.match(name))})
    embedding = "shared" if f"{prefix}shared.weight" in weights.tensors else "encoder.embed_tokens"
    names = published_names(layers, prefix, embedding)
    second = f"{prefix}encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    check_position_bias(weights, second, f"{prefix}{embedding}.weight")
    check_config(weights.path / "config.json")
    return recognised(weights, names, UNUSED)


def recognise_gguf_t5(file: GgufFile) -> Recognised[T5Config]:
    """Raises: UnknownCheckpoint, IncompleteCheckpoint."""
    if "enc.blk.0.attn_q.weight" not in file.tensors or "enc.blk.0.ffn_gate.weight" not in file.tensors:
        raise UnknownCheckpoint(
            f"{file.path.name} does not hold an encoder like T5 v1.1's: there is no enc.blk.0.attn_q.weight with an "
            f"enc.blk.0.ffn_gate.weight among its {len(file.tensors)} tensors. {LOADABLE}"
        )
    check_position_bias(file.shapes(), "enc.blk.1.attn_rel_b.weight", "token_embd.weight")
    eps = file.header.get(f"{file.architecture}.attention.layer_norm_epsilon", T5Config.norm_eps)
    if not np.isclose(eps, T5Config.norm_eps, rtol=1e-4):
        raise UnknownCheckpoint(
            f"{file.path.name} is another kind of T5: the epsilon of its norms is {eps}, not {T5Config.norm_eps}. "
            f"{LOADABLE}"
        )
    layers = {match[1] for name in file.tensors if (match := re.match(r"enc\.blk\.(\d+)\.", name))}
    names = dict(GGUF_NAMES)
    for index in range(len(layers)):
        names |= {f"enc.blk.{index}.{a}": f"blocks.{index}.{b}" for a, b in GGUF_BLOCK_NAMES.items()}
    names = {f"{theirs}.weight": f"{ours}.weight" for theirs, ours in names.items()}
    return recognised(file.shapes(), names, GGUF_UNUSED)


def recognised(weights: Weights, names: dict[str, str], unused: re.Pattern[str]) -> Recognised[T5Config]:
    """names: the file's → ours. Raises: UnknownCheckpoint, IncompleteCheckpoint."""
    config = measure_t5(weights, {ours: theirs for theirs, ours in names.items()})
    if (config.width, config.mlp_dim, config.heads, config.head_dim) == UL2_SIZES:
        raise UnknownCheckpoint(
            f"{weights.name} has the sizes of UL2, whose feed-forward is gated by SiLU instead of GELU. {LOADABLE}"
        )
    build = partial(T5Encoder, config, device="meta")
    check_names(build(), weights, names, unused)
    return Recognised(config, names, build)


def published_names(layers: int, prefix: str = "", embedding: str = "shared") -> dict[str, str]:
    """transformers' names of a T5 encoder → ours."""
    bias = f"{prefix}encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    names = {
        f"{prefix}{embedding}.weight": "embedding.weight",
        bias: "position_bias.weight",
        f"{prefix}encoder.final_layer_norm.weight": "final_norm.weight",
    }
    for index in range(layers):
        for theirs, ours in BLOCK_NAMES.items():
            names[f"{prefix}encoder.block.{index}.{theirs}.weight"] = f"blocks.{index}.{ours}.weight"
    return names


def measure_t5(weights: Weights, name_in_file: Mapping[str, str]) -> T5Config:
    """The sizes of a T5 encoder. name_in_file: our names → the file's.

    Shapes do not tell how far the position bias reaches, the epsilon of the norms, and the activation. Every published
    T5 v1.1 has the values of `T5Config` and `FeedForward`, which `check_config` relies on.
    Raises: IncompleteCheckpoint.
    """
    vocabulary, width = measure(weights, name_in_file["embedding.weight"])
    buckets, heads = measure(weights, name_in_file["position_bias.weight"])
    inner, _ = measure(weights, name_in_file["blocks.0.attention.query.weight"])
    mlp_dim, _ = measure(weights, name_in_file["blocks.0.mlp.gate.weight"])
    if inner % heads or buckets < 4 or buckets % 4:
        raise refusal(
            weights,
            f"has {heads} attention heads over a width of {inner}, and {buckets} buckets of positions, which is "
            "impossible in a T5",
        )
    layers = sum(name.endswith(".attention_norm.weight") for name in name_in_file)
    return T5Config(vocabulary, width, mlp_dim, heads, inner // heads, layers, buckets)


def not_a_t5(weights: Weights) -> LLM4GENError:
    """The error to raise for a file without `T5_KEY`."""
    found = f"there is no {T5_KEY} among its {list_tensors(list(weights.tensors))}"
    for key, kind in OTHERS.items():
        if any(re.fullmatch(rf"(.*\.)?{key}", name) for name in weights.tensors):
            found = f"it holds {kind}"
    return refusal(
        weights,
        f"does not hold a T5 encoder: {found}",
        "Put rankgen-t5-xl-all in models/text_encoders, or another LLM as a folder with its config.json and tokenizer.",
        UnknownCheckpoint,
    )


def check_position_bias(weights: Weights, second: str, embedding: str) -> None:
    """Refuses a T5 each of whose blocks has a position bias.

    second: the name that the second block's has. Raises: UnknownCheckpoint.
    """
    if second in weights.tensors:
        rows, _ = measure(weights, embedding)
        raise UnknownCheckpoint(
            f"{weights.name} is {BIAS_IN_EACH_BLOCK.get(rows, 'a relative of umT5')}, each of whose blocks has a "
            f"position bias of its own ({second}); the blocks of T5 v1.1 share one. {LOADABLE}"
        )


def check_config(path: Path) -> None:
    """Refuses a folder whose config.json names values that differ from T5 v1.1's and that the weights do not show.

    Raises: UnreadableFile, UnknownCheckpoint.
    """
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
        needed = {name: wanted[name] for name in other}
        raise UnknownCheckpoint(
            f"{path.parent.name} is another kind of T5: its config.json has {other}; only {needed} can be computed. "
            f"{LOADABLE}"
        )
