"""The flags that people start ComfyUI with bear on the encoder and the adapter as they do on ComfyUI's own CLIP.

The table in tests/README.md has the verdict on every flag of ComfyUI's that concerns weights, memory or files.
"""

import os
import re

import pytest
import torch
from safetensors.torch import save_file

import in_process
import tiny
from paths import COMFYUI, ROOT

CPU, GPU = torch.device("cpu"), torch.device("meta")  # a device that is there everywhere, and is no CPU
LAYERS = 2


@pytest.fixture
def start_with(started, management, monkeypatch):
    """Sets flags as if ComfyUI had been started with them."""
    import comfy.utils  # noqa: PLC0415
    from comfy.cli_args import args  # noqa: PLC0415

    def start_with(**flags):
        for name, value in flags.items():
            assert hasattr(args, name)
            monkeypatch.setattr(args, name, value)
        # ComfyUI reads these when it is imported.
        monkeypatch.setattr(comfy.utils, "DISABLE_MMAP", args.disable_mmap)
        monkeypatch.setattr(management, "FORCE_FP32", args.force_fp32)

    return start_with


@pytest.fixture(scope="module")
def load(module_path):
    """Load LLM Encoder on a small T5 in fp32: the dtype that is chosen → what the node gives."""
    from llm4gen.models.llm import LLM, open_llm  # noqa: PLC0415
    from llm4gen.nodes.managed import ManagedLLM  # noqa: PLC0415
    from llm4gen.nodes.tokenizers import host_tokenizer  # noqa: PLC0415

    save_file(tiny.rankgen_tensors(tiny.t5_encoder()), module_path / "t5.safetensors")
    llm = LLM(open_llm(module_path / "t5.safetensors"), host_tokenizer())
    return lambda dtype="auto": ManagedLLM(llm, dtype, "default")


@pytest.fixture(scope="module")
def recipe(started):
    from llm4gen.models.recipe import Recipe  # noqa: PLC0415

    return Recipe()


@torch.inference_mode()
def states(llm, recipe):
    return llm.encode(llm.llm.tokenize("a red cube", recipe).ids, recipe).states


FLAGS = {
    "fp8_e4m3fn_text_enc": ("fp8", torch.float8_e4m3fn),
    "fp8_e5m2_text_enc": ("fp8", torch.float8_e4m3fn),
    "fp16_text_enc": ("fp16", torch.float16),
    "bf16_text_enc": ("bf16", torch.bfloat16),
    "fp32_text_enc": ("fp32", torch.float32),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_auto_is_the_dtype_that_comfyui_was_started_with(flag, load, recipe, start_with, management):
    name, dtype = FLAGS[flag]
    plain = load().key((1,), recipe)
    start_with(**{flag: True})
    llm = load()
    assert llm.load(LAYERS).model.blocks[0].attention.query.weight.dtype == dtype
    if "e5m2" not in flag:
        assert dtype == management.text_encoder_dtype(), "ComfyUI's own text encoders get the same"
    assert torch.equal(states(llm, recipe), states(load(name), recipe))
    assert llm.key((1,), recipe) == load(name).key((1,), recipe) != plain
    other = "fp32" if name != "fp32" else "fp16"
    assert load(other).dtype == other, "what the node says comes first"


def test_force_fp32_makes_all_products_fp32(load, recipe, start_with, host_module, monkeypatch):
    capable = {"avx512_fp16": True, "avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capable, raising=False)
    plain = load().key((1,), recipe)
    assert host_module.compute_dtype(torch.float16, CPU, "auto") == torch.float16
    start_with(force_fp32=True)
    for device in (CPU, GPU):
        for weights in (torch.float16, torch.bfloat16):
            assert host_module.compute_dtype(weights, device, "auto") == torch.float32
    assert load().key((1,), recipe) != plain, "features on disk of another precision are not taken"


@pytest.mark.parametrize("flags", [{}, {"disable_mmap": True}])
@pytest.mark.skipif(os.name == "nt", reason="Windows does not let a mapped file change")
def test_without_mmap_a_loaded_model_is_independent_of_its_file(flags, place, tmp_path, started, start_with):
    encoder, adapter = tmp_path / "one/text_encoders/t5.safetensors", tmp_path / "one/llm4gen/p.safetensors"
    save_file(tiny.rankgen_tensors(tiny.t5_encoder()), encoder)
    save_file(tiny.adapter_tensors(clip=768), adapter)
    start_with(**flags)
    loaded = in_process.run(started.ours["LLM4GEN_LoadCrossAdapter"], adapter_name=adapter.name).adapter
    llm = in_process.run(started.ours["LLM4GEN_LoadLLMEncoder"], encoder_name=encoder.name)
    models = {encoder: llm.load(LAYERS).model, adapter: loaded}
    for path, model in models.items():
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        content = bytearray(path.read_bytes())
        content[-64:] = b"\1" * 64
        with path.open("r+b") as file:
            file.write(content)
        changed = [
            name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])
        ]
        assert bool(changed) == (not flags), "with mmap, ComfyUI's own weights change as well"


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_copies_of_weights_equal_the_files_to_the_bit(suffix, place, tmp_path, started, start_with):
    tensors = tiny.rankgen_tensors(tiny.t5_encoder())
    query = next(name for name in tensors if name.endswith("block.0.layer.0.SelfAttention.q.weight"))
    if suffix == "safetensors":  # fp8 with a scale that is no power of two
        tensors = {
            name: weight.to(torch.float8_e4m3fn) if ".q." in name else weight
            for name, weight in tensors.items()
        }
        tensors |= {f"{name[:-6]}scale_weight": torch.tensor(0.3) for name in tensors if ".q." in name}
    save = save_file if suffix == "safetensors" else torch.save
    save(tensors, tmp_path / f"one/text_encoders/t5.{suffix}")
    start_with(disable_mmap=True)
    llm = in_process.run(started.ours["LLM4GEN_LoadLLMEncoder"], encoder_name=f"t5.{suffix}")
    layer = llm.load(LAYERS).model.blocks[0].attention.query
    assert torch.equal(layer.weight.float(), tensors[query].float())
    assert getattr(layer, "scale", 1.0) == pytest.approx(0.3 if suffix == "safetensors" else 1.0)


