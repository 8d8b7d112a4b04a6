"""LLMs and adapters on a GPU give the states that they give on the CPU, however ComfyUI manages its memory."""

import gc
import sys

import pytest
import torch
from safetensors.torch import save_file

import tiny
from decoders import FAMILIES, make
from gguf_files import Kind, t5, write_t5
from tiny import relative_error

IDS = (5, 9, 33, 7, 41, 60, 12)
SIZES = {"d_model": 256, "d_ff": 512, "d_kv": 64, "vocab_size": 64, "num_layers": 2}
DTYPES = {"fp32": 1e-5, "auto": 5e-3, "bf16": 5e-3, "fp16": 5e-3, "fp8": 0.15}
needs_pretend_card = pytest.mark.skipif(
    "pretend_card" not in sys.modules, reason="only a pretend card counts"
)


@pytest.fixture
def card():
    """What the pretend card counts."""
    gc.collect()  # models of earlier tests
    card = sys.modules["pretend_card"].Card
    total = card.total
    card.reset()
    yield card
    card.total = total


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of small LLMs, made when they are asked for, by name."""
    folder = tmp_path_factory.mktemp("llms")

    def file(name):
        path = folder / name
        if not path.exists():
            if path.suffix == ".gguf":
                write_t5(path, t5(num_layers=2), Kind[path.stem])
            elif path.suffix == ".safetensors":
                layers = int(path.stem.partition("-")[2] or 2)
                save_file(tiny.rankgen_tensors(tiny.t5_encoder(**SIZES | {"num_layers": layers})), path)
            else:
                make(name, path)
        return path

    return file


def managed(path, dtype="auto", device="default"):
    from llm4gen.models.llm import LLM, open_llm  # noqa: PLC0415
    from llm4gen.nodes.managed import ManagedLLM  # noqa: PLC0415

    return ManagedLLM(LLM(open_llm(path), None), dtype, device)


@torch.inference_mode()
def states(llm, padding="keep"):
    """The states at every position, brought to the CPU, and where they were before."""
    from llm4gen.models.recipe import Recipe  # noqa: PLC0415

    features = llm.encode(IDS, Recipe(tokens=24, padding=padding))
    return features.rows.expand(features.states).cpu(), features.states.device.type


def check(mode, path, dtype, bound, reference="fp32"):
    """Compares an LLM's states on the card with those on the CPU."""
    padding = "keep" if path.suffix else "drop"
    expected, _ = states(managed(path, reference, "cpu"), padding)
    llm = managed(path, dtype)
    if "pretend_card" in sys.modules:
        sys.modules["pretend_card"].Card.reset()
    found, device = states(llm, padding)
    assert llm.patcher.load_device.type == "cuda"
    if "pretend_card" in sys.modules:  # it must have run there, not only have ended there
        operations = sys.modules["pretend_card"].Card.operations
        assert operations["linear"] + operations["addmm"] + operations["mm"] >= 4
    assert device == ("cuda" if mode == "gpu-only" else "cpu")
    assert relative_error(found, expected) <= bound
    return llm


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_t5_gives_the_states_of_the_cpu(dtype, mode, files):
    check(mode, files("t5.safetensors"), dtype, DTYPES[dtype])


@pytest.mark.parametrize("mode", ["legacy", "dynamic"], indirect=True)
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q5_0", "F16", "BF16", "TQ2_0"])
def test_a_gguf_file_gives_the_states_of_the_cpu(kind, mode, files):
    check(mode, files(f"{kind}.gguf"), "auto", 5e-3)


@pytest.mark.parametrize(
    "mode", ["gpu-only"], indirect=True
)  # in the other modes they are loaded in part, below
@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_gives_the_states_of_the_cpu(family, mode, files):
    check(mode, files(family), "auto", 5e-3)


@needs_pretend_card
@pytest.mark.parametrize("mode", ["legacy", "dynamic"], indirect=True)
@pytest.mark.parametrize("name", ["t5.safetensors", "Q8_0.gguf", *FAMILIES])
def test_loaded_in_part_it_gives_the_same_states(name, mode, files, monkeypatch):
    """As on a card that other models fill: from no weight on it to nearly all of them."""
    path = files(name)
    padding = "keep" if path.suffix else "drop"
    expected, _ = states(managed(path, "fp32", "cpu"), padding)
    llm = managed(path)
    model = llm.load(llm.llm.file.config.layers)
    model.ready()
    for part in range(10) if path.suffix else (0, 5) if mode == "legacy" else (5,):
        with monkeypatch.context() as patch:
            load_in_part[mode](model, part, patch)
            found, _ = states(llm, padding)
        assert relative_error(found, expected) <= 5e-3


def load_layers_in_part(model, part, patch):
    """Without Dynamic VRAM, ComfyUI moves layers until a budget is spent, and streams the others."""
    model.patcher.unpatch_model(model.patcher.offload_device)
    patch.setattr(model, "ready", lambda: model.patcher.load_device)
    budget = 1 + model.patcher.model_size() * part // 10
    model.patcher.patch_model(model.patcher.load_device, lowvram_model_memory=budget)
    assert model.patcher.model.model_lowvram


