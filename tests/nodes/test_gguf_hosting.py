"""LLMs in `.gguf` files in ComfyUI: only our loader lists them, and they run under ComfyUI's memory management."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

import in_process
import tiny
from gguf_files import Kind, expanded, write_t5
from in_process import SHORT
from llm4gen.models.errors import MissingTokenizer
from paths import T5_TOKENIZER
from tiny import relative_error

SIZES = {"d_model": 64, "d_kv": 16, "d_ff": 128}


@pytest.fixture(scope="module")
def models(started, tmp_path_factory):
    """A tiny quantised T5, its dequantised weights as safetensors, and an adapter for it."""
    models = tmp_path_factory.mktemp("gguf")
    own = models / "text_encoders" / "own"
    own.mkdir(parents=True)
    write_t5(models / "text_encoders" / "t5-Q8_0.gguf", tiny.t5_encoder(**SIZES), Kind.Q8_0)
    dequantised = tiny.rankgen_tensors(expanded(tiny.t5_encoder(**SIZES), Kind.Q8_0))
    save_file(dequantised, models / "text_encoders" / "t5-dequantised.safetensors")
    (models / "llm4gen").mkdir()
    save_file(tiny.adapter_tensors(clip=768, llm=64), models / "llm4gen" / "gguf-adapter.safetensors")
    in_process.use_models(started.folders, models)
    return models


@pytest.fixture
def load(started, models):
    node = started.ours["LLM4GEN_LoadLLMEncoder"]
    return lambda name="t5-Q8_0.gguf", dtype="fp32": in_process.run(node, encoder_name=name, dtype=dtype)


@pytest.fixture
def gguf_adapter(started, models):
    node = started.ours["LLM4GEN_LoadCrossAdapter"]
    return in_process.run(node, adapter_name="gguf-adapter.safetensors")


@torch.inference_mode()
def states(llm, adapter):
    return llm.encode(llm.llm.tokenize(SHORT, adapter.recipe).ids, adapter.recipe).states


def options(node, name):
    return next(entry for entry in node.define_schema().inputs if entry.id == name).options


def test_a_gguf_file_is_listed_by_our_encoder_loader_only(started, models):
    shutil.copy(models / "text_encoders" / "t5-Q8_0.gguf", models / "llm4gen" / "t5-Q8_0.gguf")
    assert "t5-Q8_0.gguf" in options(started.ours["LLM4GEN_LoadLLMEncoder"], "encoder_name")
    assert "t5-Q8_0.gguf" not in options(started.ours["LLM4GEN_LoadCrossAdapter"], "adapter_name")
    core = started.core.CLIPLoader.INPUT_TYPES()["required"]["clip_name"][0]
    assert "t5-dequantised.safetensors" in core and "t5-Q8_0.gguf" not in core


def test_each_gguf_file_of_a_folder_is_listed_by_itself(started, models):
    own = models / "text_encoders" / "own"
    for name in ("a-Q4_0.gguf", "a-Q8_0.GGUF", "config.json"):
        (own / name).write_bytes(b"x")
    listed = options(started.ours["LLM4GEN_LoadLLMEncoder"], "encoder_name")
    assert {"own/a-Q4_0.gguf", "own/a-Q8_0.GGUF"} <= set(listed) and "own" not in listed


def test_the_conditioning_equals_that_of_the_dequantised_weights(load, gguf_adapter, condition):
    (((found, _),), ((expected, _),)) = (
        condition(SHORT, llm=load(name), adapter=gguf_adapter)
        for name in ("t5-Q8_0.gguf", "t5-dequantised.safetensors")
    )
    assert torch.equal(found[:, :77], expected[:, :77]) and found.shape == (1, 333, 768)
    assert relative_error(found[:, 77:], expected[:, 77:]) <= 1e-5


@pytest.mark.parametrize("dtype", ["auto", "bf16", "fp16", "fp8"])
def test_every_dtype_leaves_the_weights_quantised_and_the_states_close(dtype, load, gguf_adapter):
    llm = load(dtype=dtype)
    assert relative_error(states(llm, gguf_adapter), states(load(), gguf_adapter)) <= 2e-2
    weight = llm.load(3).model.blocks[0].attention.query.weight
    assert weight.dtype == torch.uint8 and weight.shape == (64, 2 * 34)


def test_streamed_or_late_layers_give_the_same_states_and_comfyui_can_unload_them(
    load, gguf_adapter, monkeypatch
):
    import comfy.memory_management  # noqa: PLC0415
    import comfy.model_management as management  # noqa: PLC0415

    llm = load()
    expected = states(llm, gguf_adapter)
    assert llm.patcher in management.loaded_models()
    management.free_memory(1e30, llm.patcher.load_device)
    assert llm.patcher not in management.loaded_models() and llm.patcher.loaded_size() == 0

    managed = llm.load(3)
    with monkeypatch.context() as patch:
        patch.setattr(managed, "ready", lambda: managed.patcher.load_device)
        managed.patcher.patch_model(managed.patcher.load_device, lowvram_model_memory=1)
        assert managed.patcher.model.model_lowvram
        assert torch.equal(states(llm, gguf_adapter), expected)

    late = load()
    with monkeypatch.context() as patch:
        patch.setattr(comfy.memory_management, "aimdo_enabled", True)
        late.load(3)
    assert torch.equal(states(late, gguf_adapter), expected)


def test_the_tokenizer_is_comfyuis_or_the_one_in_the_files_own_folder(started, models, load):
    assert len(load().llm.tokenizer) == 32100
    own = models / "text_encoders" / "tokenized"
    shutil.copytree(T5_TOKENIZER, own)
    (own / "tokenizer.json").write_text("{}", encoding="utf-8")
    shutil.copy(models / "text_encoders" / "t5-Q8_0.gguf", own / "t5.gguf")
    with pytest.raises(MissingTokenizer, match=r"tokenizer in .*tokenized cannot be read"):
        load("tokenized/t5.gguf")
