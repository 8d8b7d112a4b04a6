"""Core's adapters and patches of the UNet with LLM4GEN's words: each acts, and the words go on acting with it."""

import pytest
import torch

import extra_standins
from in_process import SHORT
from tiny import relative_error

T2I, GLIGEN = "t2i.safetensors", "gligen.safetensors"


@pytest.fixture(scope="module")
def larger_unet(load_unet):
    """A UNet in which FreeU, self-attention guidance and GLIGEN find the blocks that they change."""
    return load_unet("larger_unet.safetensors", extra_standins.larger_unet())


@pytest.fixture
def act(larger_unet, condition, sample):
    """Holds that a change, of the pair of conditionings or of the model, changes the latent, and that the words
    matter with it."""

    def act(change_pair=lambda *pair: pair, unpatched=larger_unet, patched=None, latent=None):
        pair, other = ((condition(text), condition("")) for text in (SHORT, "a dog in the snow"))
        plain = sample(*pair, latent, unpatched).samples
        changed, of_others = (
            sample(*change_pair(*words), latent, patched or unpatched).samples for words in (pair, other)
        )
        # More than rounding: some change the way of computing as well.
        assert relative_error(changed, plain) > 1e-3
        assert relative_error(changed, of_others) > 1e-3

    return act


# Adapters


def test_a_t2i_adapter(started, put, load_unet, act, caplog):
    unet = load_unet("two_blocks.safetensors", extra_standins.larger_unet(blocks=2))
    put("controlnet", T2I, extra_standins.t2i_adapter())
    (adapter,) = started.core.ControlNetLoader().load_controlnet(T2I)

    def apply(positive, negative):
        node = started.core.ControlNetApplyAdvanced()
        return node.apply_controlnet(positive, negative, adapter, torch.rand(1, 64, 64, 3), 1.0, 0.0, 1.0)

    act(apply, unpatched=unet)
    assert "could not be applied" not in caplog.text


@torch.inference_mode()
def test_gligen_places_a_thing(started, put, clip, fused, act):
    put("gligen", GLIGEN, extra_standins.gligen())
    (boxes,) = started.core.GLIGENLoader().load_gligen(GLIGEN)

    def place(positive, by=fused):
        return started.core.GLIGENTextBoxApply().append(positive, by, boxes, "a cat", 32, 32, 0, 0)[0]

    placed = place([[torch.zeros(1), {}]])[0][1]["gligen"][2][0]
    by_core = place([[torch.zeros(1), {}]], clip)[0][1]["gligen"][2][0]
    assert torch.equal(placed[0], by_core[0]) and placed[1:] == by_core[1:]
    act(lambda positive, negative: (place(positive), negative))


# Patches on the UNet


def free_u(model):
    from comfy_extras.nodes_freelunch import FreeU_V2  # noqa: PLC0415

    return FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2)[0]


def self_attention_guidance(model):
    from comfy_extras.nodes_sag import SelfAttentionGuidance  # noqa: PLC0415

    return SelfAttentionGuidance.execute(model, 0.5, 2.0)[0]


def perturbed_attention_guidance(model):
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance  # noqa: PLC0415

    return PerturbedAttentionGuidance.execute(model, 3.0)[0]


@pytest.mark.parametrize("patch", [free_u, self_attention_guidance, perturbed_attention_guidance])
def test_a_patched_unet(patch, larger_unet, act):
    act(patched=patch(larger_unet), latent=torch.zeros(1, 4, 16, 16))
