"""LLM4GEN works in core's samplers and with ControlNets, with one UNet call a step."""

import pytest
import torch

import extra_standins
from in_process import SHORT
from other_models import FAMILIES, SDXL, make_controlnet

CONTROLNET = "sampled_controlnet.safetensors"
CHUNKS = "chunks of 77"
LONG = "a red house by the sea, " * 20  # 160 CLIP tokens
WHOLE_SPAN = pytest.param([(0.0, 1.0)], marks=pytest.mark.floor)
pytestmark = FAMILIES


@pytest.fixture
def clip_tokens(width):
    """The shape of what a positive and a negative prompt in one batch give a ControlNet by default."""
    return (2, 77, width)


@pytest.fixture
def all_tokens(width):
    """The shape of the context of a positive and a negative prompt in one batch."""
    return (2, 333, width)


@pytest.fixture(scope="module")
def controlnet(started, put, family):
    if family == SDXL.name:
        return make_controlnet(SDXL)
    put("controlnet", CONTROLNET, extra_standins.controlnet())
    with torch.inference_mode():
        return started.core.ControlNetLoader().load_controlnet(CONTROLNET)[0]


# ControlNet


@pytest.fixture
def control(started, controlnet):
    """A function that applies Apply ControlNet (Advanced) once for each (start, end), and a list of the shapes of all
    contexts that the ControlNet has been given."""
    shapes = []

    def record(module, args, kwargs):
        shapes.append(tuple(kwargs["context"].shape))

    hook = controlnet.control_model.register_forward_pre_hook(record, with_kwargs=True)
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(5))

    def control(positive, negative, *spans):
        node = started.core.ControlNetApplyAdvanced()
        for start, end in spans:
            positive, negative = node.apply_controlnet(positive, negative, controlnet, image, 1.0, start, end)
        return positive, negative

    yield control, shapes
    hook.remove()


@pytest.mark.parametrize("context", ["clip", "fused"])
@pytest.mark.parametrize("spans", [WHOLE_SPAN, [(0.0, 1.0), (0.0, 1.0)]], ids=["one net", "two nets"])
def test_a_controlnet_gets_clips_tokens_or_all_tokens_as_chosen(
    context, spans, condition, control, sample, clip_tokens, all_tokens
):
    apply, shapes = control
    tokens = clip_tokens if context == "clip" else all_tokens
    pair = [condition(text, controlnet_context=context) for text in (SHORT, "")]
    uncontrolled, calls = sample(*pair)
    assert (calls, shapes) == ([all_tokens] * 2, [])
    controlled, calls = sample(*apply(*pair, *spans))
    assert calls == [all_tokens] * 2, "the UNet is not called once a step"
    assert shapes == [tokens] * 2 * len(spans)
    assert not torch.equal(controlled, uncontrolled)


def test_a_controlnet_gets_the_same_context_as_without_llm4gen(
    clip, encode, condition, controlnet, control, sample
):
    apply, _ = control
    contexts = []
    hook = controlnet.control_model.register_forward_pre_hook(
        lambda module, args, kwargs: contexts.append(kwargs["context"]), with_kwargs=True
    )
    sample(*apply(condition(SHORT), condition(""), (0.0, 1.0)), steps=1)
    core = encode(clip), encode(clip, "")
    sample(*apply(*core, (0.0, 1.0)), steps=1)
    hook.remove()
    ours, cores = contexts
    assert torch.equal(ours, cores)


def test_a_controlnet_runs_only_between_its_start_and_end(
    condition, control, sample, clip_tokens, all_tokens
):
    apply, shapes = control
    pair = condition(SHORT), condition("")
    early, calls = sample(*apply(*pair, (0.0, 0.4)), steps=4)
    assert calls == [all_tokens] * 4
    assert 0 < len(shapes) < 4 and set(shapes) == {clip_tokens}
    whole, _ = sample(*apply(*pair, (0.0, 1.0)), steps=4)
    assert not torch.equal(early, whole)


# Samplers and schedulers


def outcomes(names, sample, pair, option, all_tokens):
    """name: True where sampling succeeds with one UNet call a step for both prompts; otherwise the error or the shapes
    of the calls."""
    results = {}
    for name in names:
        try:
            _, calls = sample(*pair, **{option: name})
            results[name] = set(calls) == {all_tokens} or calls
        except Exception as error:  # one failing test reports all failures, by name
            results[name] = repr(error)
    return results


def test_every_sampler_succeeds_with_one_unet_call_for_both_prompts(started, condition, sample, all_tokens):
    from comfy.samplers import KSampler  # noqa: PLC0415

    names = KSampler.SAMPLERS
    results = outcomes(names, sample, (condition(SHORT), condition("")), "sampler", all_tokens)
    assert len(names) > 40 and results == dict.fromkeys(names, True)


def test_every_scheduler_succeeds_with_one_unet_call_for_both_prompts(started, condition, sample, all_tokens):
    from comfy.samplers import KSampler  # noqa: PLC0415

    names = KSampler.SCHEDULERS
    results = outcomes(names, sample, (condition(SHORT), condition("")), "scheduler", all_tokens)
    assert len(names) >= 9 and results == dict.fromkeys(names, True)


# Other latents, and prompts of unequal length


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(6))


def test_with_denoise_0_5_both_the_prompt_and_the_given_latent_change_the_result(
    condition, sample, all_tokens
):
    latent = noise(1, 4, 8, 8)
    result, calls = sample(condition(SHORT), condition(""), latent, steps=4, denoise=0.5)
    assert calls == [all_tokens] * 4
    assert not torch.equal(result, sample(condition("a dog"), condition(""), latent, steps=4, denoise=0.5)[0])
    assert not torch.equal(result, sample(condition(SHORT), condition(""), steps=4, denoise=0.5)[0])


def test_a_batch_of_four_is_sampled_in_one_call_and_gives_four_different_latents(condition, sample, width):
    latents, calls = sample(condition(SHORT), condition(""), torch.zeros(4, 4, 8, 8))
    assert calls == [(8, 333, width)] * 2
    assert len({tuple(latent.flatten().tolist()) for latent in latents}) == 4


def test_a_picture_of_768_by_512_pixels_can_be_sampled(condition, sample, all_tokens):
    _, calls = sample(condition(SHORT), condition(""), torch.zeros(1, 4, 64, 96), steps=1)
    assert calls == [all_tokens]


@pytest.mark.parametrize("swapped", [False, True])
def test_prompts_of_unequal_length_need_a_second_unet_call_a_step(swapped, condition, sample, width):
    pair = [condition(text, long_prompt=CHUNKS) for text in (LONG, "")]
    lengths = {conditioning[0][0].shape[1] for conditioning in pair}
    _, calls = sample(*(reversed(pair) if swapped else pair))
    assert len(lengths) == 2 and len(calls) == 4
    assert set(calls) == {(1, length, width) for length in lengths}


def test_combined_prompts_of_unequal_length_both_change_the_latent(condition, sample):
    """ComfyUI averages their predictions."""
    long, short, negative = (condition(text, long_prompt=CHUNKS) for text in (LONG, SHORT, ""))
    assert long[0][0].shape[1] > short[0][0].shape[1] == 333
    both, calls = sample(long + short, negative)
    assert {length for _, length, _ in calls} == {long[0][0].shape[1], 333}
    assert not torch.equal(both, sample(long, negative)[0])
    assert not torch.equal(both, sample(short, negative)[0])
