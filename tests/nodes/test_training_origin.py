"""A training finds its kept state again after a restart, also where a LoRA or a merge is on the MODEL."""

import pytest
import torch

KEY = "diffusion_model.input_blocks.0.0.weight"


@pytest.fixture
def origin(started):
    from llm4gen.nodes.training.record import origin  # noqa: PLC0415

    return origin


def with_lora(model, seed, strength):
    """The MODEL after a LoRA was loaded from a file anew, as after a restart."""
    from comfy.sd import load_lora_for_models  # noqa: PLC0415

    generator = torch.Generator().manual_seed(seed)
    shape = model.model.diffusion_model.input_blocks[1][1].proj_in.weight.shape
    name = "diffusion_model.input_blocks.1.1.proj_in"
    lora = {
        f"{name}.lora_up.weight": torch.randn(shape[0], 2, generator=generator),
        f"{name}.lora_down.weight": torch.randn(2, shape[1:].numel(), generator=generator),
        f"{name}.alpha": torch.tensor(2.0),
    }
    return load_lora_for_models(model, None, lora, strength, 0)[0]


def merged(model, ratio):
    """The MODEL after core's ModelMergeSimple with itself."""
    from comfy_extras.nodes_model_merging import ModelMergeSimple  # noqa: PLC0415

    with torch.inference_mode():
        return ModelMergeSimple().merge(model, with_lora(model, 5, 0.5), ratio)[0]


def test_what_is_patched_on_a_model_is_told_by_its_content(origin, model):
    first, again = with_lora(model, 0, 0.5), with_lora(model, 0, 0.5)
    assert first.patches and first.patches_uuid != again.patches_uuid
    assert origin(first) == origin(again)
    both = with_lora(first, 1, 0.5)
    others = [
        model,
        with_lora(model, 0, 0.6),
        with_lora(model, 1, 0.5),
        both,
        merged(model, 0.3),
        merged(model, 0.4),
    ]
    assert len({origin(one) for one in [first, *others]}) == 1 + len(others)
    assert origin(merged(model, 0.3)) == origin(merged(model, 0.3))


def test_patches_of_unknown_kinds_are_told_by_their_name(origin, model):
    """So they are never taken for others; a training with them starts anew after a restart."""

    def patched(factor):
        changed = model.clone()
        changed.add_patches({KEY: (torch.zeros(()), lambda weight: weight * factor)})
        return changed

    assert origin(patched(1)) != origin(patched(2)) != origin(patched(2))
