"""The training loop: what it learns, what its settings do, and where it starts."""

import copy
import math
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

import tiny_training as training
from llm4gen.models.cross_adapter import CrossAdapterConfig
from llm4gen.models.errors import TrainingDiverged, WrongTraining
from llm4gen.models.training.checkpointing import recomputed
from llm4gen.models.training.data import TrainingData, batches
from llm4gen.models.training.denoise import Denoise
from llm4gen.models.training.drawing import draw_step, shuffled
from llm4gen.models.training.ema import EMA
from llm4gen.models.training.match import Match
from llm4gen.models.training.quiet_start import QuietStart, begin_quietly
from llm4gen.models.training.ranks import ALONE
from llm4gen.models.training.settings import Drops, Settings
from llm4gen.models.training.start import adapter_from, new_adapter
from llm4gen.models.training.trainer import rate_factor
from tiny import equal, weights_of

CPU = torch.device("cpu")


def denoise(adapter, unet=None):
    return Denoise(training.predictor(unet or training.unet()), training.schedule(), adapter)


def mean(losses):
    return sum(losses) / len(losses)


# What it learns


def test_adapter_and_unet_together_overfit_eight_pictures():
    """The loss falls below a tenth of its start. The UNet is random, so the adapter alone could not do it."""
    adapter, unet = training.adapter(), training.SmallUNet(64)
    learns = dict(unet.requires_grad_(True).named_parameters())
    objective = Denoise(unet, training.schedule(), adapter)
    rates = {
        "learning_rate": 5e-3,
        "unet_learning_rate": 5e-3,
        "decay": "cosine",
        "batch_size": 8,
        "ema": 0.0,
    }
    trainer = training.trainer(objective, adapter, training.data(8), learns, steps=150, warm_up=10, **rates)
    trainer.run()
    assert mean(trainer.losses[-20:]) <= mean(trainer.losses[:3]) / 10


def test_the_adapter_alone_brings_the_loss_down():
    adapter = training.adapter()
    objective = Denoise(training.SmallUNet(), training.schedule(), adapter)
    trainer = training.trainer(
        objective, adapter, training.data(2), steps=60, batch_size=8, learning_rate=3e-3
    )
    trainer.run()
    assert mean(trainer.losses[-10:]) <= 0.9 * mean(trainer.losses[:5])


def test_a_quiet_start_changes_little_for_prompts_and_noise_that_it_has_not_seen():
    """The UNet is random and its 7 tokens of CLIP meet 12 of the LLM, so another prompt changes it by a fifth."""
    adapter, unet = training.adapter(), training.SmallUNet()
    objective = QuietStart(unet, training.schedule(), adapter)
    others = training.spoken(8, first=1000)

    def change():
        (batch,) = [batches(one, CPU) for one in draw_step(others, Settings(batch_size=64, seed=5), 1000, 0)]
        with torch.no_grad():
            return mean([loss.sqrt() for part in batch for loss in objective(part)]).item()

    new = change()
    begin_quietly(adapter, others.empty.clip)
    begun = change()
    rates = {"learning_rate": 3e-4, "decay": "cosine", "batch_size": 8, "ema": 0.0, "warm_up": 10}
    training.trainer(objective, adapter, training.spoken(64), steps=100, **rates).run()
    assert new > 0.2 and begun < 0.035 and change() < begun


def test_what_begins_quietly_gives_the_mean_of_clips_tokens_and_learns_with_all_of_its_weights():
    adapter, clip = training.adapter(), 3 * training.spoken(1).examples[0].text.clip + 0.5
    begin_quietly(adapter, clip)
    with torch.no_grad():
        tokens = adapter(clip[None], torch.zeros(1, 4, training.LLM_WIDTH))[0]
    torch.testing.assert_close(tokens, clip.mean(0).expand(4, -1), rtol=1e-4, atol=1e-4)
    trainer = training.trainer(denoise(adapter), adapter, training.spoken(4), steps=3, learning_rate=1e-3)
    before = weights_of(adapter)
    trainer.run()
    assert [name for name, weight in weights_of(adapter).items() if torch.equal(weight, before[name])] == []


