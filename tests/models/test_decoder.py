"""LLMs that transformers knows: the states of every family and layer are transformers' own."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from llm4gen.models.encoders.rows import all_rows, real_rows
from llm4gen.models.errors import IncompleteCheckpoint, UnknownCheckpoint, UnreadableFile
from llm4gen.models.llm import open_llm
from tiny import load_encoder, relative_error

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": 3},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma": {},
    "Gemma2": {"sliding_window": 3},
    "Gemma3Text": {"sliding_window": 3},
    "Phi": {},
    "Phi3": {},
}
IDS = torch.tensor([5, 9, 33, 7, 41, 60, 12])
LENGTH = 12


def make(family, folder, **changes):
    """A tiny random model of a family in a folder; transformers' own of it."""
    if not hasattr(transformers, f"{family}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {family} yet")
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SIZES | FAMILIES[family] | changes))
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():  # norms of one would hide that they are there
        if weight.ndim == 1 and "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    return model.model


def hidden_states(oracle, ids=IDS, length=LENGTH):
    """[length, width] of each layer, right padding masked."""
    padded = torch.nn.functional.pad(ids, (0, length - len(ids)))[None]
    mask = (torch.arange(length) < len(ids)).long()[None]
    out = oracle(input_ids=padded, attention_mask=mask, output_hidden_states=True, use_cache=False)
    return [states[0] for states in out.hidden_states]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_every_layer_is_transformers_own(family, tmp_path):
    truth = hidden_states(make(family, tmp_path))
    source = open_llm(tmp_path)
    assert (source.config.width, source.config.layers, source.config.vocabulary) == (32, 4, 64)
    for depth, expected in enumerate(truth):
        reader = source.load(depth)
        for padding, rows in (("keep", all_rows(len(IDS), LENGTH)), ("drop", real_rows(len(IDS)))):
            assert torch.equal(source.config.rows(len(IDS), LENGTH, padding).positions, rows.positions)
            assert relative_error(reader(IDS, rows), expected[: len(rows.positions)]) <= 1e-5


def test_layers_beyond_the_wanted_one_are_not_there(tmp_path):
    make("Llama", tmp_path)
    whole, part = (sum(w.numel() for w in load_encoder(tmp_path, depth=d).parameters()) for d in (4, 1))
    layer = sum(w.numel() for w in load_encoder(tmp_path).model.layers[0].parameters())
    final_norm = SIZES["hidden_size"]
    assert whole - part == 3 * layer + final_norm
    turns = []
    load_encoder(tmp_path, depth=2)(IDS, real_rows(len(IDS)), on_layer=lambda: turns.append(1))
    assert len(turns) == 2


@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_products_of_16_bits_stay_close_and_the_stream_is_fp32(dtype, most, tmp_path):
    truth = hidden_states(make("Llama", tmp_path))[-1][: len(IDS)]
    reader = load_encoder(tmp_path, dtype=dtype)
    assert reader.dtype == dtype and reader.model.norm.weight.dtype == torch.float32
    states = reader(IDS, real_rows(len(IDS)), compute_dtype=dtype)
    assert states.dtype == torch.float32
    assert 0 < relative_error(states, truth) <= most


def test_the_models_name_in_front_of_its_tensors_may_be_missing(tmp_path):
    truth = hidden_states(make("Qwen2", tmp_path))[-1]
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {k.removeprefix("model."): v for k, v in tensors.items() if k != "lm_head.weight"}
    save_file(bare, tmp_path / "model.safetensors")
    assert relative_error(load_encoder(tmp_path)(IDS, all_rows(len(IDS), LENGTH)), truth) <= 1e-5


def test_what_is_missing_or_surplus_is_named_before_anything_is_loaded(tmp_path):
    make("Llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = tensors.pop("model.layers.3.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(IncompleteCheckpoint, match=r"lacks 1 tensor \(model.layers.3.mlp.up_proj.weight\)"):
        open_llm(tmp_path)
    save_file(
        tensors | {"model.layers.3.mlp.up_proj.weight": lost, "odd": lost.clone()},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(IncompleteCheckpoint, match="unknown 1 tensor"):
        open_llm(tmp_path)


def test_code_in_a_folder_is_never_run(tmp_path):
    make("Llama", tmp_path)
    ran = tmp_path / "ran"
    (tmp_path / "odd.py").write_text(f"open({str(ran)!r}, 'w')", encoding="utf-8")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd", "AutoModel": "odd.Odd"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UnreadableFile, match="never run"):
        open_llm(tmp_path)
    assert not ran.exists()


def test_other_kinds_of_model_are_refused(tmp_path):
    config = transformers.BartConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    transformers.BartModel(config).save_pretrained(tmp_path)
    with pytest.raises(UnknownCheckpoint, match="bart"):
        open_llm(tmp_path)


def test_a_file_that_changes_after_it_was_chosen_is_not_mixed_up_with_it(tmp_path):
    make("Llama", tmp_path)
    source = open_llm(tmp_path)
    make("Llama", tmp_path, tie_word_embeddings=True)
    assert open_llm(tmp_path).identity != source.identity
    with pytest.raises(UnreadableFile, match="has changed"):
        source.load(4)