def give_layers_memory_in_part(model, part, patch):
    """With Dynamic VRAM, some layers get memory on the card, and others are copied each time they run."""
    model_vbar, faults = sys.modules["comfy_aimdo.model_vbar"], iter(range(1 << 20))
    give = model_vbar.vbar_fault
    model.patcher.partially_unload(model.patcher.offload_device, 1e30)
    patch.setattr(model_vbar, "vbar_fault", lambda layer: give(layer) if next(faults) % 10 < part else None)


load_in_part = {"legacy": load_layers_in_part, "dynamic": give_layers_memory_in_part}


@needs_pretend_card
@pytest.mark.parametrize("name", ["Q8_0.gguf", "Q4_K.gguf"])
def test_comfyui_counts_and_holds_the_quantised_bytes(name, mode, files, card):
    llm = managed(files(name))
    before = card.used
    states(llm)
    tensors = llm.llm.file.gguf.tensors.values()
    size = sum(tensor.data.nbytes for tensor in tensors)
    assert size <= llm.patcher.model_size() < 1.02 * size
    assert 0.98 * size < card.used - before < 1.25 * size
    if mode != "gpu-only":
        llm.patcher.partially_unload(llm.patcher.offload_device, 1e30)
        assert llm.patcher.loaded_size() < 0.1 * size


@needs_pretend_card
def test_auto_holds_half_of_an_fp32_file_and_gives_the_states_of_fp16(mode, files, card):
    path = files("t5-6.safetensors")
    fp16, llm = managed(path, "fp16"), managed(path, "auto")
    expected, _ = states(fp16)
    del fp16
    before = card.used
    found, _ = states(llm)
    weights = sum(weight.numel() for weight in llm.load(6).model.parameters())
    assert torch.equal(found, expected)
    assert card.used - before < 0.52 * 4 * weights


@needs_pretend_card
@pytest.mark.parametrize(("name", "times"), [("t5.safetensors", 1), ("Q8_0.gguf", 1), ("Llama", 2)])
def test_the_card_is_waited_for_only_when_the_states_are_fetched(name, times, mode, files, card):
    """And once by transformers, which looks whether a mask masks anything."""
    padding = "keep" if "." in name else "drop"
    llm = managed(files(name))
    states(llm, padding)
    card.reset()
    states(llm, padding)
    assert card.operations and card.waits == times


@needs_pretend_card
def test_a_read_of_24_layers_takes_at_most_1000_operations(started, files, card):
    llm = managed(files("t5-24.safetensors"))
    states(llm)
    card.reset()
    states(llm)
    assert card.operations["linear"] + card.operations["mm"] == 24 * 7
    assert sum(card.operations.values()) <= 1000


@needs_pretend_card
def test_out_of_memory_is_an_error_that_says_what_to_try_and_leaves_nothing_behind(mode, files, card):
    from llm4gen.models.errors import OutOfMemory  # noqa: PLC0415

    llm = managed(files("t5-6.safetensors"))
    before = card.used
    card.total = before + 1000
    with pytest.raises(OutOfMemory, match="choose bf16, or a smaller file"):
        states(llm)
    card.total = 8 << 30
    states(llm)


@needs_pretend_card
def test_a_dropped_llm_frees_the_card_at_once(mode, files, card):
    for name, padding in (("Q8_0.gguf", "keep"), ("Llama", "drop")):
        llm = managed(files(name))
        gc.collect()
        before = card.used
        gc.disable()
        try:
            states(llm, padding)
            assert card.used > before
            del llm
            assert card.used <= before, name
        finally:
            gc.enable()


def test_an_adapter_gives_the_cpus_fused_tokens_and_attention(mode, files, tmp_path):
    from llm4gen.models.checkpoints.adapter import load_cross_adapter  # noqa: PLC0415
    from llm4gen.models.encoders.rows import distinct_rows  # noqa: PLC0415
    from llm4gen.models.features.features import Features  # noqa: PLC0415
    from llm4gen.nodes import host  # noqa: PLC0415
    from llm4gen.nodes.managed import ManagedAdapter  # noqa: PLC0415

    save_file(tiny.adapter_tensors(clip=64, llm=256, mlp=512), tmp_path / "adapter.safetensors")
    ours = ManagedAdapter(*load_cross_adapter(tmp_path / "adapter.safetensors", operations=host.LAYERS))
    plain, _ = load_cross_adapter(tmp_path / "adapter.safetensors")
    rows = distinct_rows(len(IDS), 24)
    llm, clip = torch.randn(1, len(rows.positions), 256), torch.randn(2, 77, 64)
    with torch.inference_mode():
        features = Features(host.as_conditioning(llm), rows)
        expected = rows.expand(plain(clip, llm.expand(2, -1, -1)))
        assert relative_error(ours.fuse(host.as_conditioning(clip), features).cpu(), expected) <= 1e-5
        assert ours.attention_weights(clip, features).shape == (2, 8, 24, 77)
