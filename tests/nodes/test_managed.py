"""Models under ComfyUI's memory management: it moves, streams and frees them, and we choose their compute dtype."""

import re

import pytest
import torch

import in_process
from decoders import FAMILIES, make
from sandbox.standins import ADAPTER, ENCODER
from tiny import load_encoder, relative_error

CPU = torch.device("cpu")


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
def fp32_states(started, recipe):
    return states(load(started), recipe)


@pytest.mark.floor
@pytest.mark.parametrize("dtype", ["auto", "fp32", "bf16", "fp16"])
def test_states_of_every_dtype_stay_close_to_fp32(dtype, started, recipe, fp32_states):
    found = states(load(started, dtype), recipe)
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert relative_error(found, fp32_states) <= (0 if dtype == "fp32" else 2e-2)


def test_auto_keeps_the_dtype_of_the_file(started):
    weight = load(started, "auto").load(LAYERS).model.blocks[0].attention.query.weight
    assert weight.dtype == torch.float16


@pytest.mark.parametrize(
    ("choice", "weights", "capabilities", "expected"),
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
def test_the_compute_dtype_on_a_cpu_is_one_that_it_multiplies(
    choice, weights, capabilities, expected, host_module, monkeypatch
):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: dict.fromkeys(capabilities, True), raising=False
    )
    assert host_module.compute_dtype(weights, CPU, choice) == expected


def test_the_compute_dtype_on_a_cpu_with_an_old_torch_is_fp32(host_module, monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert host_module.compute_dtype(torch.bfloat16, CPU, "auto") == torch.float32


@pytest.mark.parametrize(("trusted", "expected"), [(True, torch.float16), (False, torch.float32)])
def test_the_compute_dtype_on_a_gpu_is_fp16_where_comfyui_trusts_it(
    trusted, expected, host_module, management, monkeypatch
):
    monkeypatch.setattr(management, "should_use_fp16", lambda device: trusted)
    for weights in (torch.float32, torch.bfloat16, torch.float16):
        assert host_module.compute_dtype(weights, torch.device("cuda"), "auto") == expected
    assert host_module.compute_dtype(torch.float16, torch.device("cuda"), "fp32") == torch.float32


def foreign_parameters(model):
    """Parameters that ComfyUI cannot leave in RAM and bring to the device when they are used."""
    return [
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        for parameter, _ in module.named_parameters(recurse=False)
        if not hasattr(module, "comfy_cast_weights")
    ]


@pytest.mark.floor
@pytest.mark.parametrize("model", ["LLM4GEN_LoadLLMEncoder", "LLM4GEN_LoadCrossAdapter"])
def test_every_layer_with_weights_is_one_of_comfyuis(model, started):
    inputs = {"encoder_name": ENCODER} if "Encoder" in model else {"adapter_name": ADAPTER}
    loaded = in_process.run(started.ours[model], **inputs)
    loaded = (loaded.load(LAYERS) if "Encoder" in model else loaded).model
    assert list(loaded.parameters()) and foreign_parameters(loaded) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_comfyui_can_stream_every_parameter_of_a_decoder(family, host_module, tmp_path):
    make(family, tmp_path)
    loaded = load_encoder(tmp_path, operations=host_module.LAYERS)
    assert list(loaded.parameters()) and foreign_parameters(loaded) == []


def test_comfyui_finds_the_models_in_a_nodes_output(started):
    """ComfyUI keeps the models that a workflow uses, and frees those of an older workflow first."""
    import comfy.model_patcher  # noqa: PLC0415

    adapter = in_process.run(started.ours["LLM4GEN_LoadCrossAdapter"], adapter_name=ADAPTER)
    llm = load(started)
    llm.load(LAYERS)
    for output in (llm, adapter):
        assert comfy.model_patcher.is_model_patcher_output(output)


def test_dynamic_models_are_not_dropped_from_the_cache_in_mid_prompt(started, monkeypatch):
    """ComfyUI's rule: an output is kept if it says that it is dynamic."""
    from comfy_execution.caching import all_outputs_dynamic  # noqa: PLC0415

    adapter = in_process.run(started.ours["LLM4GEN_LoadCrossAdapter"], adapter_name=ADAPTER)
    llm = load(started)
    assert all_outputs_dynamic([[llm]]) and not all_outputs_dynamic(
        [[adapter]]
    )  # an LLM without weights holds none
    llm.load(LAYERS)
    assert not all_outputs_dynamic([[llm]])
    for patcher in (llm.patcher, adapter.patcher):
        monkeypatch.setattr(patcher, "is_dynamic", lambda: True)
    assert all_outputs_dynamic([[llm], [adapter]])


@pytest.mark.floor
def test_comfyui_loads_an_llm_for_encoding_and_can_unload_it(started, management, recipe, fp32_states):
    llm = load(started)
    patcher = llm.load(LAYERS).patcher
    management.unload_all_models()
    assert patcher not in management.loaded_models()
    states(llm, recipe)
    assert patcher in management.loaded_models()
    management.free_memory(1e30, patcher.load_device)
    assert patcher not in management.loaded_models()
    assert patcher.loaded_size() == 0
    assert torch.equal(states(llm, recipe), fp32_states)


@pytest.mark.floor
def test_a_dropped_llm_is_freed(started, management, recipe):
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
def test_streamed_weights_give_the_same_states(
    budget, started, host_module, recipe, fp32_states, monkeypatch
):
    llm = load(started)
    managed = llm.load(LAYERS)
    patcher = managed.patcher
    monkeypatch.setattr(managed, "ready", lambda: patcher.load_device)
    patcher.patch_model(patcher.load_device, lowvram_model_memory=budget)
    assert patcher.model.model_lowvram and patcher.loaded_size() < max(budget, 2 << 20) + (1 << 20)
    assert torch.equal(states(llm, recipe), fp32_states)


@pytest.mark.floor
def test_layers_that_are_built_without_weights_are_filled(started, recipe, fp32_states, monkeypatch):
    """With Dynamic VRAM, ComfyUI builds layers without weights, which they get only by assignment."""
    import comfy.memory_management  # noqa: PLC0415

    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    llm = load(started)
    llm.load(LAYERS)
    monkeypatch.undo()
    assert torch.equal(states(llm, recipe), fp32_states)


@pytest.mark.floor
def test_progress_is_shown_for_each_layer(started, recipe, monkeypatch):
    import comfy.utils  # noqa: PLC0415

    reports = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: reports.append((value, total))
    )
    states(load(started), recipe)
    assert reports[-1] == (2, 2)


