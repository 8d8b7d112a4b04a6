"""`.gguf` LLMs in the host: listed for our node alone, read under its memory management, fused."""

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
    """A tiny T5, quantised, the numbers in it as safetensors, and an adapter for it."""
    models = tmp_path_factory.mktemp("gguf")
    own = models / "text_encoders" / "own"
    own.mkdir(parents=True)
    write_t5(models / "text_encoders" / "t5-Q8_0.gguf", tiny.t5_encoder(**SIZES), Kind.Q8_0)
    numbers = tiny.rankgen_tensors(expanded(tiny.t5_encoder(**SIZES), Kind.Q8_0))
    save_file(numbers, models / "text_encoders" / "t5-numbers.safetensors")
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


def test_it_is_listed_for_our_encoder_and_for_nothing_else(started, models):
    shutil.copy(models / "text_encoders" / "t5-Q8_0.gguf", models / "llm4gen" / "t5-Q8_0.gguf")
    assert "t5-Q8_0.gguf" in options(started.ours["LLM4GEN_LoadLLMEncoder"], "encoder_name")
    assert "t5-Q8_0.gguf" not in options(started.ours["LLM4GEN_LoadCrossAdapter"], "adapter_name")
    core = started.core.CLIPLoader.INPUT_TYPES()["required"]["clip_name"][0]
    assert "t5-numbers.safetensors" in core and "t5-Q8_0.gguf" not in core


def test_files_of_one_folder_are_models_of_their_own(started, models):
    own = models / "text_encoders" / "own"
    for name in ("a-Q4_0.gguf", "a-Q8_0.GGUF", "config.json"):
        (own / name).write_bytes(b"x")
    listed = options(started.ours["LLM4GEN_LoadLLMEncoder"], "encoder_name")
    assert {"own/a-Q4_0.gguf", "own/a-Q8_0.GGUF"} <= set(listed) and "own" not in listed


def test_its_conditioning_is_that_of_the_numbers_in_it(load, gguf_adapter, condition):
    (((found, _),), ((truth, _),)) = (
        condition(SHORT, llm=load(name), adapter=gguf_adapter)
        for name in ("t5-Q8_0.gguf", "t5-numbers.safetensors")
    )
    assert torch.equal(found[:, :77], truth[:, :77]) and found.shape == (1, 333, 768)
    assert relative_error(found[:, 77:], truth[:, 77:]) <= 1e-5


@pytest.mark.parametrize("dtype", ["auto", "bf16", "fp16", "fp8"])
def test_every_dtype_leaves_the_weights_as_they_are_and_stays_close(dtype, load, gguf_adapter):
    llm = load(dtype=dtype)
    assert relative_error(states(llm, gguf_adapter), states(load(), gguf_adapter)) <= 2e-2
    assert llm.load(3).model.blocks[0].attention.query.matrix.encoding is Kind.Q8_0


def test_streamed_or_late_layers_give_the_same_states_and_the_host_takes_them_back(
    load, gguf_adapter, monkeypatch
):
    import comfy.memory_management  # noqa: PLC0415
    import comfy.model_management as management  # noqa: PLC0415

    llm = load()
    whole = states(llm, gguf_adapter)
    assert llm.patcher in management.loaded_models()
    management.free_memory(1e30, llm.patcher.load_device)
    assert llm.patcher not in management.loaded_models() and llm.patcher.loaded_size() == 0

    hosted = llm.load(3)
    with monkeypatch.context() as patch:
        patch.setattr(hosted, "ready", lambda: hosted.patcher.load_device)
        hosted.patcher.patch_model(hosted.patcher.load_device, lowvram_model_memory=1)
        assert hosted.patcher.model.model_lowvram
        assert torch.equal(states(llm, gguf_adapter), whole)

    late = load()
    with monkeypatch.context() as patch:
        patch.setattr(comfy.memory_management, "aimdo_enabled", True)
        late.load(3)
    assert torch.equal(states(late, gguf_adapter), whole)


def test_its_tokenizer_is_the_hosts_or_that_of_its_own_folder(started, models, load):
    assert len(load().llm.tokenizer) == 32100
    own = models / "text_encoders" / "tokenized"
    shutil.copytree(T5_TOKENIZER, own)
    (own / "tokenizer.json").write_text("{}", encoding="utf-8")
    shutil.copy(models / "text_encoders" / "t5-Q8_0.gguf", own / "t5.gguf")
    with pytest.raises(MissingTokenizer, match=r"tokenizer in .*tokenized cannot be read"):
        load("tokenized/t5.gguf")
