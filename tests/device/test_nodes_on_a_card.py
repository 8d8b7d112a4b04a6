"""The nodes give on a GPU what they give on the CPU, however ComfyUI manages its memory, up to KSampler's latent."""

from functools import cached_property

import pytest
import torch
from conftest import MODES, memory_mode

import in_process
from sandbox.standins import ADAPTER, CHECKPOINT, ENCODER
from tiny import relative_error

TEXT, NEGATIVE = "a (red:1.4) cat on a mat", ""
BOUND = 1e-4  # relative norm: encoders and adapter compute in fp32, but kernels may add in another order
UNET_BOUND = 2e-2  # on a card the UNet computes in fp16; other words differ by more than 1


class Nodes:
    """A graph with models of its own, and with no text read before. An output is computed when it is asked for, in
    inference mode, as ComfyUI does.

    folder: for the LLM's states on disk.
    """

    def __init__(self, started, sample, folder):
        from llm4gen.models.features.store import FeatureStore  # noqa: PLC0415
        from llm4gen.nodes import host  # noqa: PLC0415

        self.started, self.sample = started, sample
        self.new_store = lambda: FeatureStore(folder=lambda: folder, move=host.as_conditioning)
        self.forget()
        with torch.inference_mode():
            self.model, self.clip, _ = started.core.CheckpointLoaderSimple().load_checkpoint(CHECKPOINT)
        self.adapter = self.run("LoadCrossAdapter", adapter_name=ADAPTER)
        self.llm = self.new_llm()

    def run(self, name, **inputs):
        with torch.inference_mode():
            return in_process.run(self.started.ours[f"LLM4GEN_{name}"], **inputs)

    def new_llm(self):
        return self.run("LoadLLMEncoder", encoder_name=ENCODER, dtype="fp32")

    def forget(self):
        """The LLM's states in memory, as a restart does."""
        from llm4gen.nodes import managed  # noqa: PLC0415

        self.store = managed.FEATURES = self.new_store()

    @cached_property
    def conditionings(self):
        """The states of both prompts."""
        return [self.fuse("Conditioning", text=text, clip=self.clip) for text in (TEXT, NEGATIVE)]

    def fuse(self, name, llm=None, text=TEXT, **inputs):
        """A node that fuses: its conditioning's states."""
        output = self.run(name, llm=llm or self.llm, adapter=self.adapter, text=text, **inputs)
        ((states, _),) = output
        return states

    @torch.inference_mode()
    def fuse_again(self, llm, copies=1):
        """LLM4GEN Fuse Conditioning on CLIP's half, with the LLM's states from a cache. copies: of each token."""
        clip = self.conditionings[0][:, :77].repeat_interleave(copies, dim=1)
        return self.fuse("FuseConditioning", llm, conditioning=[[clip, {}]])

    @cached_property
    def picture(self):
        """Of the attention map."""
        return self.run("Attention", clip=self.clip, llm=self.llm, adapter=self.adapter, text=TEXT)

    @cached_property
    def sampled(self):
        """A step of KSampler."""
        pair = [[[states, {}]] for states in self.conditionings]
        return self.sample(*pair, model=self.model, steps=1)


@pytest.fixture(scope="module")
def new_nodes(started, sample, tmp_path_factory):
    from llm4gen.nodes import managed  # noqa: PLC0415

    before = managed.FEATURES
    yield lambda: Nodes(started, sample, tmp_path_factory.mktemp("features"))
    managed.FEATURES = before


@pytest.fixture(scope="module")
def on_cpu(new_nodes):
    """Nodes that have run on the CPU."""
    with memory_mode("cpu"):
        nodes = new_nodes()
        assert nodes.picture is not None and nodes.sampled.samples.device.type == "cpu"
        assert {each.patcher.load_device.type for each in (nodes.clip, nodes.llm, nodes.adapter)} == {"cpu"}
    return nodes


@pytest.fixture(scope="module", params=MODES)
def mode(request, quick_collection):
    """As elsewhere, but all tests of a mode come together, so that its models are loaded once."""
    with memory_mode(request.param):
        yield request.param


@pytest.fixture(scope="module")
def nodes(on_cpu, mode, new_nodes):
    """Nodes on the card."""
    return new_nodes()


def test_conditioning_fusing_and_the_attention_map_are_the_cpus(mode, nodes, on_cpu):
    """With emphasis, whose weights meet the states."""
    for found, expected in zip(nodes.conditionings, on_cpu.conditionings, strict=True):
        assert found.device.type == ("cuda" if mode == "gpu-only" else "cpu")
        assert relative_error(found.cpu(), expected) <= BOUND
    assert (nodes.picture.cpu() - on_cpu.picture).abs().mean() <= 1e-2
    assert {each.patcher.load_device.type for each in (nodes.clip, nodes.llm, nodes.adapter)} == {"cuda"}


def test_states_from_memory_and_from_disk_give_the_same(nodes, on_cpu):
    for cache in ("memory", "disk"):
        if cache == "disk":
            nodes.forget()
        llm = nodes.new_llm()
        assert relative_error(nodes.fuse_again(llm).cpu(), on_cpu.conditionings[0]) <= BOUND
        assert llm.loaded is None, f"the states were not in the cache in {cache}"
        devices = {features.states.device for features in nodes.store.memory.entries.values()}
        assert devices == {nodes.conditionings[0].device}


def test_a_key_and_a_value_for_each_token_give_the_same_twice(nodes, on_cpu):
    pairs = nodes.fuse_again(nodes.llm, copies=2).cpu()
    assert relative_error(pairs, on_cpu.conditionings[0].repeat_interleave(2, dim=1)) <= BOUND


def test_a_step_of_ksampler_gives_the_cpus_latent_with_one_call_of_the_unet(nodes, on_cpu):
    assert [call[:2] for call in nodes.sampled.calls] == [(2, 333)]
    assert nodes.model.load_device.type == "cuda"
    assert relative_error(nodes.sampled.samples.cpu(), on_cpu.sampled.samples) <= UNET_BOUND