@pytest.mark.floor
def test_cancel_stops_encoding_and_the_next_run_is_complete(started, management, recipe, fp32_states):
    llm = load(started)
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        llm.features(llm.llm.tokenize(TEXT, recipe).ids, recipe)
    assert torch.equal(states(llm, recipe), fp32_states)


@pytest.fixture
def short_of_memory(started, management, monkeypatch):
    """An LLM whose first runs fail as if the device were full, and a list that tells for each run whether the LLM had
    been unloaded before it."""

    def short_of_memory(times):
        llm, ready, unloaded = load(started), [], []

        def full(*args, **kwargs):
            unloaded.append(llm.patcher not in management.loaded_models())
            if len(unloaded) <= times:
                raise torch.cuda.OutOfMemoryError("out of memory")
            return ready[0](*args, **kwargs)

        managed = llm.load(LAYERS)
        ready.append(managed.ready)
        monkeypatch.setattr(managed, "ready", full)
        ready[0]()
        return llm, unloaded

    return short_of_memory


def test_after_out_of_memory_models_are_unloaded_and_encoding_is_retried(
    short_of_memory, recipe, fp32_states
):
    llm, unloaded = short_of_memory(times=1)
    assert torch.equal(states(llm, recipe), fp32_states)
    assert unloaded == [False, True]


def test_a_second_out_of_memory_is_an_error_that_says_what_to_try(short_of_memory, recipe):
    llm, _ = short_of_memory(times=2)
    with pytest.raises(Exception, match="choose bf16, or a smaller file") as caught:
        states(llm, recipe)
    assert type(caught.value).__name__ == "OutOfMemory" and ENCODER in str(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 42949672960 bytes. Error code 12 (Cannot allocate memory)",
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried to allocate "
        "42949672960 bytes.",
        "unable to mmap 4910000000 bytes from file <model.safetensors>: Cannot allocate memory (12)",
        "The paging file is too small for this operation to complete. (os error 1455)",
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "HIP out of memory. Tried to allocate 2.00 GiB.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "UR error: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
        "could not create a primitive",
    ],
)
def test_out_of_memory_is_recognised_in_the_words_of_every_system(
    message, host_module, tmp_path, monkeypatch
):
    from llm4gen.models.files.weights import open_weights  # noqa: PLC0415

    assert host_module.is_out_of_memory(RuntimeError(message))
    # Nor is a file called damaged for it.
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.bin")

    def full(*args, **kwargs):
        raise RuntimeError(message)

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        open_weights(tmp_path / "model.bin")


@pytest.mark.parametrize(
    "message",
    [
        "invalid memory format",
        "CUDA error: illegal memory access",
        "size mismatch",
        "could not create a primitive descriptor for a convolution forward propagation primitive",
    ],
)
def test_other_errors_are_not_taken_for_out_of_memory(message, host_module):
    assert not host_module.is_out_of_memory(RuntimeError(message))


def test_a_card_can_be_chosen_and_one_that_is_missing_is_named(started, host_module, management, monkeypatch):
    """ComfyUI names its cards gpu:0, gpu:1, … if it has several."""
    cards = [torch.device("cuda", 0), torch.device("cuda", 1)]
    monkeypatch.setattr(management, "get_all_torch_devices", lambda *_: cards)
    assert host_module.device_options() == ["default", "cpu", "gpu:0", "gpu:1"]
    assert host_module.ManagedModel(torch.nn.Linear(2, 2), "gpu:1").patcher.load_device == cards[1]
    node = started.ours["LLM4GEN_LoadLLMEncoder"]
    assert (
        node.validate_inputs(encoder_name=ENCODER, device="gpu:2") is True
    )  # so that our error is the one that shows
    with pytest.raises(
        Exception, match=r"device gpu:2 was chosen, but this ComfyUI has default, cpu, gpu:0, gpu:1"
    ):
        load(started, device="gpu:2")


def test_with_device_cpu_a_model_stays_on_the_cpu(started, host_module, management, monkeypatch):
    monkeypatch.setattr(management, "text_encoder_device", lambda: torch.device("meta"))
    monkeypatch.setattr(management, "text_encoder_offload_device", lambda: torch.device("meta"))
    module = torch.nn.Linear(2, 2)
    assert host_module.ManagedModel(module, "cpu").patcher.load_device == CPU
    assert host_module.ManagedModel(module, "default").patcher.load_device == torch.device("meta")


@pytest.mark.parametrize("dtype", ["fp32", "auto", "bf16", "fp16"])
def test_states_on_a_gpu_stay_within_half_a_percent_of_fp32_on_the_cpu(dtype, gpu, started, recipe):
    llm = load(started, dtype)
    assert llm.load(LAYERS).patcher.load_device.type != "cpu"
    expected = states(load(started, "fp32", device="cpu"), recipe)
    assert relative_error(states(llm, recipe), expected) <= (1e-5 if dtype == "fp32" else 5e-3)