def test_match_brings_a_student_nearer_to_its_teacher_than_no_adapter_is():
    """The teacher reads the captions in states of its own, through an adapter of its own."""
    unet = training.SmallUNet()
    teacher, student = training.adapter(seed=7), training.adapter(seed=1)
    data = taught(training.data(2), teacher)
    match = Match(unet, unet, training.schedule(), student, gamma=0.0)
    trainer = training.trainer(match, student, data, steps=100, batch_size=4, learning_rate=3e-3, ema=0.0)
    trainer.run()
    without = training.trainer(match, student, data, steps=10, batch_size=4, drops=Drops(0.0, 1.0, 0.0))
    without.run()
    assert mean(trainer.losses[-20:]) <= 0.2 * mean(without.losses)


def taught(data, teacher):
    """The same data with the contexts of a teacher, whose LLM's states are others."""

    def teach(text, seed):
        other = training.text(seed).llm
        states = other.rows.expand(other.states)
        with torch.no_grad():
            fused = teacher(text.clip[None], states[None])[0]
        return type(text)(text.clip, text.llm, torch.cat([text.clip, fused]))

    examples = [type(e)(e.latent, teach(e.text, 50 + i)) for i, e in enumerate(data.examples)]
    return TrainingData(examples, teach(data.empty, 70))


# What its settings do


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    results = []
    for seed in (3, 3, 4):
        adapter = training.adapter()
        trainer = training.trainer(denoise(adapter), adapter, steps=3, seed=seed)
        trainer.run()
        results.append(trainer.result("adapter"))
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


def test_gradients_are_added_up_as_if_all_examples_were_one_batch():
    """The captions have unequal lengths, so that a batch is computed in several parts."""
    results = []
    for batch_size, accumulate in ((6, 1), (2, 3), (1, 6)):
        adapter, data = training.adapter(), training.data(4, drop_padding=True)
        objective = Denoise(training.SmallUNet(), training.schedule(), adapter)
        trainer = training.trainer(
            objective, adapter, data, steps=2, batch_size=batch_size, accumulate=accumulate
        )
        trainer.run()
        results.append((trainer.losses, trainer.result("adapter")))
    (losses, weights), *others = results
    for other_losses, other_weights in others:
        assert losses == pytest.approx(other_losses, rel=1e-5)
        for name, weight in weights.items():
            # AdamW divides by the gradients' size, which is rounding alone where the true gradient is 0.
            if name != "key.bias":
                torch.testing.assert_close(weight, other_weights[name], rtol=1e-3, atol=1e-5)


def test_processes_that_share_a_batch_learn_what_one_process_does():
    """In some steps, one of them sees no example with the LLM's half, and so has no gradient for the adapter."""
    count, drops = 3, Drops(0.0, 0.6, 0.1)
    barrier, given = threading.Barrier(count), [None] * count

    def trainer(ranks, batch_size):
        adapter, unet = training.adapter(), training.SmallUNet()
        learns = dict(unet.requires_grad_(True).named_parameters())
        objective, settings = (
            Denoise(unet, training.schedule(), adapter),
            {"learning_rate": 1e-3, "drops": drops},
        )
        made = training.trainer(
            objective, adapter, training.data(4), learns, batch_size=batch_size, **settings
        )
        made.ranks = ranks
        return made

    found = [trainer(training.Sharing(number, count, barrier, given), 1) for number in range(count)]
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda one: one.run(), found))
    whole = trainer(ALONE, count)
    whole.run()
    assert len(whole.losses) == 20
    for one in found:
        assert one.losses == found[0].losses == pytest.approx(whole.losses, rel=1e-5)
        for part in ("adapter", "unet"):
            assert equal(one.result(part), found[0].result(part))
    for name, weight in whole.result("unet").items():
        torch.testing.assert_close(found[0].result("unet")[name], weight, rtol=1e-4, atol=1e-5)


