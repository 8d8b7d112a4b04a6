"""Decoder-only LLMs: the hidden states of every family and layer equal transformers'."""

import copy
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from decoders import FAMILIES, PECULIAR, SIZES, make
from llm4gen.models.checkpoints.rotary import OLD_TRANSFORMERS, old_spelling, understand
from llm4gen.models.conversion.plans import plan_conversion
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


@pytest.mark.parametrize("family", FAMILIES | PECULIAR)
def test_hidden_states_of_every_layer_equal_transformers(family, tmp_path):
    states_of_layers = hidden_states(make(family, tmp_path))
    file = open_llm(tmp_path)
    assert (file.config.width, file.config.layers, file.config.vocabulary) == (32, 4, 64)
    for depth, expected in enumerate(states_of_layers):
        encoder = file.load(depth)
        for padding, rows in (("keep", all_rows(len(IDS), LENGTH)), ("drop", real_rows(len(IDS)))):
            assert torch.equal(file.config.rows(len(IDS), LENGTH, padding).positions, rows.positions)
            assert relative_error(encoder(IDS, rows), expected[: len(rows.positions)]) <= 1e-5


BATCH = [IDS, IDS[:2], IDS.flip(0)[:5], IDS[:1]]


@pytest.mark.parametrize("family", FAMILIES | PECULIAR)
@pytest.mark.parametrize("padding", ["keep", "drop"])
def test_prompts_in_a_batch_have_the_states_that_they_have_alone(family, padding, tmp_path):
    make(family, tmp_path)
    encoder = load_encoder(tmp_path)
    rows = [encoder.config.rows(len(ids), LENGTH, padding) for ids in BATCH]
    for found, ids, plan in zip(encoder.batch(BATCH, rows), BATCH, rows, strict=True):
        assert found.shape == (len(plan.positions), 32)
        assert relative_error(found, encoder(ids, plan)) <= 1e-5


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


