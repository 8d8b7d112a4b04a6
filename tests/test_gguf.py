"""LLMs in `.gguf` files: the states of the numbers in them, with the matrices left quantised."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from gguf_files import Kind, expanded, write_decoder, write_t5

from llm4gen.models.errors import IncompleteCheckpoint, MissingPackage, UnknownCheckpoint, UnreadableFile
from llm4gen.models.rows import all_rows, distinct_rows, real_rows
from llm4gen.models.source import open_source
from paths import ROOT

IDS = torch.tensor([5, 9, 33, 7, 41, 60, 12])
LENGTH = 24
# How far the states may be from those of the weights before they were quantised. Random numbers are themselves
# 0.5% (Q8_0) to 9% (Q4_0) off then.
BOUNDS = {
    "F32": 1e-5, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 1e-2, "Q6_K": 5e-2, "Q5_1": 0.1, "Q5_0": 0.1, "Q5_K": 0.1,
    "Q4_1": 0.2, "Q4_0": 0.2, "Q4_K": 0.2,
}  # fmt: skip


def t5(**changes):
    return tiny.t5_encoder(**({"d_model": 256, "d_ff": 512, "d_kv": 64, "vocab_size": 64, "num_layers": 1} | changes))


def states(path, depth=None, **settings):
    """Of every position; real ones alone for other models than T5."""
    source = open_source(path)
    rows = distinct_rows(len(IDS), LENGTH) if source.is_t5 else real_rows(len(IDS))
    return rows.spread(source.load(source.config.layers if depth is None else depth)(IDS, rows, **settings))


def truths(oracle, length=LENGTH):
    """transformers' states of every layer."""
    padded = torch.nn.functional.pad(IDS, (0, length - len(IDS)))[None]
    mask = (torch.arange(length) < len(IDS)).long()[None]
    out = oracle(input_ids=padded, attention_mask=mask, output_hidden_states=True)
    return [layer[0] for layer in out.hidden_states]


@pytest.mark.parametrize("kind", BOUNDS)
def test_every_encodings_states_are_those_of_the_numbers_in_it(kind, tmp_path):
    write_t5(tmp_path / "t5.gguf", t5(), Kind[kind])
    found, exact = states(tmp_path / "t5.gguf"), truths(t5())[-1]
    assert tiny.relative_error(found, truths(expanded(t5(), Kind[kind]))[-1]) <= 1e-5
    assert tiny.relative_error(found, exact) <= BOUNDS[kind]


FAMILIES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 128},
    "Gemma2": {"head_dim": 256, "sliding_window": 3},
    "Gemma3Text": {"head_dim": 256, "sliding_window": 3, "num_hidden_layers": 7},
    "Phi3": {"vocab_size": 32064},
}


def make(family, **changes):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "pad_token_id": 0,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**(sizes | FAMILIES[family] | changes))
    model = transformers.AutoModel.from_config(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():  # norms of one and biases of zero would hide what is done to them
        if weight.ndim == 1:
            torch.nn.init.uniform_(weight, *((0.5, 1.5) if "norm" in name else (-0.1, 0.1)))
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_every_familys_every_layer_is_transformers_own(family, kind, tmp_path):
    theta = 1e6 if "Gemma3" in family else 1e4
    write_decoder(tmp_path / "llm.gguf", make(family), kind, theta)
    for depth, truth in enumerate(truths(expanded(make(family), kind), len(IDS))):
        assert tiny.relative_error(states(tmp_path / "llm.gguf", depth), truth) <= 1e-5


def test_llamas_later_rotation_is_read_from_the_file(tmp_path):
    stretch = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
    stretch |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    llama = make("Llama", rope_parameters=stretch)
    plain = 1e4 ** -(torch.arange(0, 16, 2) / 16)
    write_decoder(
        tmp_path / "llm.gguf", llama, extra={"rope_freqs.weight": plain / llama.rotary_emb.inv_freq}
    )
    truth = truths(llama, len(IDS))[-1]
    assert tiny.relative_error(states(tmp_path / "llm.gguf"), truth) <= 1e-5
    write_decoder(tmp_path / "plain.gguf", llama)
    assert tiny.relative_error(states(tmp_path / "plain.gguf"), truth) > 1e-4


@pytest.mark.parametrize(("products", "most"), [(torch.bfloat16, 2e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("write", [write_t5, write_decoder])
def test_products_of_16_bits_stay_close(write, products, most, tmp_path):
    write(tmp_path / "llm.gguf", t5() if write is write_t5 else make("Qwen2"), Kind.Q8_0)
    exact = states(tmp_path / "llm.gguf")
    assert 0 < tiny.relative_error(states(tmp_path / "llm.gguf", products=products), exact) <= most


def test_layers_beyond_the_wanted_one_are_not_there(tmp_path):
    write_t5(tmp_path / "t5.gguf", t5(num_layers=3), Kind.Q8_0)
    write_decoder(tmp_path / "llm.gguf", make("Llama"), Kind.Q8_0)
    for name, layers in (("t5.gguf", 2), ("llm.gguf", 2)):
        reader, turns = open_source(tmp_path / name).load(2), []
        held = {key.split("blocks.")[-1].split("layers.")[-1][0] for key, layer in reader.named_modules()
                if getattr(layer, "matrix", None) is not None and ".norm" not in key and key[-1].isalpha()
                and any(part.isdigit() for part in key.split("."))}
        assert held == {"0", "1"}
        reader(IDS, real_rows(len(IDS)), on_layer=lambda: turns.append(1))
        assert len(turns) == layers