@pytest.mark.parametrize(
    ("flags", "state", "trusts_fp16", "expected"),
    [
        ({}, "NORMAL_VRAM", True, (GPU, CPU)),
        ({}, "NORMAL_VRAM", False, (CPU, CPU)),  # as with --force-fp32
        ({"highvram": True}, "HIGH_VRAM", True, (GPU, CPU)),
        ({"gpu_only": True}, "HIGH_VRAM", True, (GPU, GPU)),
        ({"lowvram": True}, "LOW_VRAM", True, (CPU, CPU)),
        ({"novram": True}, "NO_VRAM", True, (CPU, CPU)),
        ({"cpu": True}, "DISABLED", False, (CPU, CPU)),
    ],
)
def test_models_are_placed_as_comfyui_places_text_encoders(
    flags, state, trusts_fp16, expected, started, start_with, host_module, management, monkeypatch
):
    start_with(**flags)
    monkeypatch.setattr(management, "vram_state", management.VRAMState[state])
    monkeypatch.setattr(management, "get_torch_device", lambda: CPU if flags.get("cpu") else GPU)
    monkeypatch.setattr(management, "should_use_fp16", lambda *_, **__: trusts_fp16)
    patcher = host_module.ManagedModel(torch.nn.Linear(2, 2)).patcher
    assert (patcher.load_device, patcher.offload_device) == expected
    assert host_module.as_conditioning(torch.zeros(1)).device == (GPU if flags.get("gpu_only") else CPU)


# Devices that cannot hold a dtype


@pytest.fixture(params=["DirectML", "Apple's"])
def device_without_casts(request, start_with, management, monkeypatch):
    """A device that cannot cast some dtypes, and which it can."""
    monkeypatch.setattr(management, "text_encoder_device", lambda: GPU)
    monkeypatch.setattr(management, "text_encoder_offload_device", lambda: GPU)
    if request.param == "DirectML":
        monkeypatch.setattr(management, "directml_enabled", True)
        return (torch.float32, torch.float16)
    start_with(gpu_only=True)
    monkeypatch.setattr(management, "is_device_mps", lambda device: device == GPU)
    return (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_that_a_device_cannot_cast_stay_on_the_cpu(
    dtype, device_without_casts, host_module, management, caplog
):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    model[0].weight = torch.nn.Parameter(model[0].weight.to(dtype), requires_grad=False)
    patcher = host_module.ManagedModel(model).patcher
    fits = dtype in device_without_casts
    assert fits == management.supports_cast(GPU, dtype)
    assert (patcher.load_device, patcher.offload_device) == ((GPU, GPU) if fits else (CPU, CPU))
    assert ("cannot cast" in caplog.text) == (not fits)


def test_bytes_of_a_quantised_matrix_are_no_reason_to_leave_a_device(device_without_casts, host_module):
    model = torch.nn.Linear(2, 2)
    model.weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)
    assert host_module.ManagedModel(model).patcher.load_device == GPU


def test_an_encoder_that_stays_on_the_cpu_gives_its_states(device_without_casts, load, recipe):
    llm = load("fp8")
    found = states(llm, recipe)
    assert llm.patcher.load_device == CPU and found.isfinite().all()


def test_flags_for_intermediates_speed_and_repeatability_change_no_conditioning(start_with, condition):
    from comfy.cli_args import PerformanceFeature  # noqa: PLC0415

    from llm4gen.nodes import managed  # noqa: PLC0415

    ((expected, _),) = condition("a red cube")
    start_with(fp16_intermediates=True, fast=set(PerformanceFeature), deterministic=True)
    managed.FEATURES.memory.clear()
    torch.use_deterministic_algorithms(True)
    try:
        ((found, _),) = condition("a red cube")
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found, expected) and found.dtype == expected.dtype


def test_the_table_names_every_flag_that_concerns_weights_memory_or_files():
    """A flag that a newer ComfyUI adds is not overlooked: the table has it, or the list of those without a bearing."""
    source = (COMFYUI / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    flags = set(re.findall(r'add_argument\("(--[\w-]+)"', source))
    assert len(flags) > 80
    readme = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    part = readme[readme.index("## Flags of ComfyUI") : readme.index("## Verified")]
    assert flags - set(re.findall(r"--[\w-]+", part)) == set()
