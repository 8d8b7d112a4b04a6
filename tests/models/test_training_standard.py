"""States in a scale that an adapter learns from, which leaves what it computes as it is."""

from dataclasses import replace

import pytest
import torch

import tiny_training as training
from llm4gen.models.training.data import Example, TrainingData
from llm4gen.models.training.standard import MOST, Standard, some
from tiny import relative_error


def peculiar(text):
    """States as those of SmolLM2: a mean that all tokens share, and one dimension that is larger than all others."""
    states = text.llm.states.clone()
    states[:, 3] *= 40
    return replace(text, llm=replace(text.llm, states=states + 35))


@pytest.fixture
def texts():
    return [peculiar(training.text(number)) for number in range(4)]


def test_standardised_states_have_mean_0_and_deviation_1_in_each_dimension(texts):
    standard = Standard.of(texts)
    states = torch.cat([standard.apply(text).llm.states for text in texts])
    torch.testing.assert_close(states.mean(0), torch.zeros(training.LLM_WIDTH), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        states.std(0, unbiased=False), torch.ones(training.LLM_WIDTH), atol=1e-3, rtol=0
    )


def test_a_dimension_that_never_changes_becomes_0(texts):
    for text in texts:
        text.llm.states[:, 5] = 7.0
    standard = Standard.of(texts)
    states = standard.apply(texts[0]).llm.states
    assert states.isfinite().all()
    assert states[:, 5].abs().max() < 1e-5


def test_a_converted_adapter_computes_the_same_and_comes_back(texts):
    standard, adapter, converted = Standard.of(texts), training.adapter(seed=4), training.adapter(seed=5)
    weights = dict(adapter.state_dict())
    converted.load_state_dict(standard.into(weights))
    text = texts[0]
    with torch.no_grad():
        expected = adapter(text.clip[None], text.llm.states[None])
        found = converted(text.clip[None], standard.apply(text).llm.states[None])
    assert relative_error(found, expected) < 1e-4
    for name, weight in standard.out_of(converted.state_dict()).items():
        assert relative_error(weight, weights[name]) < 1e-5 or weights[name].norm() == 0, name


def test_an_adapter_learns_more_from_standardised_states():
    """It is to say each picture's mean colour, of which its caption alone tells."""
    texts = [
        replace(peculiar(training.text(number)), clip=torch.zeros(7, training.WIDTH)) for number in range(16)
    ]
    colours = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    out = torch.randn(training.WIDTH, 4, generator=torch.Generator().manual_seed(1)) / training.WIDTH**0.5
    losses = []
    for standard in (None, Standard.of(texts)):
        seen = [text if standard is None else standard.apply(text) for text in texts]
        latents = [colour[:, None, None].expand(4, 8, 8) for colour in colours]
        data = TrainingData([Example(*pair) for pair in zip(latents, seen, strict=True)], seen[0])
        adapter = training.adapter()

        def objective(batch, adapter=adapter):
            said = batch.context(adapter)[:, 7:].mean(1) @ out
            return (said - batch.latents.mean((2, 3))).square().mean(1)

        trainer = training.trainer(
            objective, adapter, data, steps=150, batch_size=16, learning_rate=1e-3, warm_up=10, ema=0.0
        )
        trainer.run()
        losses.append(trainer.losses[-1])
    raw, standardised = losses
    assert standardised < 0.5 * raw, losses


def test_of_many_captions_some_are_looked_at():
    assert list(some(3)) == [0, 1, 2]
    for count in (0, MOST, MOST + 1, 10 * MOST):
        assert len(some(count)) <= MOST
