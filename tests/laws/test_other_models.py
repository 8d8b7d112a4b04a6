"""LLM4GEN over other models than the plain checkpoint: merged, tuned, carried over, made for inpainting."""

import pytest
import torch
from safetensors.torch import load_file

import extra_standins
from in_process import SHORT
from tiny import relative_error

LORA = "carried.safetensors"


@pytest.fixture(scope="module")
def another(load_checkpoint, standin):
    return load_checkpoint("another.safetensors", extra_standins.another_checkpoint(standin))[0]


@pytest.fixture(scope="module")
def tuned(load_unet, standin):
    return load_unet("tuned.safetensors", extra_standins.tuned_unet(standin))


@pytest.fixture(scope="module")
def latent(condition, sample):
    """What a model makes of a prompt."""
    return lambda model, text=SHORT: sample(condition(text), condition(""), model=model).samples


def merged(model, another):
    from comfy_extras.nodes_model_merging import ModelMergeSimple  # noqa: PLC0415

    return ModelMergeSimple().merge(model, another, 0.4)[0]


def merged_by_blocks(model, another):
    from comfy_extras.nodes_model_merging import ModelMergeBlocks  # noqa: PLC0415

    return ModelMergeBlocks().merge(model, another, input=1.0, middle=0.5, out=0.0)[0]


@pytest.mark.parametrize("merge", [merged, merged_by_blocks])
def test_a_merged_model_is_neither_and_the_words_act_on_it(merge, model, another, latent):
    result = latent(merge(model, another))
    for other in (latent(model), latent(another), latent(merge(model, another), "a dog in the snow")):
        assert not torch.equal(result, other)


# The published adapter was tuned with its UNet: the difference to its base, carried to another checkpoint


def difference(tuned, base, strength=1.0):
    from comfy_extras.nodes_model_merging import ModelSubtract  # noqa: PLC0415

    return ModelSubtract().merge(tuned, base, strength)[0]


def carried(tuned, base, to, strength=1.0):
    from comfy_extras.nodes_model_merging import ModelAdd  # noqa: PLC0415

    return ModelAdd().merge(to, difference(tuned, base, strength))[0]


def test_tuned_less_base_and_base_again_is_tuned_within_rounding(model, tuned, latent):
    wanted = latent(tuned)
    assert relative_error(latent(carried(tuned, model, model)), wanted) <= 2e-3
    assert relative_error(latent(model), wanted) > 2e-2


def test_the_difference_is_carried_at_the_strength_that_was_chosen(model, tuned, another, latent):
    whole = latent(carried(tuned, model, another))
    half, none = (latent(carried(tuned, model, another, strength)) for strength in (0.5, 0.0))
    assert relative_error(none, latent(another)) <= 2e-3
    assert 2e-3 < relative_error(half, whole) < relative_error(none, whole)


@torch.inference_mode()
def test_a_lora_made_of_the_difference_brings_any_checkpoint_nearer(
    started, model, tuned, another, latent, put, tmp_path, monkeypatch
):
    from comfy_extras.nodes_lora_extract import LoraSave  # noqa: PLC0415

    monkeypatch.setattr(started.folders, "output_directory", str(tmp_path))
    LoraSave.execute("loras/llm4gen", 64, "standard", True, difference(tuned, model))
    (file,) = tmp_path.glob("loras/llm4gen_*.safetensors")
    put("loras", LORA, load_file(file))
    (with_lora,) = started.core.LoraLoaderModelOnly().load_lora_model_only(another, LORA, 1.0)
    wanted = latent(carried(tuned, model, another))
    assert relative_error(latent(with_lora), wanted) < relative_error(latent(another), wanted)


# Inpainting and tiles


@pytest.mark.parametrize("channels", [4, 9])
@torch.inference_mode()
def test_inpainting(channels, started, checkpoint, load_checkpoint, standin, condition, sample):
    model, _, vae = checkpoint
    if channels == 9:
        model = load_checkpoint("inpainting.safetensors", extra_standins.inpainting_checkpoint(standin))[0]
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(5))
    left = torch.zeros(1, 64, 64)
    left[:, :, :32] = 1.0

    def painted(text, mask):
        node = started.core.InpaintModelConditioning()
        *pair, latent = node.encode(condition(text), condition(""), picture, vae, mask, noise_mask=False)
        return sample(*pair, latent["samples"], model=model)

    latent, calls = painted(SHORT, left)
    assert calls == [(2, 333, 768)] * 2
    assert not torch.equal(latent, painted("a dog in the snow", left).samples)
    # Only a model with nine channels looks at the mask itself.
    assert torch.equal(latent, painted(SHORT, 1 - left).samples) == (channels == 4)


@torch.inference_mode()
def test_a_picture_by_tiles(started, checkpoint, condition, sample):
    pair, vae = (condition(SHORT), condition("")), checkpoint[2]
    latent = {"samples": sample(*pair, torch.zeros(1, 4, 8, 12)).samples}
    (pixels,) = started.core.VAEDecodeTiled().decode(vae, latent, 64, 16)
    assert pixels.shape == (1, 64, 96, 3) and pixels.isfinite().all() and pixels.std() > 0
    (latent,) = started.core.VAEEncodeTiled().encode(vae, pixels, 64, 16)
    redrawn = sample(*pair, latent["samples"], denoise=0.5).samples
    other = sample(condition("a dog in the snow"), pair[1], latent["samples"], denoise=0.5).samples
    assert not torch.equal(redrawn, other)
