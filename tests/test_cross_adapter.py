"""Laws of the Cross-Adapter (its equality with the published module: test_golden.py)."""

import pytest
import tiny
import torch
from safetensors.torch import save_file

from llm4gen.models.checkpoint import load_cross_adapter


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    save_file(tiny.adapter_tensors(), path)
    return load_cross_adapter(path)[0]


@pytest.fixture
def states():
    torch.manual_seed(2)
    return torch.randn(2, 77, 64), torch.randn(2, 20, 32)


def test_sizes_come_from_the_file(adapter):
    assert (adapter.config.clip_dim, adapter.config.llm_dim, adapter.config.mlp_dim) == (64, 32, 128)
    assert adapter.config.heads == 8
    assert all(weight.dtype == torch.float32 for weight in adapter.parameters())


def test_a_batch_equals_its_rows(adapter, states):
    clip, llm = states
    rows = [adapter(clip[i : i + 1], llm[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(adapter(clip, llm), torch.cat(rows))


def test_each_llm_token_is_fused_on_its_own(adapter, states):
    clip, llm = states
    torch.testing.assert_close(adapter(clip, llm)[:, 5:9], adapter(clip, llm[:, 5:9]))


def test_the_order_of_clip_tokens_does_not_matter_but_the_tokens_do(adapter, states):
    clip, llm = states
    torch.testing.assert_close(adapter(clip, llm), adapter(clip[:, torch.randperm(77)], llm))
    other = clip.clone()
    other[:, 3] *= -1
    assert (adapter(other, llm) - adapter(clip, llm)).abs().max() > 1e-3
