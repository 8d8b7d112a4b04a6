"""LLMs in `.gguf` files: the states of the numbers in them, with the matrices left quantised."""

import pytest
import torch
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

import tiny
from gguf_files import FAMILIES, Kind, expanded, make, t5, write_decoder, write_t5
from llm4gen.models.encoders.rows import distinct_rows, real_rows
from llm4gen.models.llm import open_llm

IDS = torch.tensor([5, 9, 33, 7, 41, 60, 12])
LENGTH = 24
# How far the states may be from those of the weights before they were quantised. Random numbers are themselves
# 0.5% (Q8_0) to 9% (Q4_0) off then.
BOUNDS = {
    "F32": 1e-5, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 1e-2, "Q6_K": 5e-2, "Q5_1": 0.1, "Q5_0": 0.1, "Q5_K": 0.1,
    "Q4_1": 0.2, "Q4_0": 0.2, "Q4_K": 0.2,
}  # fmt: skip


def states(path, depth=None, **settings):
    """Of every position; real ones alone for other models than T5."""
    source = open_llm(path)
    rows = distinct_rows(len(IDS), LENGTH) if source.is_t5 else real_rows(len(IDS))
    return rows.expand(source.load(source.config.layers if depth is None else depth)(IDS, rows, **settings))


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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_every_familys_every_layer_is_transformers_own(family, kind, tmp_path):
    if family.lower().removesuffix("text") not in GGUF_SUPPORTED_ARCHITECTURES:
        pytest.skip(f"NO {family} in .gguf files with this transformers")
    write_decoder(tmp_path / "llm.gguf", make(family), kind)
    for depth, truth in enumerate(truths(expanded(make(family), kind), len(IDS))):
        assert tiny.relative_error(states(tmp_path / "llm.gguf", depth), truth) <= 1e-5


def test_llamas_later_rotation_is_read_from_the_file(tmp_path):
    stretch = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    stretch |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    llama = make("Llama", rope_theta=1e4, rope_scaling=stretch)
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
    assert 0 < tiny.relative_error(states(tmp_path / "llm.gguf", compute_dtype=products), exact) <= most


@pytest.mark.parametrize("write", [write_t5, write_decoder])
def test_layers_beyond_the_wanted_one_are_not_there(write, tmp_path):
    write(tmp_path / "llm.gguf", t5(num_layers=3) if write is write_t5 else make("Llama"), Kind.Q8_0)
    reader, turns = open_llm(tmp_path / "llm.gguf").load(2), []
    holding = [name for name, layer in reader.named_modules() if getattr(layer, "matrix", None)]
    assert {part for name in holding for part in name.split(".") if part.isdigit()} == {"0", "1"}
    reader(IDS, real_rows(len(IDS)), on_layer=lambda: turns.append(1))
    assert len(turns) == 2


def test_matrices_are_no_parameters_and_all_else_is_fp32(tmp_path):
    for name, write, model in (("t5", write_t5, t5()), ("llm", write_decoder, make("Qwen2"))):
        write(tmp_path / f"{name}.gguf", model, Kind.Q4_0)
        reader = open_llm(tmp_path / f"{name}.gguf").load(1)
        assert all(weight.dtype == torch.float32 and weight.ndim < 2 for weight in reader.parameters())
        assert reader.dtype == torch.float32
