"""Every spelling of a decoder-only LLM (a transformers folder, a `.gguf` file) → a `Decoder`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    PretrainedConfig,
)

from ..encoders.decoder import Decoder, DecoderConfig
from ..errors import UnknownCheckpoint, UnreadableFile, words_of
from ..files.gguf import GgufFile, Quantised, gguf_library
from ..files.weights import Weights
from .fill import Recognised, check_names, find_prefix
from .refusal import list_tensors, read_json, refusal
from .rotary import OLD_TRANSFORMERS, understand

T5_TYPES = ("t5", "mt5", "umt5")
UNUSED = re.compile(r"(.*\.)?(lm_head|embed_out)\..*")  # the language model's head, which is not run
LLMS = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
LOADABLE = "Load a T5 encoder, or an LLM such as Llama, Mistral, Qwen, Gemma, Phi or SmolLM."

GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
ROPE_FACTORS = "rope_freqs.weight"  # the divisors of the rotary frequencies, in Llama 3.1 and later
GGUF_UNUSED = re.compile(rf"output\.weight|{re.escape(ROPE_FACTORS)}")


def is_transformers_folder(path: Path) -> bool:
    """Whether a folder's config.json names a model other than T5, whose encoder this pack has itself.

    Raises: UnreadableFile for a config.json that is damaged.
    """
    if not (path / "config.json").is_file():
        return False
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise UnreadableFile(
            f"{path.name}/config.json is damaged: it holds no JSON object. Download it again."
        )
    return config.get("model_type") not in (None, *T5_TYPES)


def model_type(folder: Path) -> str | None:
    """The `model_type` in a folder's config.json; None if that cannot be read."""
    return read_json(folder / "config.json").get("model_type")


def recognise_decoder(weights: Weights) -> Recognised[DecoderConfig]:
    """Raises: UnreadableFile, UnknownCheckpoint, IncompleteCheckpoint."""
    config, is_part = read_config(weights.path)
    build = partial(Decoder, config)
    blueprint = build()
    ours = {name.removeprefix("model."): name for name in blueprint.state_dict()}
    key = next(name for name in ours if ".0." in name)
    prefix = find_prefix(weights, key, ours)
    if prefix is None:
        raise refusal(
            weights,
            f"has a config.json that says {config.family}, but no {key} among its "
            f"{list_tensors(list(weights.tensors))}",
            "Put the config.json of these very weights beside them.",
            UnknownCheckpoint,
        )
    unused = UNUSED
    if is_part:  # what is outside the text model's modules reads pictures and sounds
        modules = "|".join(sorted({re.escape(name.partition(".")[0]) for name in ours}))
        unused = re.compile(rf"(?!{re.escape(prefix)}({modules})\.).*")
    names = {prefix + theirs: name for theirs, name in ours.items()}
    check_experts(blueprint, weights, names)
    check_names(blueprint, weights, names, unused)
    return Recognised(config, names, build)


def check_experts(blueprint: Decoder, weights: Weights, names: Mapping[str, str]) -> None:
    """Refuses a mixture of experts whose file has a tensor for each expert where transformers has one for all.

    names: the file's → the model's. Raises: UnknownCheckpoint.
    """
    shapes = blueprint.state_dict()
    absent = [
        theirs for theirs, ours in names.items() if shapes[ours].ndim == 3 and theirs not in weights.tensors
    ]
    if absent:
        raise refusal(
            weights,
            f"is a mixture of experts ({blueprint.config.family}), each of which has tensors of its own in the file, "
            f"but the installed transformers {transformers.__version__} has one for all of them ({absent[0]})",
            f"Such files cannot be loaded. {LOADABLE}",
            UnknownCheckpoint,
        )


