"""`.gguf` files → models: recognised by their header, measured by shapes, renamed at the door.

llama.cpp, whose format this is, names tensors in its own way, orders the rows of Llama's queries and keys for its
own rotation, and adds to Gemma's norms the one that transformers adds when it runs them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn
from transformers import AutoConfig

from .checkpoint import measure_t5
from .decoder import Decoder, DecoderConfig
from .errors import UnknownCheckpoint, UnreadableFile
from .filling import check_names
from .gguf_file import GgufFile, Quantised, check_encodings, library, open_gguf
from .gguf_layers import expanding, hold
from .progress import Progress, silent
from .t5 import T5Config, T5Encoder

T5 = ("t5", "t5encoder")
DECODERS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
T5_NAMES = {
    "token_embd": "embedding",
    "enc.blk.0.attn_rel_b": "position_bias",
    "enc.output_norm": "final_norm",
}
T5_BLOCK_NAMES = {
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
ROTATION = "rope_freqs.weight"  # what Llama 3.1 and later divide their rotary frequencies by
# The head, and T5's decoder, are not run.
UNUSED = re.compile(rf"output\.weight|dec\..*|{re.escape(ROTATION)}")


def recognise_gguf(path: Path) -> tuple[T5Config | DecoderConfig, GgufFile]:
    """An LLM's config, and the file; its tensors are there, of the right shapes, in encodings that can be expanded.

    Raises: MissingPackage, UnreadableFile, UnknownCheckpoint, IncompleteCheckpoint.
    """
    file = open_gguf(path)
    if file.header.get("split.count", 1) > 1:
        raise UnknownCheckpoint(
            f"{path.name} is one of {file.header['split.count']} parts. Join them with llama.cpp's "
            "`llama-gguf-split --merge`, and load the result."
        )
    if file.architecture in T5:
        config = measure_gguf_t5(file)
        blueprint = T5Encoder(config, device="meta")
    elif file.architecture in DECODERS:
        config = read_header(file)
        check_positions(file, config)
        blueprint = Decoder(config)
    else:
        raise UnknownCheckpoint(
            f"{path.name} holds a model of the architecture {file.architecture}. Of .gguf files, "
            f"{', '.join((*T5, *DECODERS))} can be read; others as a folder of safetensors with their config.json."
        )
    check_names(blueprint, file.outline(), names_of(file, config), UNUSED)
    check_encodings(file)
    return config, file


def load_gguf(
    file: GgufFile,
    config: T5Config | DecoderConfig,
    *,
    depth: int,
    operations=nn,
    progress: Progress = silent,
) -> nn.Module:
    """Loads the first `depth` layers. Matrices stay as they are in the file; norms and biases: fp32.

    Raises: IncompleteCheckpoint.
    """
    if isinstance(config, T5Config):
        build = partial(T5Encoder, config, depth=depth, device="meta")
    else:
        build = partial(Decoder, config, depth=depth)
    wanted = build(operations=nn).state_dict()
    names = {theirs: ours for theirs, ours in names_of(file, config).items() if ours in wanted}
    model, vectors, step = build(operations=expanding(operations)), {}, progress(len(names))
    for theirs, ours in names.items():
        tensor = in_our_order(file.tensors[theirs], ours, file.architecture, config)
        if wanted[ours].ndim == 1:
            vectors[ours] = vector_of(tensor, ours, file.architecture)
        else:
            hold(model.get_submodule(ours.removesuffix(".weight")), tensor)
        step()
    model.load_state_dict(vectors, strict=False, assign=True)
    assert not any(weight.is_meta for weight in model.parameters())
    if ROTATION in file.tensors:
        model.model.rotary_emb.inv_freq /= file.tensors[ROTATION].expand()
    return model.eval().requires_grad_(False)


def measure_gguf_t5(file: GgufFile) -> T5Config:
    """Raises: UnknownCheckpoint, IncompleteCheckpoint."""
    if "enc.blk.0.attn_q.weight" not in file.tensors or "enc.blk.0.ffn_gate.weight" not in file.tensors:
        raise UnknownCheckpoint(
            f"{file.path.name} holds no encoder of T5 v1.1's kind: no enc.blk.0.attn_q.weight with an "
            f"enc.blk.0.ffn_gate.weight among its {len(file.tensors)} tensors. RankGen, T5 v1.1 and flan-T5 can be "
            "loaded."
        )
    config = measure_t5(file.outline(), {ours: theirs for theirs, ours in t5_names(file).items()})
    eps = file.header.get(f"{file.architecture}.attention.layer_norm_epsilon", config.norm_eps)
    if not np.isclose(eps, config.norm_eps, rtol=1e-4):
        raise UnknownCheckpoint(
            f"{file.path.name} is another kind of T5: its norms' epsilon is {eps}, not {config.norm_eps}. "
            "Load RankGen, T5 v1.1 or flan-T5."
        )
    return config


def read_header(file: GgufFile) -> DecoderConfig:
    """Raises: UnreadableFile."""
    folder, name = str(file.path.parent), file.path.name
    try:
        config = AutoConfig.from_pretrained(
            folder, gguf_file=name, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever a damaged or unknown header makes of the library
        raise UnreadableFile(
            f"{name} ({file.architecture}) cannot be read by the transformers that is installed "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Update transformers, or use a folder of "
            "safetensors with its config.json."
        ) from error
    config = config.get_text_config()
    window = file.header.get(f"{file.architecture}.attention.sliding_window")
    if window and file.architecture.startswith("gemma"):  # which older versions of transformers leave out
        config.sliding_window = window
    return DecoderConfig(config)


def check_positions(file: GgufFile, config: DecoderConfig) -> None:
    """Refuses what transformers does not read from such headers. Raises: UnknownCheckpoint."""
    theirs, arch = config.transformers, file.architecture
    head = file.header.get(f"{arch}.attention.key_length", theirs.hidden_size // theirs.num_attention_heads)
    stretched = file.header.get(f"{arch}.rope.scaling.type", "none")
    odd = {
        f"positions stretched by {stretched}": stretched != "none"
        or "rope_factors_long.weight" in file.tensors,
        "heads that rotate in part": file.header.get(f"{arch}.rope.dimension_count", head) != head,
        "attention scaled by other than its heads": getattr(theirs, "query_pre_attn_scalar", head) != head,
    }
    if any(odd.values()):
        raise UnknownCheckpoint(
            f"{file.path.name} ({arch}) has {' and '.join(what for what, found in odd.items() if found)}, which "
            "cannot be read from a .gguf file. Use a folder of safetensors with its config.json."
        )


def names_of(file: GgufFile, config: T5Config | DecoderConfig) -> dict[str, str]:
    """The file's names → ours."""
    if isinstance(config, T5Config):
        return t5_names(file)
    gguf, names = library(), {}
    (number,) = (number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == file.architecture)
    theirs = gguf.get_tensor_name_map(number, config.layers)
    for ours in Decoder(config).state_dict():
        module, _, part = ours.rpartition(".")
        names[f"{theirs.get_name(module)}.{part}"] = ours
    return names


