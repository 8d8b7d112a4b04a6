"""The objectives equal independent computations with diffusers' schedule and UNet, and autograd."""

import copy

import pytest
import torch
from diffusers.training_utils import compute_snr
from torch.nn import functional

import tiny_training as training
from llm4gen.models.encoders.rows import all_rows
from llm4gen.models.features.features import Features
from llm4gen.models.training.data import Drawn, batches
from llm4gen.models.training.denoise import Denoise
from llm4gen.models.training.match import Match
from llm4gen.models.training.quiet_start import QuietStart
from tiny import relative_error

CPU = torch.device("cpu")
EXACT = 1e-4  # relative; both sides compute in fp32


def cross_adapter(weights, clip, llm, heads):
    """The published module in plain functions, under the names of `CrossAdapter`: clip [n, c], llm [l, d] → [l, c]."""

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def split(x):
        return x.view(len(x), heads, -1).transpose(0, 1)

    llm = linear("llm_proj", llm)
    queries, keys = linear("query", norm("llm_norm", llm)), linear("key", norm("clip_norm", clip))
    values = linear("value", norm("clip_norm", clip))
    scores = split(queries) @ split(keys).transpose(1, 2) / (queries.shape[1] // heads) ** 0.5
    mixed = (scores.softmax(-1) @ split(values)).transpose(0, 1).reshape(len(llm), -1)
    llm = llm + linear("out", mixed)
    inner = linear("mlp.0", norm("mlp_norm", llm))
    return llm + linear("mlp.2", inner * torch.sigmoid(1.702 * inner))


def drawn_examples(count=3, teacher=False):
    """Examples with captions of different lengths, each with its noise and timestep."""
    torch.manual_seed(5)
    result = []
    for index, example in enumerate(training.data(count).examples):
        known = torch.randn(9, training.WIDTH) if teacher else None
        noise = torch.randn(example.latent.shape)
        result.append(
            Drawn(example.latent, example.text.clip, example.text.llm, known, noise, (20, 500, 950)[index])
        )
    return result


def only_batch(drawn):
    (batch,) = batches(drawn, CPU)
    return batch


def stacked(drawn, *names):
    """The examples' timesteps, and each named tensor of theirs, as a batch."""
    tensors = (torch.stack([getattr(one, name) for one in drawn]) for name in names)
    return torch.tensor([one.timestep for one in drawn]), *tensors


def expected_contexts(weights, drawn):
    """The UNet's context of each example, from the states at every position."""
    rows = [(one.clip, one.llm.rows.expand(one.llm.states)) for one in drawn]
    return torch.stack(
        [torch.cat([clip, cross_adapter(weights, clip, llm, training.CONFIG.heads)]) for clip, llm in rows]
    )


def assert_equal_with_gradients(objective, adapter, drawn, expected_loss):
    """Compares loss and all of the adapter's gradients. expected_loss: the adapter's weights → the mean loss."""
    loss = objective(only_batch(drawn)).mean()
    loss.backward()
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in adapter.named_parameters()}
    expected = expected_loss(weights)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=EXACT)
    for name, weight in adapter.named_parameters():
        assert weight.grad.norm() > 0, name
        # Adding the same to every key changes no softmax: the true gradient of the keys' bias is 0.
        if name != "key.bias":
            assert relative_error(weight.grad, weights[name].grad) <= EXACT, name


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_denoise_and_its_gradients_equal_diffusers_and_autograd(prediction, gamma):
    unet, scheduler, drawn = training.unet(), training.ddpm(prediction), drawn_examples()
    adapter = training.adapter()
    timesteps, latents, noise = stacked(drawn, "latent", "noise")

    def expected_loss(weights):
        noised = scheduler.add_noise(latents, noise, timesteps)
        target = noise if prediction == "eps" else scheduler.get_velocity(latents, noise, timesteps)
        contexts = expected_contexts(weights, drawn)
        made = unet(noised, timesteps, encoder_hidden_states=contexts).sample
        errors = functional.mse_loss(made, target, reduction="none").mean((1, 2, 3))
        if gamma:
            snr = compute_snr(scheduler, timesteps)
            errors = errors * snr.clamp(max=gamma) / (snr if prediction == "eps" else snr + 1)
        return errors.mean()

    objective = Denoise(training.predictor(unet), training.schedule(prediction), adapter, gamma=gamma)
    assert_equal_with_gradients(objective, adapter, drawn, expected_loss)


def test_match_and_its_gradients_equal_diffusers_and_autograd():
    student, teacher, drawn = training.unet(), training.unet(seed=1), drawn_examples(teacher=True)
    adapter, scheduler = training.adapter(), training.ddpm("eps")
    timesteps, latents, noise, known = stacked(drawn, "latent", "noise", "teacher")

    def expected_loss(weights):
        noised = scheduler.add_noise(latents, noise, timesteps)
        target = teacher(noised, timesteps, encoder_hidden_states=known).sample
        contexts = expected_contexts(weights, drawn)
        made = student(noised, timesteps, encoder_hidden_states=contexts).sample
        return functional.mse_loss(made, target)

    objective = Match(
        training.predictor(student), training.predictor(teacher), training.schedule(), adapter, gamma=0.0
    )
    assert_equal_with_gradients(objective, adapter, drawn, expected_loss)


