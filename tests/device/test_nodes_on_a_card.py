"""The nodes give on a GPU what they give on the CPU, however ComfyUI manages its memory, up to KSampler's latent."""

import pytest
import torch

import in_process
from sandbox.standins import ADAPTER, CHECKPOINT, ENCODER
from tiny import relative_error

TEXT = "a (red:1.4) cat on a mat"
# Core's own files are read by Dynamic VRAM's library, which the pretend card has only for this pack's models.
without_dynamic_vram = pytest.mark.parametrize("mode", ["legacy", "gpu-only"], indirect=True)
BOUND = 1e-4  # relative norm; everything here is fp32, but kernels may add in another order


@pytest.fixture
def run(started):
    """Executes a node in inference mode, as ComfyUI does."""

    def run(name, **inputs):
        with torch.inference_mode():
            return in_process.run(started.ours[f"LLM4GEN_{name}"], **inputs)

    return run


@pytest.fixture
def parts(mode, started, run, monkeypatch):
    """Models that are loaded in this mode, with no text read before: checkpoint, adapter, and an LLM for a device."""
    from llm4gen.nodes import managed  # noqa: PLC0415

    monkeypatch.setattr(managed.FEATURES, "memory", type(managed.FEATURES.memory)())
    with torch.inference_mode():
        model, clip, _ = started.core.CheckpointLoaderSimple().load_checkpoint(CHECKPOINT)
    adapter = run("LoadCrossAdapter", adapter_name=ADAPTER)

    def llm(device):
        return run("LoadLLMEncoder", encoder_name=ENCODER, dtype="fp32", device=device)

    return model, clip, adapter, llm


def states_of(conditioning):
    ((states, options),) = conditioning
    return states.cpu(), options


@without_dynamic_vram
def test_conditioning_fusing_and_the_attention_map_are_the_cpus(parts, run, started):
    """With emphasis, whose weights meet the states; read twice, because the second reading is from the cache."""
    _, clip, adapter, llm = parts
    on_card, on_cpu = llm("default"), llm("cpu")
    with torch.inference_mode():
        plain = started.core.CLIPTextEncode().encode(clip, TEXT)[0]
    common = {"adapter": adapter, "text": TEXT}
    nodes = {
        "Conditioning": {"clip": clip},
        "FuseConditioning": {"conditioning": plain},
    }
    for name, inputs in nodes.items():
        expected, _ = states_of(run(name, llm=on_cpu, **common, **inputs))
        for _ in ("new", "cached"):
            found, _ = states_of(run(name, llm=on_card, **common, **inputs))
            assert relative_error(found, expected) <= BOUND
    assert on_card.patcher.load_device.type == "cuda" and on_cpu.patcher.load_device.type == "cpu"
    pictures = [run("Attention", clip=clip, llm=each, **common) for each in (on_card, on_cpu)]
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0].cpu() - pictures[1].cpu()).abs().mean() <= 1e-2


@pytest.mark.parametrize("mode", ["legacy"], indirect=True)
def test_a_step_of_ksampler_takes_one_call_of_the_unet_for_both_prompts(parts, run, sample):
    model, clip, adapter, llm = parts
    fused = [run("Conditioning", clip=clip, llm=llm("default"), adapter=adapter, text=t) for t in (TEXT, "")]
    latents = {}
    for name, pair in (("fused", fused), ("swapped", fused[::-1])):
        latents[name], calls = sample(*pair, model=model, steps=1)
        assert [call[:2] for call in calls] == [(2, 333)]
    assert model.load_device.type == "cuda"
    assert relative_error(latents["fused"].cpu(), latents["swapped"].cpu()) > BOUND  # the words act