def read_config(folder: Path) -> tuple[DecoderConfig, bool]:
    """The text model's config, and whether it is a part of a model that reads more than text.

    Raises: UnreadableFile, UnknownCheckpoint.
    """
    try:
        whole = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        config = whole.get_text_config()
    except Exception as error:  # a damaged or unknown config can make the library raise any of them
        raise UnreadableFile(
            f"{folder.name}/config.json ({model_type(folder)}) cannot be read by the installed transformers "
            f"({words_of(error)}). Models that bring code of their own are never run; for a newer family, update "
            "transformers."
        ) from error
    # An entry that an older version does not know stays a dictionary.
    if not isinstance(config, PretrainedConfig):
        raise UnknownCheckpoint(
            f"{folder.name}/config.json describes the text model of a {whole.model_type} in a way that the installed "
            f"transformers {transformers.__version__} does not know. Update transformers."
        )
    parameters = getattr(config, "rope_parameters", None)
    if OLD_TRANSFORMERS and parameters:
        understand(config, parameters, folder.name)
    is_llm = any(type(part) in mapping for part in (whole, config) for mapping in LLMS)
    if whole.is_encoder_decoder or config.is_encoder_decoder or not is_llm:
        raise UnknownCheckpoint(
            f"{folder.name} holds a {whole.model_type}, which is not a model that reads text from left to right. "
            f"{LOADABLE}"
        )
    has_sizes = all(hasattr(config, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers"))
    if type(config) not in MODEL_MAPPING or not has_sizes:
        raise UnknownCheckpoint(
            f"{folder.name} holds a {whole.model_type}, whose text model ({config.model_type}) the installed "
            f"transformers {transformers.__version__} cannot build without the rest. {LOADABLE}"
        )
    return DecoderConfig(config), bool(whole.sub_configs)


def recognise_gguf_decoder(file: GgufFile) -> Recognised[DecoderConfig]:
    """Raises: UnreadableFile, UnknownCheckpoint, IncompleteCheckpoint."""
    config = read_header(file)
    check_positions(file, config)
    build = partial(Decoder, config)
    blueprint = build()
    gguf = gguf_library()
    (number,) = (number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == file.architecture)
    names_in_file = gguf.get_tensor_name_map(number, config.layers)
    names = {}
    for ours in blueprint.state_dict():
        module, _, part = ours.rpartition(".")
        names[f"{names_in_file.get_name(module)}.{part}"] = ours
    check_names(blueprint, file.shapes(), names, GGUF_UNUSED)
    return Recognised(config, names, build)


def read_header(file: GgufFile) -> DecoderConfig:
    """transformers' config, from the header of a `.gguf` file. Raises: UnreadableFile."""
    folder, name = str(file.path.parent), file.path.name
    try:
        config = AutoConfig.from_pretrained(
            folder, gguf_file=name, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a damaged or unknown header can make the library raise any of them
        raise UnreadableFile(
            f"{name} ({file.architecture}) cannot be read by the installed transformers "
            f"({words_of(error)}). Update transformers, or use a folder of safetensors with its config.json."
        ) from error
    config = config.get_text_config()
    window = file.header.get(f"{file.architecture}.attention.sliding_window")
    if window and file.architecture.startswith("gemma"):  # older versions of transformers leave it out
        config.sliding_window = window
    return DecoderConfig(config)


def check_positions(file: GgufFile, config: DecoderConfig) -> None:
    """Refuses what transformers does not read from the header of a `.gguf` file. Raises: UnknownCheckpoint."""
    theirs, arch = config.hf_config, file.architecture
    head = file.header.get(f"{arch}.attention.key_length", theirs.hidden_size // theirs.num_attention_heads)
    scaling = file.header.get(f"{arch}.rope.scaling.type", "none")
    unsupported = {
        f"positions scaled by {scaling}": scaling != "none" or "rope_factors_long.weight" in file.tensors,
        "heads that are rotated in part": file.header.get(f"{arch}.rope.dimension_count", head) != head,
        "attention that is not scaled by its head width": getattr(theirs, "query_pre_attn_scalar", head)
        != head,
    }
    if any(unsupported.values()):
        raise UnknownCheckpoint(
            f"{file.path.name} ({arch}) has {' and '.join(what for what, found in unsupported.items() if found)}, "
            "which cannot be read from a .gguf file. Use a folder of safetensors with its config.json."
        )


def from_gguf(tensor: Quantised, name: str, architecture: str, config: DecoderConfig) -> Quantised:
    """A tensor of a `.gguf` file as transformers has it. name: the parameter's.

    llama.cpp rotates neighbouring columns of Llama's queries and keys, transformers the two halves of a head, so the
    rows are in another order. To the weights of Gemma's norms llama.cpp adds the 1 that transformers adds when it
    runs them.
    """
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return replace(tensor, offset=-1.0)
    projection = re.search(r"self_attn\.([qk])_proj\.weight", name)
    if architecture != "llama" or projection is None:
        return tensor
    theirs = config.hf_config
    heads = theirs.num_attention_heads if projection[1] == "q" else theirs.num_key_value_heads
    order = torch.arange(tensor.shape[0]).view(heads, -1, 2).transpose(1, 2).flatten()
    return replace(tensor, row_order=order)