def test_quiet_start_and_its_gradients_equal_diffusers_and_autograd():
    unet, drawn, adapter, scheduler = (
        training.unet(),
        drawn_examples(),
        training.adapter(),
        training.ddpm("eps"),
    )
    timesteps, latents, noise, clip = stacked(drawn, "latent", "noise", "clip")

    def expected_loss(weights):
        noised = scheduler.add_noise(latents, noise, timesteps)
        base = unet(noised, timesteps, encoder_hidden_states=clip).sample
        made = unet(noised, timesteps, encoder_hidden_states=expected_contexts(weights, drawn)).sample
        return ((made - base).flatten(1).norm(dim=1) / base.flatten(1).norm(dim=1)).square().mean()

    objective = QuietStart(training.predictor(unet), training.schedule(), adapter)
    assert_equal_with_gradients(objective, adapter, drawn, expected_loss)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_min_snr_weighs_the_error_of_the_clean_latents_by_the_smaller_of_snr_and_gamma(prediction):
    """With x_t = r · x_0 + s · noise, an error of the prediction is one of x_0 times s / r for eps, and s for v."""
    schedule, timesteps = training.schedule(prediction), torch.arange(1000)
    alphas = training.ddpm(prediction).alphas_cumprod.double()
    snr = alphas / (1 - alphas)
    error_of_clean = (
        (1 - alphas) / alphas if prediction == "eps" else 1 - alphas
    )  # squared, for a squared error of 1
    expected = snr.clamp(max=5.0) * error_of_clean
    torch.testing.assert_close(
        schedule.min_snr_weights(timesteps, 5.0).double(), expected, rtol=1e-4, atol=0.0
    )
    assert torch.equal(schedule.min_snr_weights(timesteps, 0.0), torch.ones(1000))


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_debiased_weighs_the_error_of_the_clean_latents_by_the_root_of_snr(prediction):
    schedule, timesteps = training.schedule(prediction), torch.arange(1000)
    alphas = training.ddpm(prediction).alphas_cumprod.double()
    error_of_clean = (1 - alphas) / alphas if prediction == "eps" else 1 - alphas
    expected = (alphas / (1 - alphas)).sqrt() * error_of_clean
    found = schedule.loss_weights(timesteps, "debiased", 5.0).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize(
    ("weighting", "prediction", "expected"),
    [
        ("min-snr", "eps", [5 / 9, 1.0]),
        ("min-snr", "v", [0.5, 0.0]),
        ("debiased", "eps", [1 / 3, 20.0]),
        ("debiased", "v", [0.3, 0.0]),
    ],
)
def test_weights_are_finite_where_a_schedule_ends_in_pure_noise(weighting, prediction, expected):
    schedule = training.NoiseSchedule(torch.tensor([0.9, 0.0]), prediction)
    weights = schedule.loss_weights(torch.tensor([0, 1]), weighting, 5.0)
    assert weights.tolist() == pytest.approx(expected)


def test_denoise_weighs_as_it_is_told():
    adapter, batch = training.adapter(), only_batch(drawn_examples())
    unet, schedule = training.predictor(training.unet()), training.schedule()
    losses = {
        weighting: Denoise(unet, schedule, adapter, weighting, 5.0)(batch)
        for weighting in ("min-snr", "debiased")
    }
    ratio = schedule.debiased_weights(batch.timesteps) / schedule.min_snr_weights(batch.timesteps, 5.0)
    torch.testing.assert_close(losses["debiased"], losses["min-snr"] * ratio)


def test_examples_of_unequal_shapes_give_the_losses_that_each_gives_alone():
    """Two sizes of pictures, captions of three lengths without padding, and one example without the LLM's half."""
    drawn = drawn_examples()
    drawn = [
        Drawn(
            one.latent,
            one.clip,
            training.text(i, tokens=3 + i, drop_padding=True).llm,
            None,
            one.noise,
            30 * i,
        )
        for i, one in enumerate(drawn)
    ]
    wide = torch.randn(4, 8, 16)
    drawn += [
        Drawn(wide, drawn[0].clip, drawn[0].llm, None, torch.randn(wide.shape), 700),
        Drawn(drawn[1].latent, drawn[1].clip, None, None, drawn[1].noise, 800),
        Drawn(drawn[2].latent, drawn[2].clip, drawn[0].llm, None, drawn[2].noise, 900),
    ]
    objective = Denoise(training.predictor(training.unet()), training.schedule(), training.adapter())
    with torch.no_grad():
        groups = list(batches(drawn, CPU))
        together = sorted(loss for batch in groups for loss in objective(batch).tolist())
        alone = sorted(objective(only_batch([one])).item() for one in drawn)
    assert [len(batch.latents) for batch in groups] == [2, 1, 1, 1, 1]
    assert together == pytest.approx(alone, rel=1e-5)


def test_equal_rows_are_computed_once_and_give_what_all_positions_give():
    example = training.data(1).examples[0]
    features = example.text.llm
    assert len(features.states) < len(features.rows.row_of), "some positions share a row"
    every = Features(features.rows.expand(features.states), all_rows(3, len(features.rows.row_of)))
    adapter = training.adapter()
    contexts = []
    for llm in (features, every):
        drawn = Drawn(example.latent, example.text.clip, llm, None, torch.zeros(4, 8, 8), 0)
        contexts.append(only_batch([drawn]).context(adapter))
    torch.testing.assert_close(*contexts, rtol=0, atol=1e-6)


def test_the_objectives_leave_the_unet_and_the_states_as_they_are():
    unet, adapter = training.unet(), training.adapter()
    before = copy.deepcopy(unet.state_dict())
    data = training.data(2)
    states = [example.text.llm.states.clone() for example in data.examples]
    trainer = training.trainer(Denoise(training.predictor(unet), training.schedule(), adapter), adapter, data)
    trainer.step()
    assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())
    assert all(torch.equal(e.text.llm.states, s) for e, s in zip(data.examples, states, strict=True))
