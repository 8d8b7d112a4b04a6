"""Core's T2I-Adapter, GLIGEN and UNet patches change the latent with LLM4GEN, and the prompt still matters."""

import pytest
import torch

import extra_standins
from in_process import SHORT
from other_models import ALL_BLOCKS, FAMILIES, SD15, SDXL, make_model
from tiny import relative_error

T2I, GLIGEN = "t2i.safetensors", "gligen.safetensors"
KINDS = {kind.name: kind for kind in (SD15, SDXL)}


@pytest.fixture(scope="module")
def unet(family):
    """A UNet in which FreeU, self-attention guidance and GLIGEN find the blocks that they change."""
    return make_model(KINDS[family])


@pytest.fixture
def assert_it_acts(unet, condition, sample):
    """A function that asserts: `change_pair` or the patched model changes the latent, and with it another prompt gives
    another latent. `change_pair` gets the positive and the negative conditioning."""

    def assert_it_acts(change_pair=lambda *pair: pair, unpatched=unet, patched=None, latent=None):
        pair, other_pair = ((condition(text), condition("")) for text in (SHORT, "a dog in the snow"))
        plain = sample(*pair, latent, model=unpatched).samples
        changed, changed_other = (
            sample(*change_pair(*each), latent, model=patched or unpatched).samples
            for each in (pair, other_pair)
        )
        # More than rounding, because some patches also change the order of computation.
        assert relative_error(changed, plain) > 1e-3
        assert relative_error(changed, changed_other) > 1e-3

    return assert_it_acts


# Adapters


@FAMILIES
def test_a_t2i_adapter_changes_the_latent(family, started, put, assert_it_acts, caplog):
    kind = KINDS[family]
    put("controlnet", T2I, extra_standins.t2i_adapter(kind))
    (adapter,) = started.core.ControlNetLoader().load_controlnet(T2I)

    def apply(positive, negative):
        node = started.core.ControlNetApplyAdvanced()
        return node.apply_controlnet(positive, negative, adapter, torch.rand(1, 64, 64, 3), 1.0, 0.0, 1.0)

    assert_it_acts(apply, unpatched=make_model(kind, **ALL_BLOCKS[family]))
    assert "could not be applied" not in caplog.text


@torch.inference_mode()
def test_gligen_changes_the_latent_and_gets_the_same_embedding_as_in_core(
    started, put, clip, fused, assert_it_acts
):
    put("gligen", GLIGEN, extra_standins.gligen())
    (gligen,) = started.core.GLIGENLoader().load_gligen(GLIGEN)

    def add_box(positive, clip=fused):
        return started.core.GLIGENTextBoxApply().append(positive, clip, gligen, "a cat", 32, 32, 0, 0)[0]

    box = add_box([[torch.zeros(1), {}]])[0][1]["gligen"][2][0]
    core_box = add_box([[torch.zeros(1), {}]], clip)[0][1]["gligen"][2][0]
    assert torch.equal(box[0], core_box[0]) and box[1:] == core_box[1:]
    assert_it_acts(lambda positive, negative: (add_box(positive), negative))


# Patches of the UNet


def free_u(model):
    from comfy_extras.nodes_freelunch import FreeU_V2  # noqa: PLC0415

    return FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2)[0]


def self_attention_guidance(model):
    from comfy_extras.nodes_sag import SelfAttentionGuidance  # noqa: PLC0415

    return SelfAttentionGuidance.execute(model, 0.5, 2.0)[0]


def perturbed_attention_guidance(model):
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance  # noqa: PLC0415

    return PerturbedAttentionGuidance.execute(model, 3.0)[0]


@FAMILIES
@pytest.mark.parametrize("patch", [free_u, self_attention_guidance, perturbed_attention_guidance])
def test_a_patch_of_the_unet_changes_the_latent(patch, unet, assert_it_acts):
    assert_it_acts(patched=patch(unet), latent=torch.zeros(1, 4, 16, 16))
