"""The entity-guided loss, from attention maps to the tokens that are seen."""

from contextlib import contextmanager

import pytest
import torch

import tiny_training as training
from llm4gen.models.training.data import EncodedText, Example, TrainingData, batches
from llm4gen.models.training.drawing import draw_text
from llm4gen.models.training.entity import EntityGuided, attention_to, distances, shares_of
from llm4gen.models.training.settings import Drops
from tiny import relative_error

CPU = torch.device("cpu")
RED_BALL, BLUE_CUBE = ((1, 8), (2, 9, 10)), ((4,), (5, 12))  # seven of CLIP's tokens come before the LLM's


def with_pairs(text, *pairs):
    return EncodedText(text.clip, text.llm, text.teacher, pairs)


def drawn(*texts):
    """A batch of the texts."""
    from llm4gen.models.training.data import Drawn  # noqa: PLC0415

    latent = torch.zeros(4, 8, 8)
    examples = [Drawn(latent, text.clip, text.llm, None, latent, 500, text.pairs) for text in texts]
    (batch,) = batches(examples, CPU)
    return batch


def test_words_that_look_at_the_same_places_have_distance_0_and_at_others_1():
    """Three places; three pairs: equal but for their size, apart, and half of one in common."""
    maps = torch.tensor(
        [[[1, 2], [1, 0], [1, 1]], [[1, 2], [0, 3], [1, 0]], [[0, 0], [0, 1], [0, 0]]], dtype=torch.float32
    )
    found = distances(maps.flatten(1)[None])
    assert found.tolist() == [[0.0, 1.0, 0.5]]


def test_a_words_map_is_the_mean_over_its_tokens():
    shares, counts = shares_of([[RED_BALL, BLUE_CUBE], [], [BLUE_CUBE]], 14, CPU)
    assert shares.shape == (3, 14, 4)
    assert counts.tolist() == [2, 0, 1]
    attention = torch.rand(3, 5, 14)
    expected = attention[0][:, [2, 9, 10]].mean(1)
    torch.testing.assert_close((attention @ shares)[0, :, 1], expected)
    assert not shares[1].any()
    assert not shares[2, :, 2:].any()


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    query, key = torch.randn(2, 6, 32), torch.randn(2, 9, 32)
    weights = attention_to(query, key, heads=4)
    value = torch.randn(2, 9, 32)
    split = [x.unflatten(-1, (4, 8)).transpose(1, 2) for x in (query, key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(*split)
    assert relative_error(weights @ split[2], expected) < 1e-6


def test_the_loss_is_the_objectives_and_the_mean_over_layers_and_pairs():
    """An example without pairs keeps the objective's loss."""
    text = training.text(1)
    batch = drawn(with_pairs(text, RED_BALL, BLUE_CUBE), with_pairs(text), with_pairs(text, BLUE_CUBE))
    maps = [torch.rand(3, 4, batch.tokens), torch.rand(3, 16, batch.tokens)]
    given = []

    @contextmanager
    def watch(shares):
        given.append(shares)
        yield [one @ shares for one in maps]

    losses = EntityGuided(lambda _: torch.tensor([1.0, 2.0, 3.0]), watch, weight=0.5)(batch)

    def distance(attention, pair):
        words = [attention[:, list(places)].mean(1) for places in pair]
        one, other = (word / word.sum() for word in words)
        return (one - other).abs().sum() / 2

    def mean(example, *pairs):
        return (
            sum(distance(layer[example], pair) for layer in maps for pair in pairs) / len(maps) / len(pairs)
        )

    expected = [1 + 0.5 * mean(0, RED_BALL, BLUE_CUBE), 2.0, 3 + 0.5 * mean(2, BLUE_CUBE)]
    assert losses.tolist() == pytest.approx([float(one) for one in expected])
    assert len(given) == 1


def test_what_is_dropped_has_no_words():
    """CLIP's empty text may have fewer chunks, and the LLM's tokens then come sooner."""
    text = with_pairs(training.text(1), RED_BALL, BLUE_CUBE)
    short = training.text(2)
    empty = EncodedText(short.clip[:4], short.llm)
    data = TrainingData([Example(torch.zeros(4, 8, 8), text)], empty)

    def pairs(**rates):
        return draw_text(data, data.examples[0], Drops(**{"text": 0.0, "clip": 0.0} | rates), 0.5).pairs

    assert pairs() == (RED_BALL, BLUE_CUBE)
    assert pairs(text=1.0) == ()
    assert pairs(llm=1.0) == (((1,), (2,)), ((4,), (5,)))
    assert pairs(clip=1.0) == (((5,), (6, 7)),)
    assert pairs(clip_tokens=1.0) == (((1,), (2, 3)),)


def test_gradients_reach_what_the_attention_is_computed_from():
    torch.manual_seed(0)
    query = torch.randn(1, 6, 32, requires_grad=True)
    batch = drawn(with_pairs(training.text(1), RED_BALL))
    key = torch.randn(1, batch.tokens, 32, requires_grad=True)

    @contextmanager
    def watch(shares):
        yield [attention_to(query, key, 4).mean(1) @ shares]

    EntityGuided(lambda _: torch.zeros(1), watch, 1.0)(batch).sum().backward()
    assert query.grad.norm() > 0
    assert key.grad[0, list(RED_BALL[0])].norm() > 0
