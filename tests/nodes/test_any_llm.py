"""An LLM of another family runs under ComfyUI's memory management, as the adapter's recipe says."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoTokenizer

import in_process
import tiny
from in_process import SHORT
from paths import T5_TOKENIZER
from tiny import relative_error

RECIPE = {
    "template": "<user> {text} <assistant>",
    "tokens": 48,
    "padding": "keep",
    "layer": -2,
    "heads": 4,
}


@pytest.fixture(scope="module")
def oracle(started, tmp_path_factory):
    """A small random Qwen among ComfyUI's models, with its own tokenizer and two adapters for it."""
    models = tmp_path_factory.mktemp("any")
    folder = models / "text_encoders" / "qwen"
    shutil.copytree(T5_TOKENIZER, folder)
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=tiny.VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    model.save_pretrained(folder)
    (models / "llm4gen").mkdir()
    for padding in ("keep", "drop"):
        metadata = {"llm4gen": json.dumps(RECIPE | {"padding": padding})}
        save_file(
            tiny.adapter_tensors(clip=768, llm=64),
            models / "llm4gen" / f"qwen-{padding}.safetensors",
            metadata,
        )
    in_process.use_models(started.folders, models)
    return SimpleNamespace(model=model.model, tokenizer=AutoTokenizer.from_pretrained(str(folder)))


@pytest.fixture
def load(started, oracle):
    def load(dtype="fp32"):
        node = started.ours["LLM4GEN_LoadLLMEncoder"]
        return in_process.run(node, encoder_name="qwen", dtype=dtype)

    return load


def adapter_of(started, padding):
    node = started.ours["LLM4GEN_LoadCrossAdapter"]
    return in_process.run(node, adapter_name=f"qwen-{padding}.safetensors")


def transformers_states(oracle, text, padding):
    """transformers' hidden states of the recipe's prompt."""
    ids = oracle.tokenizer(f"<user> {text} <assistant>")["input_ids"]
    assert len(ids) < RECIPE["tokens"]
    padded = torch.tensor([ids + [0] * (RECIPE["tokens"] - len(ids))])
    mask = torch.tensor([[1] * len(ids) + [0] * (RECIPE["tokens"] - len(ids))])
    out = oracle.model(input_ids=padded, attention_mask=mask, output_hidden_states=True, use_cache=False)
    return out.hidden_states[RECIPE["layer"]][:, : None if padding == "keep" else len(ids)]


@pytest.mark.parametrize("padding", ["keep", "drop"])
@torch.inference_mode()
def test_the_conditioning_is_the_adapters_output_on_transformers_states(
    padding, started, oracle, load, clip, encode, condition
):
    adapter = adapter_of(started, padding)
    ((states, _),) = condition(SHORT, llm=load(), adapter=adapter)
    clip_states = encode(clip)[0][0]
    assert torch.equal(states[:, :77], clip_states)
    expected = adapter.adapter(clip_states, transformers_states(oracle, SHORT, padding))
    assert states.shape[1] - 77 == expected.shape[1] <= 48
    assert relative_error(states[:, 77:], expected) <= 1e-5


@torch.inference_mode()
def test_the_attention_map_labels_rows_by_the_llms_own_tokenizer(started, oracle, load, clip, encode):
    from llm4gen.nodes.attention import attention_map  # noqa: PLC0415

    adapter = adapter_of(started, "keep")
    fused = in_process.run(started.ours["LLM4GEN_ApplyToCLIP"], clip=clip, llm=load(), adapter=adapter)
    drawn = attention_map(fused, SHORT, "each")
    expected = adapter.adapter.attention_weights(
        encode(clip)[0][0], transformers_states(oracle, SHORT, "keep")
    )
    rows, columns = len(drawn.rows), len(drawn.columns)
    assert relative_error(torch.from_numpy(drawn.weights), expected[0, :, :rows, :columns]) <= 1e-5
    text = "".join(label.text for label in drawn.rows if label.text != "(space)")
    assert f"user>{SHORT.replace(' ', '')}assistant>" in text
    special = [label.is_special for label in drawn.rows]
    assert special[0] and special[-1] and not all(special)
    assert len(drawn.names) == 4


@pytest.mark.parametrize(("dtype", "bound"), [("auto", 1e-2), ("bf16", 2e-2), ("fp16", 2e-2), ("fp8", 0.2)])
@torch.inference_mode()
def test_states_of_every_dtype_stay_close_to_transformers(dtype, bound, started, oracle, load):
    recipe, llm = adapter_of(started, "drop").recipe, load(dtype)
    states = llm.encode(llm.llm.tokenize(SHORT, recipe).ids, recipe).states
    assert relative_error(states, transformers_states(oracle, SHORT, "drop")[0]) <= bound


@torch.inference_mode()
def test_streamed_weights_give_the_same_states_and_comfyui_can_unload_them(
    started, oracle, load, monkeypatch
):
    import comfy.model_management as management  # noqa: PLC0415

    recipe, llm = adapter_of(started, "keep").recipe, load()
    ids = llm.llm.tokenize(SHORT, recipe).ids
    states = llm.encode(ids, recipe).states
    assert llm.patcher in management.loaded_models()
    management.free_memory(1e30, llm.patcher.load_device)
    assert llm.patcher not in management.loaded_models() and llm.patcher.loaded_size() == 0

    managed = llm.load(llm.llm.depth(recipe))
    monkeypatch.setattr(managed, "ready", lambda: managed.patcher.load_device)
    managed.patcher.patch_model(managed.patcher.load_device, lowvram_model_memory=1)
    assert managed.patcher.model.model_lowvram
    assert torch.equal(llm.encode(ids, recipe).states, states)


def test_every_matrix_is_in_one_of_comfyuis_layers(load):
    for module in load().load(4).model.modules():
        if any(weight.ndim > 1 for weight in module._parameters.values() if weight is not None):
            assert hasattr(module, "comfy_cast_weights"), module


def test_layers_that_are_built_without_weights_are_filled(started, load, monkeypatch):
    """With Dynamic VRAM, ComfyUI builds layers without weights, which they get only by assignment."""
    import comfy.memory_management  # noqa: PLC0415

    recipe = adapter_of(started, "keep").recipe
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    late = load()
    late.load(3)
    monkeypatch.undo()
    ids = late.llm.tokenize(SHORT, recipe).ids
    assert torch.equal(late.encode(ids, recipe).states, load().encode(ids, recipe).states)
