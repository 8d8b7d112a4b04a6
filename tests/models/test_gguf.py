"""LLMs in `.gguf` files give the hidden states of their dequantised weights, while the matrices stay quantised."""

import pytest
import torch
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

import tiny
from gguf_files import FAMILIES, Kind, expanded, make, t5, write_decoder, write_t5
from llm4gen.models.encoders.rows import distinct_rows, real_rows
from llm4gen.models.llm import open_llm

IDS = torch.tensor([5, 9, 33, 7, 41, 60, 12])
LENGTH = 24
# The largest relative error of the states, compared with those of the weights before they were quantised. Quantising
# alone changes random weights by 0.5% (Q8_0) to 9% (Q4_0).
BOUNDS = {
    "F32": 1e-5, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 1e-2, "Q6_K": 5e-2, "Q5_1": 0.1, "Q5_0": 0.1, "Q5_K": 0.1,
    "Q4_1": 0.2, "Q4_0": 0.2, "Q4_K": 0.2, "TQ2_0": 1.5,
}  # fmt: skip


def states_of(path, depth=None, **options):
    """Our hidden states from a file: for a T5 at every padded position, for others at the tokens alone."""
    file = open_llm(path)
    rows = distinct_rows(len(IDS), LENGTH) if file.is_t5 else real_rows(len(IDS))
    encoder = file.load(file.config.layers if depth is None else depth)
    return rows.expand(encoder(IDS, rows, **options))


def transformers_states(oracle, length=LENGTH):
    """transformers' hidden states [length, width] of every layer."""
    padded = torch.nn.functional.pad(IDS, (0, length - len(IDS)))[None]
    mask = (torch.arange(length) < len(IDS)).long()[None]
    out = oracle(input_ids=padded, attention_mask=mask, output_hidden_states=True)
    return [layer[0] for layer in out.hidden_states]


@pytest.mark.parametrize("kind", BOUNDS)
def test_states_of_every_encoding_equal_those_of_the_dequantised_weights(kind, tmp_path):
    write_t5(tmp_path / "t5.gguf", t5(), Kind[kind])
    states = states_of(tmp_path / "t5.gguf")
    assert tiny.relative_error(states, transformers_states(expanded(t5(), Kind[kind]))[-1]) <= 1e-5
    assert tiny.relative_error(states, transformers_states(t5())[-1]) <= BOUNDS[kind]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_hidden_states_of_every_layer_equal_transformers(family, kind, tmp_path):
    if family.lower().removesuffix("text") not in GGUF_SUPPORTED_ARCHITECTURES:
        pytest.skip(f"NO {family.upper()}: the installed transformers does not read it from .gguf files.")
    write_decoder(tmp_path / "llm.gguf", make(family), kind)
    for depth, expected in enumerate(transformers_states(expanded(make(family), kind), len(IDS))):
        assert tiny.relative_error(states_of(tmp_path / "llm.gguf", depth), expected) <= 1e-5


def test_llama_3s_rotary_frequencies_are_read_from_the_file(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    llama = make("Llama", rope_theta=1e4, rope_scaling=scaling)
    unscaled = 1e4 ** -(torch.arange(0, 16, 2) / 16)
    write_decoder(
        tmp_path / "llm.gguf", llama, extra={"rope_freqs.weight": unscaled / llama.rotary_emb.inv_freq}
    )
    expected = transformers_states(llama, len(IDS))[-1]
    assert tiny.relative_error(states_of(tmp_path / "llm.gguf"), expected) <= 1e-5
    write_decoder(tmp_path / "without-factors.gguf", llama)
    assert tiny.relative_error(states_of(tmp_path / "without-factors.gguf"), expected) > 1e-4


@pytest.mark.parametrize(("compute_dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("write", [write_t5, write_decoder])
def test_states_with_a_16_bit_compute_dtype_stay_close(write, compute_dtype, bound, tmp_path):
    write(tmp_path / "llm.gguf", t5() if write is write_t5 else make("Qwen2"), Kind.Q8_0)
    states = states_of(tmp_path / "llm.gguf", compute_dtype=compute_dtype)
    assert 0 < tiny.relative_error(states, states_of(tmp_path / "llm.gguf")) <= bound


@pytest.mark.parametrize("write", [write_t5, write_decoder])
def test_layers_above_the_wanted_one_are_not_built(write, tmp_path):
    write(tmp_path / "llm.gguf", t5(num_layers=3) if write is write_t5 else make("Llama"), Kind.Q8_0)
    encoder, reports = open_llm(tmp_path / "llm.gguf").load(2), []
    quantised = [name for name, layer in encoder.named_modules() if getattr(layer, "dequantise", None)]
    assert {part for name in quantised for part in name.split(".") if part.isdigit()} == {"0", "1"}
    encoder(IDS, real_rows(len(IDS)), on_layer=lambda: reports.append(1))
    assert len(reports) == 2


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "TQ2_0", "F16"])
def test_matrices_are_parameters_of_the_files_bytes_and_vectors_are_fp32(kind, tmp_path):
    """So that a host that counts, moves and streams parameters sees all of the model."""
    for name, write, model in (
        ("t5", write_t5, t5()),
        ("llm", write_decoder, make("Qwen2", hidden_size=256)),
    ):
        write(tmp_path / f"{name}.gguf", model, Kind[kind])
        file = open_llm(tmp_path / f"{name}.gguf")
        encoder = file.load()
        parameters = dict(encoder.named_parameters())
        assert parameters.keys() == file.found.build().state_dict().keys()
        for parameter, weight in parameters.items():
            in_file = file.gguf.tensors[parameter]
            if len(in_file.shape) == 1:
                assert weight.dtype == torch.float32
            else:
                assert weight.nbytes == in_file.data.nbytes and weight.data_ptr() == in_file.data.data_ptr()
