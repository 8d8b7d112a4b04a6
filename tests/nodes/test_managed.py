"""Models under the host's memory management: moved, streamed, freed, stopped, and in which dtype computed."""

import pytest
import torch

import in_process
from sandbox.standins import ADAPTER, ENCODER
from tiny import relative_error

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def management(started):
    import comfy.model_management  # noqa: PLC0415

    return comfy.model_management


@pytest.fixture(scope="module")
def hosting(started):
    from llm4gen.nodes import host as hosting  # noqa: PLC0415

    return hosting


@pytest.fixture(scope="module")
def recipe(started):
    from llm4gen.models.recipe import Recipe  # noqa: PLC0415

    return Recipe()


def load(started, dtype="fp32", **inputs):
    with torch.inference_mode():
        return in_process.run(
            started.ours["LLM4GEN_LoadLLMEncoder"], encoder_name=ENCODER, dtype=dtype, **inputs
        )


TEXT = "a red cube on top of a blue sphere"


@torch.inference_mode()
def states(llm, recipe):
    return llm.encode(llm.llm.tokenize(TEXT, recipe).ids, recipe).states


LAYERS = 2


@pytest.fixture(scope="module")
def truth(started, recipe):
    return states(load(started), recipe)


@pytest.mark.floor
@pytest.mark.parametrize("dtype", ["auto", "fp32", "bf16", "fp16"])
def test_every_dtype_stays_close_to_fp32(dtype, started, recipe, truth):
    value = states(load(started, dtype), recipe)
    assert value.dtype == torch.float32 and value.isfinite().all()
    assert relative_error(value, truth) <= (0 if dtype == "fp32" else 2e-2)


def test_auto_keeps_the_files_dtype_and_its_memory(started):
    weight = load(started, "auto").load(LAYERS).model.blocks[0].attention.query.weight
    assert weight.dtype == torch.float16


@pytest.mark.parametrize(
    ("choice", "weights", "able", "products"),
    [
        ("fp32", torch.float16, ("avx512_fp16", "avx512_bf16"), torch.float32),
        ("auto", torch.float16, ("avx512_fp16", "avx512_bf16"), torch.float16),
        ("auto", torch.float16, ("avx512_bf16",), torch.bfloat16),
        ("bf16", torch.bfloat16, ("avx512_fp16", "avx512_bf16"), torch.bfloat16),
        ("bf16", torch.bfloat16, ("amx_bf16",), torch.bfloat16),
        ("fp16", torch.float16, (), torch.float32),
        ("auto", torch.bfloat16, (), torch.float32),
    ],
)
def test_products_on_a_cpu_are_in_what_it_multiplies(choice, weights, able, products, hosting, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(able, True), raising=False)
    assert hosting.compute_dtype(weights, CPU, choice) == products


