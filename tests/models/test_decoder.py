"""Decoder-only LLMs: the hidden states of every family and layer equal transformers'."""

import copy
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from decoders import FAMILIES, SIZES, make
from llm4gen.models.checkpoints.rotary import old_spelling, understand
from llm4gen.models.encoders.rows import all_rows, real_rows
from llm4gen.models.errors import IncompleteCheckpoint, UnknownCheckpoint, UnreadableFile
from llm4gen.models.llm import open_llm
from tiny import load_encoder, relative_error

IDS = torch.tensor([5, 9, 33, 7, 41, 60, 12])
LENGTH = 12


def hidden_states(oracle, ids=IDS, length=LENGTH):
    """transformers' hidden states [length, width] of each layer. The prompt is padded at its end, with a mask."""
    padded = torch.nn.functional.pad(ids, (0, length - len(ids)))[None]
    mask = (torch.arange(length) < len(ids)).long()[None]
    out = oracle(input_ids=padded, attention_mask=mask, output_hidden_states=True, use_cache=False)
    return [states[0] for states in out.hidden_states]


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_of_every_layer_equal_transformers(family, tmp_path):
    states_of_layers = hidden_states(make(family, tmp_path))
    file = open_llm(tmp_path)
    assert (file.config.width, file.config.layers, file.config.vocabulary) == (32, 4, 64)
    for depth, expected in enumerate(states_of_layers):
        encoder = file.load(depth)
        for padding, rows in (("keep", all_rows(len(IDS), LENGTH)), ("drop", real_rows(len(IDS)))):
            assert torch.equal(file.config.rows(len(IDS), LENGTH, padding).positions, rows.positions)
            assert relative_error(encoder(IDS, rows), expected[: len(rows.positions)]) <= 1e-5


LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# Family, its rotary positions as configs of older transformers say them, and as transformers 5 writes them.
POSITIONS = {
    "another base": ("Qwen2", {"rope_theta": 500.0}, {"rope_type": "default", "rope_theta": 500.0}),
    "scaled": (
        "Llama",
        {"rope_theta": 500.0, "rope_scaling": LLAMA_3},
        {"rope_theta": 500.0, **LLAMA_3},
    ),
    "two bases": (
        "Gemma3Text",
        {"rope_theta": 700.0, "rope_local_base_freq": 50.0},
        {
            "full_attention": {"rope_type": "default", "rope_theta": 700.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
    "a part of each head": (
        "Phi",
        {"rope_theta": 500.0, "partial_rotary_factor": 0.5},
        {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    ),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_every_transformers_reads_the_rotary_positions_that_transformers_5_wrote(name, tmp_path):
    family, old, new = copy.deepcopy(
        POSITIONS[name]
    )  # transformers changes the dictionaries that it is given
    changes = {"num_hidden_layers": 7} if family == "Gemma3Text" else {}
    given = copy.deepcopy(old)
    expected = hidden_states(make(family, tmp_path, max_position_embeddings=64, **given, **changes))[-1]
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in old} | {"rope_parameters": new}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    states = load_encoder(tmp_path)(IDS, all_rows(len(IDS), LENGTH))
    assert relative_error(states, expected) <= 1e-5
    assert old_spelling(new) == old
    without = {key: value for key, value in config.items() if key != "rope_parameters"}
    (tmp_path / "config.json").write_text(json.dumps(without), encoding="utf-8")
    states = load_encoder(tmp_path)(IDS, all_rows(len(IDS), LENGTH))
    assert relative_error(states, expected) > 1e-4, "these positions make no difference"


@pytest.mark.parametrize(
    "parameters",
    [
        {
            "full_attention": {"rope_theta": 1.0},
            "sliding_attention": {"rope_theta": 1.0, "rope_type": "yarn"},
        },
        {"full_attention": {"rope_theta": 1.0}, "chunked_attention": {"rope_theta": 1.0}},
    ],
)
def test_positions_that_an_older_transformers_cannot_compute_are_refused(parameters):
    with pytest.raises(UnknownCheckpoint, match=r"folder/config.json was written by transformers 5.*Update"):
        understand(transformers.LlamaConfig(), parameters, "folder")


def count_parameters(module):
    return sum(weight.numel() for weight in module.parameters())


def test_layers_above_the_wanted_one_are_not_built(tmp_path):
    make("Llama", tmp_path)
    whole, cut = load_encoder(tmp_path, depth=4), load_encoder(tmp_path, depth=1)
    layer, final_norm = count_parameters(whole.model.layers[0]), SIZES["hidden_size"]
    assert count_parameters(whole) - count_parameters(cut) == 3 * layer + final_norm
    reports = []
    load_encoder(tmp_path, depth=2)(IDS, real_rows(len(IDS)), on_layer=lambda: reports.append(1))
    assert len(reports) == 2


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_a_16_bit_compute_dtype_stays_close_and_gives_fp32_states(dtype, bound, tmp_path):
    expected = hidden_states(make("Llama", tmp_path))[-1][: len(IDS)]
    encoder = load_encoder(tmp_path, dtype=dtype)
    assert encoder.dtype == dtype and encoder.model.norm.weight.dtype == torch.float32
    states = encoder(IDS, real_rows(len(IDS)), compute_dtype=dtype)
    assert states.dtype == torch.float32
    assert 0 < relative_error(states, expected) <= bound


def test_tensor_names_may_lack_the_prefix_of_the_model(tmp_path):
    expected = hidden_states(make("Qwen2", tmp_path))[-1]
    tensors = load_file(tmp_path / "model.safetensors")
    unprefixed = {
        name.removeprefix("model."): tensor for name, tensor in tensors.items() if name != "lm_head.weight"
    }
    save_file(unprefixed, tmp_path / "model.safetensors")
    assert relative_error(load_encoder(tmp_path)(IDS, all_rows(len(IDS), LENGTH)), expected) <= 1e-5


def test_missing_and_surplus_tensors_are_named_before_anything_is_loaded(tmp_path):
    make("Llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    removed = tensors.pop("model.layers.3.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(IncompleteCheckpoint, match=r"lacks 1 tensor \(model.layers.3.mlp.up_proj.weight\)"):
        open_llm(tmp_path)
    save_file(
        tensors | {"model.layers.3.mlp.up_proj.weight": removed, "unknown": removed.clone()},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(IncompleteCheckpoint, match="unknown 1 tensor"):
        open_llm(tmp_path)


def test_code_in_a_models_folder_is_never_run(tmp_path):
    make("Llama", tmp_path)
    made_by_code = tmp_path / "made_by_code"
    (tmp_path / "custom.py").write_text(f"open({str(made_by_code)!r}, 'w')", encoding="utf-8")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config |= {
        "model_type": "custom",
        "auto_map": {"AutoConfig": "custom.Custom", "AutoModel": "custom.Custom"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UnreadableFile, match="never run"):
        open_llm(tmp_path)
    assert not made_by_code.exists()


def test_an_encoder_decoder_model_is_refused_by_name(tmp_path):
    config = transformers.BartConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    transformers.BartModel(config).save_pretrained(tmp_path)
    with pytest.raises(UnknownCheckpoint, match="bart"):
        open_llm(tmp_path)


def test_a_file_that_changed_after_it_was_opened_is_not_loaded(tmp_path):
    make("Llama", tmp_path)
    file = open_llm(tmp_path)
    make("Llama", tmp_path, tie_word_embeddings=True)
    assert open_llm(tmp_path).identity != file.identity
    with pytest.raises(UnreadableFile, match="has changed"):
        file.load(4)