def test_every_round_holds_every_picture_once_in_another_order():
    data = training.data(5)
    settings = Settings(batch_size=2, accumulate=5, drops=training.NO_DROPS)  # two rounds a step
    places = {id(example.latent): place for place, example in enumerate(data.examples)}
    seen = [places[id(one.latent)] for drawn in draw_step(data, settings, 1000, 0) for one in drawn]
    assert sorted(seen[:5]) == sorted(seen[5:]) == [0, 1, 2, 3, 4]
    assert seen[:5] != seen[5:]


@pytest.mark.parametrize("batch_size", [1, 4, 7, 60])
def test_batches_hold_examples_of_one_kind_where_there_are_enough(batch_size):
    """29 examples of three kinds: a round is no multiple of the batch, so the next one begins within a step."""
    kinds = torch.tensor([0] * 15 + [1] * 12 + [2] * 2)[torch.randperm(29)]
    data = replace(training.data(1), examples=training.data(1).examples * 29, kinds=kinds)
    rounds = [
        [shuffled(29 * turn + i, data, Settings(batch_size=batch_size)) for i in range(29)]
        for turn in range(6)
    ]
    assert all(sorted(one) == list(range(29)) for one in rounds)
    assert len({tuple(one) for one in rounds}) == 6
    places = torch.tensor(rounds).flatten()
    steps = kinds[places[: len(places) // batch_size * batch_size]].view(-1, batch_size)
    pure = (steps == steps[:, :1]).all(1)
    # In a round at most one batch of each kind is not whole, and one is broken up where the round begins.
    assert (~pure).sum() <= 6 * 4
    assert batch_size != 4 or pure.float().mean() > 0.5


def test_parts_of_the_text_are_dropped_as_often_as_the_job_says():
    data = training.data(1)
    settings = Settings(batch_size=4000, drops=Drops(text=0.1, llm=0.2, clip=0.3, clip_tokens=0.15))
    ((*drawn,),) = draw_step(data, settings, 1000, 0)
    text, empty = data.examples[0].text, data.empty
    names = {id(text.clip): "text", id(empty.clip): "empty", id(text.llm): "text", id(empty.llm): "empty"}
    seen = Counter(
        (names[id(one.clip)], names[id(one.llm)] if one.llm else "left out", one.alone) for one in drawn
    )
    rates = {halves: count / len(drawn) for halves, count in seen.items()}
    assert rates == pytest.approx(
        {
            ("empty", "empty", False): 0.1,
            ("text", "left out", False): 0.2,
            ("empty", "text", False): 0.3,
            ("empty", "text", True): 0.15,
            ("text", "text", False): 0.25,
        },
        abs=0.03,
    )
    timesteps = torch.tensor([one.timestep for one in drawn])
    assert 0 <= timesteps.min() < 5 and 995 <= timesteps.max() < 1000


def test_a_picture_is_seen_with_each_of_its_noises_and_its_text_is_fused_once():
    data = training.data(4, drop_padding=True)
    data = replace(data, examples=data.examples[:1] + data.examples[:1])
    ((*drawn,),) = draw_step(data, Settings(batch_size=2, noises=3, drops=training.NO_DROPS), 1000, 0)
    copied = [replace(one, place=None) for one in drawn]  # each text is fused on its own
    found = []
    for examples in (drawn, copied):
        adapter = training.adapter()
        (batch,) = batches(examples, torch.device("cpu"))
        losses = denoise(adapter)(batch)
        losses.sum().backward()
        found.append((batch, losses.detach(), adapter))
    (batch, losses, adapter), (apart, expected, other) = found
    assert len(batch.latents) == 6 and len(batch.clip) == len(batch.llm) == 2 and len(apart.clip) == 6
    assert len({one.timestep for one in drawn}) > 1 and not torch.equal(batch.noise[0], batch.noise[1])
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    for name, weight in adapter.named_parameters():
        torch.testing.assert_close(weight.grad, other.get_parameter(name).grad, rtol=1e-4, atol=1e-5)
    assert torch.equal(batch.clip_context, apart.clip_context)


def test_fused_tokens_that_are_seen_alone_are_those_after_clips():
    adapter, drawn = training.adapter(), next(draw_step(training.data(1), Settings(batch_size=2), 1000, 0))
    (batch,) = batches(drawn, torch.device("cpu"))
    (alone,) = batches([replace(one, alone=True) for one in drawn], torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(alone.context(adapter), batch.context(adapter)[:, batch.clip.shape[1] :])
    assert alone.tokens == alone.context(adapter).shape[1]


def test_a_step_in_which_nothing_takes_part_that_learns_changes_nothing():
    """The LLM's half is left out, and only the adapter learns."""
    adapter = training.adapter()
    before = weights_of(adapter)
    trainer = training.trainer(denoise(adapter), adapter, drops=Drops(0.0, 1.0, 0.0))
    assert trainer.step() > 0
    assert equal(weights_of(adapter), before)


def test_the_learning_rate_rises_and_then_stays_or_falls_along_a_cosine():
    constant = Settings(steps=100, warm_up=4)
    assert [rate_factor(constant, step) for step in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    cosine = Settings(steps=104, warm_up=4, decay="cosine")
    factors = [rate_factor(cosine, step) for step in (3, 4, 29, 54, 79, 104)]
    assert factors == pytest.approx([1.0, 1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)


def test_the_first_step_of_adamw_moves_a_weight_by_the_learning_rate_of_its_group():
    """Without decay of the weights, AdamW's first step is the learning rate times the gradient's sign."""
    adapter, unet = training.adapter(), training.unet()
    learns = {"out": unet.conv_out.weight.requires_grad_(True)}
    before, before_unet = adapter.out.weight.detach().clone(), learns["out"].detach().clone()
    rates = {"learning_rate": 1e-3, "unet_learning_rate": 1e-4, "weight_decay": 0.0}
    training.trainer(denoise(adapter, unet), adapter, unet=learns, **rates).step()
    assert (adapter.out.weight - before).abs().median().item() == pytest.approx(1e-3, rel=0.02)
    assert (learns["out"] - before_unet).abs().median().item() == pytest.approx(1e-4, rel=0.02)


def test_the_gradients_that_adamw_gets_are_no_longer_than_the_clip_norm():
    """AdamW's first moment after one step is a tenth of the gradient."""
    for limit, clipped in ((1e-3, True), (1e6, False)):
        adapter = training.adapter()
        trainer = training.trainer(denoise(adapter), adapter, clip_norm=limit)
        trainer.step()
        moments = [trainer.optimizer.state[weight]["exp_avg"] * 10 for weight in trainer.weights.values()]
        norm = torch.cat([moment.flatten() for moment in moments]).norm().item()
        assert norm == pytest.approx(limit, rel=1e-3) if clipped else 1e-3 < norm < limit


def test_the_result_is_the_moving_average_of_the_weights():
    weight = torch.tensor([1.0])
    ema = EMA({"w": weight}, decay=0.5)
    expected = 1.0
    for steps, value in enumerate((2.0, 5.0, -1.0, 4.0, 8.0), start=1):
        weight.fill_(value)
        ema.update({"w": weight}, steps)
        decay = min(0.5, (1 + steps) / (10 + steps))
        expected = decay * expected + (1 - decay) * value
    assert ema.average["w"].item() == pytest.approx(expected)

    adapter = training.adapter()
    trainer = training.trainer(denoise(adapter), adapter, steps=2, ema=0.0)
    trainer.run()
    assert equal(trainer.result("adapter"), weights_of(adapter)), "without an average, the last weights"


def test_gradient_checkpointing_gives_the_same_gradients_to_the_bit():
    gradients = []
    for checkpointed in (False, True):
        adapter, unet = training.adapter(), training.unet()
        trainer = training.trainer(denoise(adapter, unet), adapter)
        blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
        calls = Counter()
        unet.mid_block.resnets[0].register_forward_pre_hook(lambda *_, calls=calls: calls.update(["forward"]))
        with recomputed(blocks if checkpointed else []):
            trainer.gradients()
        gradients.append((calls["forward"], {name: w.grad for name, w in trainer.weights.items()}))
        assert all("forward" not in vars(block) for block in blocks), "the blocks are as before"
    (forwards, expected), (more, found) = gradients
    assert equal(found, expected)
    assert (forwards, more) == (1, 2), "the blocks were computed again"


def test_a_loss_that_is_not_finite_ends_the_training_with_the_last_good_weights():
    adapter = training.adapter()
    trainer = training.trainer(denoise(adapter), adapter)
    trainer.step()
    before = weights_of(adapter)
    trainer.objective = lambda batch: denoise(adapter)(batch) * torch.inf
    with pytest.raises(TrainingDiverged, match=r"In step 2 the loss is inf.*lower learning rate"):
        trainer.step()
    assert equal(weights_of(adapter), before)
    assert trainer.steps == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps is -1; it must be at least 0"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0; it must be above 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan; it must be above 0"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1"),
        ({"decay": "linear"}, 'decay is \'linear\'; it can be "constant" or "cosine"'),
    ],
)
def test_settings_that_are_not_possible_are_named(settings, message):
    with pytest.raises(WrongTraining, match=message):
        Settings(**settings)


@pytest.mark.parametrize("rates", [(-0.1, 0.0, 0.0), (0.5, 0.4, 0.2), (0.3, 0.3, 0.3, 0.2)])
def test_drop_rates_that_are_not_possible_are_named(rates):
    with pytest.raises(WrongTraining, match=r"The drop rates are .*\(text, LLM, CLIP, CLIP's tokens\)"):
        Drops(*rates)


def test_without_pictures_there_is_nothing_to_learn_from():
    adapter = training.adapter()
    with pytest.raises(WrongTraining, match="no picture with a caption"):
        training.trainer(denoise(adapter), adapter, TrainingData([], training.text(0)))


# Where it starts


def test_a_new_adapter_depends_on_its_seed_and_keeps_the_scale_of_its_input():
    assert equal(weights_of(training.adapter(1)), weights_of(training.adapter(1)))
    assert not torch.equal(training.adapter(1).query.weight, training.adapter(2).query.weight)
    large = new_adapter(CrossAdapterConfig(clip_dim=512, llm_dim=1024, mlp_dim=512, heads=8), 0)
    assert large.llm_proj(torch.randn(400, 1024)).std().item() == pytest.approx(1.0, rel=0.05)
    with pytest.raises(WrongTraining, match="5 attention heads do not divide the adapter's width of 32"):
        new_adapter(CrossAdapterConfig(32, 24, 64, 5), 0)


def test_an_adapter_for_an_llm_of_another_width_keeps_all_but_its_first_layer():
    trained = training.adapter(1)
    with torch.no_grad():
        for weight in trained.parameters():
            weight.add_(torch.randn_like(weight))
    same = adapter_from(trained, training.LLM_WIDTH, 0)
    assert equal(weights_of(same), weights_of(trained))
    assert all(weight.requires_grad for weight in same.parameters())
    other = adapter_from(trained, 40, 0)
    kept = {
        name for name, weight in other.state_dict().items() if torch.equal(weight, trained.state_dict()[name])
    }
    assert kept == {name for name in trained.state_dict() if not name.startswith("llm_proj.")}
    assert other.llm_proj.weight.shape == (32, 40)


def test_training_a_copy_leaves_the_adapter_that_it_started_from_as_it_is():
    trained = training.adapter(1).requires_grad_(False)
    before = copy.deepcopy(trained.state_dict())
    copied = adapter_from(trained, training.LLM_WIDTH, 0)
    training.trainer(denoise(copied), copied).step()
    assert equal(weights_of(trained), before)