def t5_names(file: GgufFile) -> dict[str, str]:
    layers = {match[1] for name in file.tensors if (match := re.match(r"enc\.blk\.(\d+)\.", name))}
    names = dict(T5_NAMES)
    for index in range(len(layers)):
        names |= {f"enc.blk.{index}.{a}": f"blocks.{index}.{b}" for a, b in T5_BLOCK_NAMES.items()}
    return {f"{theirs}.weight": f"{ours}.weight" for theirs, ours in names.items()}


def in_our_order(
    tensor: Quantised, ours: str, architecture: str, config: T5Config | DecoderConfig
) -> Quantised:
    """Llama's queries and keys: llama.cpp rotates neighbours, transformers the two halves of a head."""
    projection = re.search(r"self_attn\.([qk])_proj\.weight", ours)
    if architecture != "llama" or projection is None:
        return tensor
    theirs = config.transformers
    heads = theirs.num_attention_heads if projection[1] == "q" else theirs.num_key_value_heads
    order = np.arange(tensor.shape[0]).reshape(heads, -1, 2).swapaxes(1, 2).ravel()
    return replace(tensor, order=order)


def vector_of(tensor: Quantised, ours: str, architecture: str) -> Tensor:
    """A norm or a bias, in fp32."""
    vector = tensor.expand()
    return vector - 1 if architecture.startswith("gemma") and ours.endswith("norm.weight") else vector