VISION = {"num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 16, "patch_size": 8}
VISION |= {"hidden_size": 32, "intermediate_size": 48}
QWEN_VISION = {
    "depth": 1,
    "embed_dim": 32,
    "hidden_size": 32,
    "out_hidden_size": 32,
    "num_heads": 4,
    "patch_size": 4,
}
MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
# Models of several modalities as published: their class, and their config.
MODALITIES = {
    "Gemma3": {"text_config": SIZES | {"sliding_window": 3}, "vision_config": VISION},
    "Llava": {
        "text_config": SIZES | {"model_type": "llama"},
        "vision_config": VISION | {"model_type": "clip_vision_model"},
    },
    "Mistral3": {
        "text_config": SIZES | {"model_type": "mistral"},
        "vision_config": VISION | {"model_type": "pixtral", "head_dim": 8},
    },
    "Idefics3": {"text_config": SIZES | {"model_type": "llama"}, "vision_config": VISION},
    "Qwen2VL": {**SIZES, **MROPE, "vision_config": QWEN_VISION},
    "Qwen2Audio": {
        "text_config": SIZES | {"model_type": "qwen2"},
        "audio_config": {
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 32,
        },
    },
}


def text_model_in(model):
    """The text model inside a model of several modalities."""
    kind = type(transformers.AutoModel.from_config(model.config.get_text_config()))
    return next(module for module in model.modules() if type(module) is kind)


@pytest.mark.parametrize("names", ["language_model.model.", "model.language_model.", "model."])
@pytest.mark.parametrize("family", MODALITIES)
def test_the_text_model_of_a_model_of_several_modalities_equals_transformers(family, names, tmp_path):
    """names: what text models are called in the files of transformers 4, of 5, and of Qwen2-VL."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**copy.deepcopy(MODALITIES[family]))
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval().requires_grad_(False)
    oracle = text_model_in(model)
    tensors = {names + name: tensor.clone() for name, tensor in oracle.state_dict().items()}
    own = {tensor.data_ptr() for tensor in oracle.state_dict().values()}
    others = {name: tensor for name, tensor in model.state_dict().items() if tensor.data_ptr() not in own}
    assert len(others) > 5, "the other modalities' weights"
    key = next(name for name in oracle.state_dict() if "q_proj.weight" in name)
    others[f"vision_tower.vision_model.encoder.{key}"] = torch.zeros(
        32, 32
    )  # a name that both of them end with
    save_file(
        tensors | {name: tensor.clone() for name, tensor in others.items()}, tmp_path / "model.safetensors"
    )
    config.save_pretrained(tmp_path)
    expected = hidden_states(oracle)
    for depth in (2, 4):
        states = load_encoder(tmp_path, depth=depth)(IDS, all_rows(len(IDS), LENGTH))
        assert relative_error(states, expected[depth]) <= 1e-5


def test_a_model_of_several_modalities_is_converted_to_its_text_model(tmp_path):
    config = transformers.Gemma3Config(**copy.deepcopy(MODALITIES["Gemma3"]))
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    plan = plan_conversion(tmp_path, "fp32")
    assert any("vision_tower" in name for name in plan.left_out)
    assert {name for name in plan.outline() if "language_model.model." not in name} == set()
    assert plan.kind == "gemma3_text, 4 layers of width 32"


def test_a_text_models_missing_tensor_is_named_beside_other_modalities(tmp_path):
    config = transformers.Gemma3Config(**copy.deepcopy(MODALITIES["Gemma3"]))
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    missing = next(name for name in tensors if "layers.3.mlp.up_proj" in name)
    del tensors[missing]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(IncompleteCheckpoint, match=rf"lacks 1 tensor \({missing}\)"):
        open_llm(tmp_path)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (transformers.CLIPConfig(), "clip, which is not a model that reads text from left to right"),
        (transformers.ViTConfig(), "vit, which is not a model that reads text from left to right"),
        (transformers.WhisperConfig(), "whisper, which is not a model that reads text from left to right"),
        (
            transformers.MllamaConfig(),
            r"mllama, whose text model \(mllama_text_model\) the installed transformers",
        ),
        (transformers.Kosmos2Config(), r"kosmos-2, whose text model \(kosmos_2_text_model\) the installed"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_a_model_without_a_text_model_to_load_is_refused_by_name(config, found, tmp_path):
    config.save_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnknownCheckpoint, match=rf"holds a {found}.*Load a T5 encoder, or an LLM such as"):
        open_llm(tmp_path)


@pytest.mark.skipif(OLD_TRANSFORMERS, reason="older versions lack these families")
@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("Blt", "holds a blt, whose text model"),
        ("Mamba", "cannot build mamba with"),
        ("LongcatFlash", "no list of 56 layers"),
    ],
)
def test_a_family_that_is_not_built_layer_by_layer_is_refused_by_name(family, message, tmp_path):
    getattr(transformers, f"{family}Config")().save_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnknownCheckpoint, match=message):
        open_llm(tmp_path)


@pytest.mark.skipif(OLD_TRANSFORMERS, reason="older versions have a tensor for each expert, as the files do")
def test_experts_that_transformers_keeps_in_other_tensors_are_no_damage(tmp_path):
    make("Mixtral", tmp_path)
    with pytest.raises(UnknownCheckpoint, match=r"is a mixture of experts \(mixtral\).*Load a T5 encoder"):
        open_llm(tmp_path)


def count_parameters(module):
    return sum(weight.numel() for weight in module.parameters())


def test_linear_layers_of_a_familys_own_stay_in_fp32(tmp_path):
    expected = hidden_states(make("Falcon", tmp_path))[-1][: len(IDS)]
    states = load_encoder(tmp_path, dtype=torch.bfloat16)(
        IDS, real_rows(len(IDS)), compute_dtype=torch.bfloat16
    )
    assert relative_error(states, expected) <= 2e-2


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
    with pytest.raises(UnreadableFile, match="never run") as caught:
        open_llm(tmp_path)
    assert "trust_remote_code" not in str(caught.value) and "execute" not in str(caught.value)
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
