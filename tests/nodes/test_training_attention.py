"""The attention that a UNet is trained with: torch's where ComfyUI's on a CPU is in pieces, else what was chosen."""

import pytest
import torch

from llm4gen.models.errors import UntrainableModel
from tiny import relative_error

INPUTS = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 80, 768)


@pytest.fixture(scope="module")
def core(started):
    from comfy.ldm.modules import attention  # noqa: PLC0415

    return attention


@pytest.fixture
def in_pieces(core, monkeypatch):
    """The calls of ComfyUI's attention in pieces, which is what this ComfyUI uses on a CPU."""
    assert core.optimized_attention is core.attention_sub_quad
    calls, computed = [], core.efficient_dot_product_attention
    monkeypatch.setattr(
        core, "efficient_dot_product_attention", lambda *a, **k: calls.append(1) or computed(*a, **k)
    )
    return calls


@pytest.fixture
def predict(started, model):
    """Predicts with a MODEL in training: what, and the gradient that reaches the context."""
    from llm4gen.nodes import host  # noqa: PLC0415
    from llm4gen.nodes.training.unet import UNetInTraining  # noqa: PLC0415

    def predict(model=model):
        with torch.inference_mode(False):
            unet = UNetInTraining(model, 768, what="frozen", rank=4, dtype=torch.float32, seed=0)
            host.load_to_train([unet.patcher])
            noised, timesteps, context = INPUTS
            context = context.clone().requires_grad_()
            try:
                found = unet.predict(noised, timesteps, context)
                found.sum().backward()
            finally:
                host.release(unet.patcher)
            return found.detach(), context.grad

    return predict


def patched(model, attention):
    """The MODEL as a node gives it that sets an attention of its own."""
    changed = model.clone()
    changed.model_options["transformer_options"]["optimized_attention_override"] = attention
    return changed


def test_on_a_cpu_attention_is_torchs_and_gives_what_comfyuis_gives(predict, in_pieces, monkeypatch):
    from comfy.cli_args import args  # noqa: PLC0415

    found = predict()
    assert in_pieces == []
    monkeypatch.setattr(args, "use_quad_cross_attention", True)  # the user asks for pieces
    expected = predict()
    assert in_pieces
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < 1e-5


@pytest.mark.parametrize("chosen", ["attention_split", "attention_pytorch"])
def test_what_was_chosen_at_comfyuis_start_stays(chosen, core, model, monkeypatch):
    from llm4gen.nodes.training.attention import attention_options  # noqa: PLC0415

    assert attention_options(model)
    monkeypatch.setattr(core, "optimized_attention", getattr(core, chosen))
    assert attention_options(model) == {}


def test_on_a_gpu_comfyuis_choice_stays(model):
    from llm4gen.nodes.training.attention import attention_options  # noqa: PLC0415

    elsewhere = model.clone()
    elsewhere.load_device = torch.device("cuda")
    assert attention_options(elsewhere) == {}


def test_an_attention_that_a_node_patched_into_the_model_is_used(predict, model):
    calls = []

    def doubled(usual, *inputs, **options):
        calls.append(usual.__name__)
        return 2 * usual(*inputs, **options)

    found, gradient = predict(patched(model, doubled))
    assert set(calls) == {"attention_sub_quad"}
    plain, other = predict()
    assert relative_error(found, plain) > 1e-3
    assert relative_error(gradient, other) > 1e-3


def test_a_patched_attention_without_gradients_is_refused(predict, model):
    """As kernels for sampling are, which would teach without the attention's part."""

    def for_sampling(usual, *inputs, **options):
        with torch.no_grad():
            return usual(*inputs, **options)

    with pytest.raises(UntrainableModel, match=r"for_sampling, which computes no gradients\. Connect"):
        predict(patched(model, for_sampling))