def test_products_on_an_old_torch_are_fp32(hosting, monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert hosting.compute_dtype(torch.bfloat16, CPU, "auto") == torch.float32


@pytest.mark.parametrize(("trusted", "products"), [(True, torch.float16), (False, torch.float32)])
def test_products_on_a_gpu_are_fp16_where_the_host_trusts_it(
    trusted, products, hosting, management, monkeypatch
):
    monkeypatch.setattr(management, "should_use_fp16", lambda device: trusted)
    for weights in (torch.float32, torch.bfloat16, torch.float16):
        assert hosting.compute_dtype(weights, torch.device("cuda"), "auto") == products
    assert hosting.compute_dtype(torch.float16, torch.device("cuda"), "fp32") == torch.float32


@pytest.mark.floor
@pytest.mark.parametrize("model", ["LLM4GEN_LoadLLMEncoder", "LLM4GEN_LoadCrossAdapter"])
def test_every_layer_with_weights_is_the_hosts(model, started):
    inputs = {"encoder_name": ENCODER} if "Encoder" in model else {"adapter_name": ADAPTER}
    loaded = in_process.run(started.ours[model], **inputs)
    loaded = (loaded.load(LAYERS) if "Encoder" in model else loaded).model
    weighty = [(name, module) for name, module in loaded.named_modules() if module._parameters]
    assert weighty
    bare = [name for name, module in weighty if not hasattr(module, "comfy_cast_weights")]
    assert bare == []


def test_the_host_finds_the_models_in_a_nodes_output(started):
    """It keeps what a prompt uses, and frees the models of an older one first."""
    import comfy.model_patcher  # noqa: PLC0415

    adapter = in_process.run(started.ours["LLM4GEN_LoadCrossAdapter"], adapter_name=ADAPTER)
    llm = load(started)
    llm.load(LAYERS)
    for output in (llm, adapter):
        assert comfy.model_patcher.is_model_patcher_output(output)


@pytest.mark.floor
def test_the_host_loads_it_for_work_and_takes_it_back(started, management, recipe, truth):
    llm = load(started)
    patcher = llm.load(LAYERS).patcher
    management.unload_all_models()
    assert patcher not in management.loaded_models()
    states(llm, recipe)
    assert patcher in management.loaded_models()
    management.free_memory(1e30, patcher.load_device)
    assert patcher not in management.loaded_models()
    assert patcher.loaded_size() == 0
    assert torch.equal(states(llm, recipe), truth)


@pytest.mark.floor
def test_a_dropped_model_is_not_held(started, management, recipe):
    import gc  # noqa: PLC0415
    import weakref  # noqa: PLC0415

    llm = load(started)
    states(llm, recipe)
    module = weakref.ref(llm.load(LAYERS).model)
    del llm
    gc.collect()
    assert module() is None


@pytest.mark.floor
@pytest.mark.parametrize("budget", [1, 100 << 20, 400 << 20])
def test_streamed_weights_give_the_same_states(budget, started, hosting, recipe, truth, monkeypatch):
    llm = load(started)
    hosted = llm.load(LAYERS)
    patcher = hosted.patcher
    monkeypatch.setattr(hosted, "ready", lambda: patcher.load_device)
    patcher.patch_model(patcher.load_device, lowvram_model_memory=budget)
    assert patcher.model.model_lowvram and patcher.loaded_size() < max(budget, 2 << 20) + (1 << 20)
    assert torch.equal(states(llm, recipe), truth)


@pytest.mark.floor
def test_layers_that_take_their_weights_late_are_filled(started, recipe, truth, monkeypatch):
    """With Dynamic VRAM the host's layers are built without weights; only assignment gives them any."""
    import comfy.memory_management  # noqa: PLC0415

    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    llm = load(started)
    llm.load(LAYERS)
    monkeypatch.undo()
    assert torch.equal(states(llm, recipe), truth)


@pytest.mark.floor
def test_progress_is_shown_for_each_layer(started, recipe, monkeypatch):
    import comfy.utils  # noqa: PLC0415

    seen = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total))
    )
    states(load(started), recipe)
    assert seen[-1] == (2, 2)


@pytest.mark.floor
def test_cancel_stops_the_work_and_the_next_run_is_whole(started, management, recipe, truth):
    llm = load(started)
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        llm.features(llm.llm.tokenize(TEXT, recipe).ids, recipe)
    assert torch.equal(states(llm, recipe), truth)


@pytest.fixture
def short_of_memory(started, management, monkeypatch):
    """An LLM whose first runs end as the device's do when it is full; and whether others made room before each."""

    def short_of_memory(times):
        llm, read, made_room = load(started), [], []

        def full(*args, **kwargs):
            made_room.append(llm.patcher not in management.loaded_models())
            if len(made_room) <= times:
                raise torch.cuda.OutOfMemoryError("out of memory")
            return read[0](*args, **kwargs)

        hosted = llm.load(LAYERS)
        read.append(hosted.ready)
        monkeypatch.setattr(hosted, "ready", full)
        read[0]()
        return llm, made_room

    return short_of_memory


def test_out_of_memory_others_make_room_and_it_goes_on(short_of_memory, recipe, truth):
    llm, made_room = short_of_memory(times=1)
    assert torch.equal(states(llm, recipe), truth)
    assert made_room == [False, True]


def test_out_of_memory_again_it_says_what_to_try(short_of_memory, recipe):
    llm, _ = short_of_memory(times=2)
    with pytest.raises(Exception, match="choose bf16, or a smaller file") as caught:
        states(llm, recipe)
    assert type(caught.value).__name__ == "OutOfMemory" and ENCODER in str(caught.value)


def test_device_cpu_never_leaves_the_cpu(started, hosting, management, monkeypatch):
    monkeypatch.setattr(management, "text_encoder_device", lambda: torch.device("meta"))
    monkeypatch.setattr(management, "text_encoder_offload_device", lambda: torch.device("meta"))
    module = torch.nn.Linear(2, 2)
    assert hosting.ManagedModel(module, "cpu").patcher.load_device == CPU
    assert hosting.ManagedModel(module, "default").patcher.load_device == torch.device("meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU HERE: states on a GPU are not checked")
@pytest.mark.parametrize("dtype", ["fp32", "auto", "bf16", "fp16"])
def test_states_on_a_gpu_stay_within_half_a_percent_of_fp32_on_the_cpu(dtype, started, recipe):
    llm = load(started, dtype)
    assert llm.load(LAYERS).patcher.load_device.type == "cuda"
    exact = states(load(started, "fp32", device="cpu"), recipe)
    assert relative_error(states(llm, recipe), exact) <= (1e-5 if dtype == "fp32" else 5e-3)
