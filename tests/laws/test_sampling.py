"""LLM4GEN in core's samplers, with and without ControlNets: what is read, how often, and that it ends well."""

import pytest
import torch

import extra_standins
from in_process import SHORT
from sandbox.standin_models import CONTEXT_DIM

CONTROLNET = "sampled_controlnet.safetensors"
CHUNKS = "chunks of 77"
LONG = "a red house by the sea, " * 20  # 160 CLIP tokens
WHOLE_SPAN = pytest.param([(0.0, 1.0)], marks=pytest.mark.floor)
CLIP_TOKENS, ALL_TOKENS = (2, 77, CONTEXT_DIM), (2, 333, CONTEXT_DIM)  # of a positive and a negative together


@pytest.fixture(scope="module")
def controlnet(started, put):
    put("controlnet", CONTROLNET, extra_standins.controlnet())
    with torch.inference_mode():
        return started.core.ControlNetLoader().load_controlnet(CONTROLNET)[0]


# ControlNet


@pytest.fixture
def control(started, controlnet):
    """Apply ControlNet (Advanced), once or after another, and the shape of each context the nets are given."""
    seen = []

    def note(module, args, kwargs):
        seen.append(tuple(kwargs["context"].shape))

    watch = controlnet.control_model.register_forward_pre_hook(note, with_kwargs=True)
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(5))

    def control(positive, negative, *spans):
        node = started.core.ControlNetApplyAdvanced()
        for start, end in spans:
            positive, negative = node.apply_controlnet(positive, negative, controlnet, image, 1.0, start, end)
        return positive, negative

    yield control, seen
    watch.remove()


@pytest.mark.parametrize(("context", "tokens"), [("clip", CLIP_TOKENS), ("fused", ALL_TOKENS)])
@pytest.mark.parametrize("spans", [WHOLE_SPAN, [(0.0, 1.0), (0.0, 1.0)]], ids=["one net", "two nets"])
def test_a_controlnet_reads_clips_tokens_or_all_as_chosen(context, tokens, spans, condition, control, sample):
    apply, seen = control
    pair = [condition(text, controlnet_context=context) for text in (SHORT, "")]
    without, calls = sample(*pair)
    assert (calls, seen) == ([ALL_TOKENS] * 2, [])
    controlled, calls = sample(*apply(*pair, *spans))
    assert calls == [ALL_TOKENS] * 2, "one call of the UNet a step"
    assert seen == [tokens] * 2 * len(spans)
    assert not torch.equal(controlled, without)


def test_a_controlnet_reads_what_it_would_without_the_llm(
    clip, encode, condition, controlnet, control, sample
):
    apply, _ = control
    read = []
    watch = controlnet.control_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["context"]), with_kwargs=True
    )
    sample(*apply(condition(SHORT), condition(""), (0.0, 1.0)), steps=1)
    core = encode(clip), encode(clip, "")
    sample(*apply(*core, (0.0, 1.0)), steps=1)
    watch.remove()
    ours, cores = read
    assert torch.equal(ours, cores)


def test_a_controlnet_acts_between_start_and_end(condition, control, sample):
    apply, seen = control
    pair = condition(SHORT), condition("")
    early, calls = sample(*apply(*pair, (0.0, 0.4)), steps=4)
    assert calls == [ALL_TOKENS] * 4
    assert 0 < len(seen) < 4 and set(seen) == {CLIP_TOKENS}
    whole, _ = sample(*apply(*pair, (0.0, 1.0)), steps=4)
    assert not torch.equal(early, whole)


# Samplers and schedulers


def outcomes(names, sample, pair, option):
    """By name: True where it ends well with one UNet call for the pair, every time; else what went wrong."""
    found = {}
    for name in names:
        try:
            _, calls = sample(*pair, **{option: name})
            found[name] = set(calls) == {ALL_TOKENS} or calls
        except Exception as error:  # all failures are told together, by name
            found[name] = repr(error)
    return found


def test_every_sampler_ends_well_with_one_unet_call_for_the_pair(started, condition, sample):
    from comfy.samplers import KSampler  # noqa: PLC0415

    names = KSampler.SAMPLERS
    found = outcomes(names, sample, (condition(SHORT), condition("")), "sampler")
    assert len(names) > 40 and found == dict.fromkeys(names, True)


def test_every_scheduler_ends_well_with_one_unet_call_for_the_pair(started, condition, sample):
    from comfy.samplers import KSampler  # noqa: PLC0415

    names = KSampler.SCHEDULERS
    found = outcomes(names, sample, (condition(SHORT), condition("")), "scheduler")
    assert len(names) >= 9 and found == dict.fromkeys(names, True)


# Latents of other kinds, and prompts of unequal length


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(6))


def test_half_denoised_it_keeps_something_of_the_picture(condition, sample):
    picture = noise(1, 4, 8, 8)
    redrawn, calls = sample(condition(SHORT), condition(""), picture, steps=4, denoise=0.5)
    assert calls == [ALL_TOKENS] * 4
    assert not torch.equal(
        redrawn, sample(condition("a dog"), condition(""), picture, steps=4, denoise=0.5)[0]
    )
    assert not torch.equal(redrawn, sample(condition(SHORT), condition(""), steps=4, denoise=0.5)[0])


def test_a_batch_of_four_is_sampled_together_and_each_differs(condition, sample):
    pictures, calls = sample(condition(SHORT), condition(""), torch.zeros(4, 4, 8, 8))
    assert calls == [(8, 333, CONTEXT_DIM)] * 2
    assert len({tuple(picture.flatten().tolist()) for picture in pictures}) == 4


def test_a_picture_of_768_by_512(condition, sample):
    _, calls = sample(condition(SHORT), condition(""), torch.zeros(1, 4, 64, 96), steps=1)
    assert calls == [ALL_TOKENS]


@pytest.mark.parametrize("swapped", [False, True])
def test_prompts_of_unequal_length_cost_a_second_call_a_step(swapped, condition, sample):
    pair = [condition(text, long_prompt=CHUNKS) for text in (LONG, "")]
    lengths = {conditioning[0][0].shape[1] for conditioning in pair}
    _, calls = sample(*(reversed(pair) if swapped else pair))
    assert len(lengths) == 2 and len(calls) == 4
    assert set(calls) == {(1, length, CONTEXT_DIM) for length in lengths}


def test_prompts_of_two_lengths_side_by_side(condition, sample):
    """Both act: their predictions are averaged where they lie over one another."""
    long, short, negative = (condition(text, long_prompt=CHUNKS) for text in (LONG, SHORT, ""))
    assert long[0][0].shape[1] > short[0][0].shape[1] == 333
    both, calls = sample(long + short, negative)
    assert {length for _, length, _ in calls} == {long[0][0].shape[1], 333}
    assert not torch.equal(both, sample(long, negative)[0])
    assert not torch.equal(both, sample(short, negative)[0])
