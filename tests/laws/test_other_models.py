"""LLM4GEN works with merged, fine-tuned and inpainting checkpoints, and with its UNet's changes added to others."""

import pytest
import torch
from safetensors.torch import load_file

import extra_standins
import other_models
from in_process import SHORT
from other_models import FAMILIES, SDXL
from tiny import relative_error

LORA = "difference.safetensors"


pytestmark = FAMILIES


@pytest.fixture(scope="module")
def another(load_checkpoint, standin, family):
    if family == SDXL.name:
        return moved_model("another")
    return load_checkpoint("another.safetensors", extra_standins.another_checkpoint(standin))[0]


@pytest.fixture(scope="module")
def tuned(load_unet, standin, family):
    if family == SDXL.name:
        return moved_model("tuned")
    return load_unet("tuned.safetensors", extra_standins.tuned_unet(standin))


def moved_model(seed):
    """The model of SDXL's kind with other weights near its own."""
    model = other_models.make_model(SDXL)
    unet = model.model.diffusion_model
    unet.load_state_dict(extra_standins.moved(unet.state_dict(), seed))
    return model


@pytest.fixture(scope="module")
def latent(condition, sample):
    """A function that gives the latent that a model samples for a prompt."""
    return lambda model, text=SHORT: sample(condition(text), condition(""), model=model).samples


def merged(model, another):
    from comfy_extras.nodes_model_merging import ModelMergeSimple  # noqa: PLC0415

    return ModelMergeSimple().merge(model, another, 0.4)[0]


def merged_by_blocks(model, another):
    from comfy_extras.nodes_model_merging import ModelMergeBlocks  # noqa: PLC0415

    return ModelMergeBlocks().merge(model, another, input=1.0, middle=0.5, out=0.0)[0]


@pytest.mark.parametrize("merge", [merged, merged_by_blocks])
def test_a_merged_model_differs_from_both_models_and_depends_on_the_prompt(merge, model, another, latent):
    result = latent(merge(model, another))
    for other in (latent(model), latent(another), latent(merge(model, another), "a dog in the snow")):
        assert not torch.equal(result, other)


# The published adapter was trained with a fine-tuned UNet: its difference from the base can be added to any checkpoint


def difference(tuned, base, strength=1.0):
    from comfy_extras.nodes_model_merging import ModelSubtract  # noqa: PLC0415

    return ModelSubtract().merge(tuned, base, strength)[0]


def with_difference(model, tuned, base, strength=1.0):
    from comfy_extras.nodes_model_merging import ModelAdd  # noqa: PLC0415

    return ModelAdd().merge(model, difference(tuned, base, strength))[0]


def test_the_base_with_the_difference_equals_the_tuned_unet_within_rounding(model, tuned, latent):
    expected = latent(tuned)
    assert relative_error(latent(with_difference(model, tuned, model)), expected) <= 2e-3
    assert relative_error(latent(model), expected) > 2e-2


def test_the_difference_is_added_with_the_chosen_strength(model, tuned, another, latent):
    whole = latent(with_difference(another, tuned, model))
    half, none = (latent(with_difference(another, tuned, model, strength)) for strength in (0.5, 0.0))
    assert relative_error(none, latent(another)) <= 2e-3
    assert 2e-3 < relative_error(half, whole) < relative_error(none, whole)


@torch.inference_mode()
def test_the_difference_as_a_lora_brings_a_checkpoint_nearer_to_the_full_difference(
    started, model, tuned, another, latent, put, tmp_path, monkeypatch
):
    from comfy_extras.nodes_lora_extract import LoraSave  # noqa: PLC0415

    monkeypatch.setattr(started.folders, "output_directory", str(tmp_path))
    LoraSave.execute("loras/llm4gen", 64, "standard", True, difference(tuned, model))
    (file,) = tmp_path.glob("loras/llm4gen_*.safetensors")
    put("loras", LORA, load_file(file))
    (with_lora,) = started.core.LoraLoaderModelOnly().load_lora_model_only(another, LORA, 1.0)
    expected = latent(with_difference(another, tuned, model))
    assert relative_error(latent(with_lora), expected) < relative_error(latent(another), expected)


# Inpainting, and VAE nodes that work in tiles


@pytest.mark.parametrize("channels", [4, 9])
@torch.inference_mode()
def test_inpainting_depends_on_the_prompt_and_with_nine_channels_on_the_mask(
    channels, started, model, checkpoint, load_checkpoint, standin, condition, sample, family, width
):
    vae = checkpoint[2]
    if channels == 9 and family == SDXL.name:
        model = other_models.make_model(SDXL, in_channels=9)
    elif channels == 9:
        model = load_checkpoint("inpainting.safetensors", extra_standins.inpainting_checkpoint(standin))[0]
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(5))
    left = torch.zeros(1, 64, 64)
    left[:, :, :32] = 1.0

    def inpainted(text, mask):
        node = started.core.InpaintModelConditioning()
        *pair, latent = node.encode(condition(text), condition(""), picture, vae, mask, noise_mask=False)
        return sample(*pair, latent["samples"], model=model)

    latent, calls = inpainted(SHORT, left)
    assert calls == [(2, 333, width)] * 2
    assert not torch.equal(latent, inpainted("a dog in the snow", left).samples)
    # Only a model with nine channels has the mask among its inputs.
    assert torch.equal(latent, inpainted(SHORT, 1 - left).samples) == (channels == 4)


@torch.inference_mode()
def test_a_latent_is_decoded_and_encoded_in_tiles_and_sampled_again(started, checkpoint, condition, sample):
    pair, vae = (condition(SHORT), condition("")), checkpoint[2]
    latent = {"samples": sample(*pair, torch.zeros(1, 4, 8, 12)).samples}
    (pixels,) = started.core.VAEDecodeTiled().decode(vae, latent, 64, 16)
    assert pixels.shape == (1, 64, 96, 3) and pixels.isfinite().all() and pixels.std() > 0
    (latent,) = started.core.VAEEncodeTiled().encode(vae, pixels, 64, 16)
    result = sample(*pair, latent["samples"], denoise=0.5).samples
    other = sample(condition("a dog in the snow"), pair[1], latent["samples"], denoise=0.5).samples
    assert not torch.equal(result, other)
