"""Laws of the Cross-Adapter. test_golden.py tests that it equals the published module."""

import pytest
import torch
from safetensors.torch import save_file

import tiny
from llm4gen.models.checkpoints.adapter import load_cross_adapter
from tiny import relative_error


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    save_file(tiny.adapter_tensors(), path)
    return load_cross_adapter(path)[0]


@pytest.fixture
def states():
    """CLIP states [2, 77, 64] and LLM states [2, 20, 32]."""
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
    changed = clip.clone()
    changed[:, 3] *= -1
    assert (adapter(changed, llm) - adapter(clip, llm)).abs().max() > 1e-3


def split_heads(states):
    """[b, n, 64] → [b, 8 heads, n, 8]."""
    return states.unflatten(-1, (8, 8)).transpose(1, 2)


def test_attention_weights_follow_the_published_formula(adapter, states):
    clip, llm = (part.double() for part in states)
    weights = {name.split(".", 2)[2]: tensor.double() for name, tensor in tiny.adapter_tensors().items()}

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5) ** 0.5
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    query = split_heads(linear("q_proj", norm("kv_norm", linear("llm_proj", llm))))
    key = split_heads(linear("k_proj", norm("q_norm", clip)))
    expected = (query @ key.mT / 8**0.5).softmax(-1)
    found = adapter.attention_weights(*states)
    assert found.shape == (2, 8, 20, 77) and found.dtype == torch.float32
    assert relative_error(found, expected) <= 1e-5


def test_attention_weights_add_up_to_1_and_mix_the_values_as_attend_does(adapter, states):
    clip, llm = states
    weights = adapter.attention_weights(clip, llm)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 8, 20))
    llm, clip = adapter.llm_norm(adapter.llm_proj(llm)), adapter.clip_norm(clip)
    mixed = weights @ split_heads(adapter.value(clip))
    assert relative_error(adapter.out(mixed.transpose(1, 2).flatten(2)), adapter.attend(llm, clip)) <= 1e-5
