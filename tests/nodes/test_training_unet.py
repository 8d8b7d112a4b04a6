"""ComfyUI's UNet, as the trainer calls it, gives the losses and gradients of diffusers' UNet with the same weights."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

import tiny_training as training
from llm4gen.models.cross_adapter import CrossAdapterConfig
from llm4gen.models.training.checkpointing import recomputed
from llm4gen.models.training.data import Drawn, batches
from llm4gen.models.training.denoise import Denoise
from llm4gen.models.training.entity import EntityGuided
from llm4gen.models.training.sampling import sample
from llm4gen.models.training.start import new_adapter
from tiny import relative_error

EXACT = 1e-4
CONFIG = CrossAdapterConfig(clip_dim=768, llm_dim=24, mlp_dim=64, heads=8)


@pytest.fixture(scope="module")
def diffusers_unet():
    """A UNet that ComfyUI takes for SD1.5's: one level of 320 channels, with a transformer in each block."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(320,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    return unet.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def patcher(diffusers_unet, load_unet):
    """The same weights under ComfyUI's names, loaded by core's Load Diffusion Model."""
    weights = diffusers_unet.state_dict()
    ours = names_in_diffusers()
    assert set(ours.values()) >= weights.keys()
    tensors = {
        f"model.diffusion_model.{one}": weights[other].clone()
        for one, other in ours.items()
        if other in weights
    }
    return load_unet("for_training.safetensors", tensors)


@pytest.fixture
def in_training(started, patcher):
    """Makes a `UNetInTraining` of a MODEL, on its device."""
    from llm4gen.nodes import host  # noqa: PLC0415
    from llm4gen.nodes.training.unet import UNetInTraining  # noqa: PLC0415

    made = []

    def make(model=patcher, what="frozen", dtype=torch.float32, seed=0):
        with torch.inference_mode(False):
            made.append(
                UNetInTraining(
                    model,
                    model.model.model_config.unet_config["context_dim"],
                    what=what,
                    rank=4,
                    dtype=dtype,
                    seed=seed,
                )
            )
            host.load_to_train([made[-1].patcher])
        return made[-1]

    yield make
    for unet in made:
        host.release(unet.patcher)


@pytest.fixture
def v_prediction(started, patcher):
    """The MODEL after core's ModelSamplingDiscrete, set to velocity."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete  # noqa: PLC0415

    return ModelSamplingDiscrete().patch(patcher, "v_prediction", zsnr=False)[0]


def batch():
    torch.manual_seed(5)
    drawn = []
    for index, example in enumerate(training.data(3).examples):
        noise = torch.randn(example.latent.shape)
        clip = torch.randn(77, 768)
        drawn.append(Drawn(example.latent, clip, example.text.llm, None, noise, (20, 500, 950)[index]))
    (found,) = batches(drawn, torch.device("cpu"))
    return found


def losses_and_gradients(predict, schedule, learns=()):
    """The loss of each example, and the gradients of a new adapter's weights and of other weights."""
    adapter = new_adapter(CONFIG, seed=3)
    weights = [*adapter.parameters(), *learns]
    losses = Denoise(predict, schedule, adapter)(batch())
    losses.mean().backward()
    return losses.detach(), [weight.grad.clone() for weight in weights]


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_loss_and_the_adapters_gradients_equal_those_through_diffusers(
    prediction, in_training, diffusers_unet, patcher, v_prediction
):
    unet = in_training(patcher if prediction == "eps" else v_prediction)
    assert unet.schedule.prediction == prediction
    torch.testing.assert_close(
        unet.schedule.alphas, training.ddpm(prediction).alphas_cumprod, rtol=1e-4, atol=0.0
    )
    found, gradients = losses_and_gradients(unet.predict, unet.schedule)
    expected, others = losses_and_gradients(training.predictor(diffusers_unet), training.schedule(prediction))
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=0.0)
    names = [name for name, _ in new_adapter(CONFIG, 0).named_parameters()]
    for name, one, other in zip(names, gradients, others, strict=True):
        if name != "key.bias":  # the true gradient is 0
            assert relative_error(one, other) <= EXACT, name


def test_the_gradients_of_the_lora_equal_those_through_diffusers(in_training, diffusers_unet):
    """diffusers' weights get the LoRA's product added by hand."""
    unet = in_training(what="LoRA")
    learns = unet.learns()
    with torch.no_grad():
        for name, weight in learns.items():
            if name.endswith("lora_down.weight"):
                weight.normal_(std=0.05)
    found, gradients = losses_and_gradients(unet.predict, unet.schedule, learns.values())

    copies = {name: weight.detach().clone().requires_grad_() for name, weight in learns.items()}
    with torch.no_grad():
        named = {name: weight.clone() for name, weight in diffusers_unet.named_parameters()}
    changed = {}
    for ours, theirs in diffusers_names(learns).items():
        up, down = (copies[f"{ours}.lora_{part}.weight"] for part in ("up", "down"))
        changed[theirs] = named[theirs] + up @ down

    def predict(noised, timesteps, context, _):
        inputs = (noised, timesteps, context)
        return torch.func.functional_call(diffusers_unet, {**named, **changed}, inputs).sample

    expected, others = losses_and_gradients(predict, training.schedule(), copies.values())
    assert len(copies) == 2 * 2 * 4 * 4, (
        "up and down, self- and cross-attention, q, k, v and out, four transformers"
    )
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=0.0)
    for name, one, other in zip(copies, gradients[-len(copies) :], others[-len(copies) :], strict=True):
        assert one.norm() > 0, name
        assert relative_error(one, other) <= EXACT, name


def test_the_gradients_of_the_whole_unet_equal_those_through_diffusers(in_training, diffusers_unet):
    unet = in_training(what="whole")
    learns = unet.learns()
    found, gradients = losses_and_gradients(unet.predict, unet.schedule, learns.values())
    named = {name: weight.clone().requires_grad_() for name, weight in diffusers_unet.named_parameters()}

    def predict(noised, timesteps, context, _):
        return torch.func.functional_call(diffusers_unet, named, (noised, timesteps, context)).sample

    theirs = names_in_diffusers()
    names = [theirs[name.removeprefix("diffusion_model.")] for name in learns]
    expected, others = losses_and_gradients(predict, training.schedule(), [named[name] for name in names])
    assert sorted(names) == sorted(named)
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=0.0)
    for name, one, other in zip(names, gradients[-len(names) :], others[-len(names) :], strict=True):
        assert one.norm() > 0, name
        assert relative_error(one, other) <= EXACT, name


def test_what_learns_is_fp32_whatever_the_unet_is_computed_in(in_training):
    for what in ("LoRA", "whole"):
        unet = in_training(what=what, dtype=torch.bfloat16)
        learns = unet.learns()
        noise = torch.randn(1, 4, 8, 8)
        unet.predict(noise, torch.tensor([500]), torch.randn(1, 77, 768)).sum().backward()
        assert {weight.dtype for weight in learns.values()} == {torch.float32}
        with_gradients = [name for name, weight in learns.items() if weight.grad is not None]
        assert set(with_gradients) == learns.keys()


class Recorder:
    """diffusers' attention, which keeps the weights of its cross-attention: [b · heads, n, tokens]."""

    def __init__(self):
        self.kept = []

    def __call__(self, layer, states, encoder_hidden_states=None, attention_mask=None, **_):
        context = states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer.head_to_batch_dim(projection(x))
            for projection, x in ((layer.to_q, states), (layer.to_k, context), (layer.to_v, context))
        )
        weights = layer.get_attention_scores(query, key, attention_mask)
        if encoder_hidden_states is not None:
            self.kept.append(weights)
        return layer.to_out[1](layer.to_out[0](layer.batch_to_head_dim(weights @ value)))


def test_watched_attention_is_that_of_diffusers_and_leaves_the_prediction_as_it_is(
    in_training, diffusers_unet
):
    unet, examples = in_training(), batch()
    context = examples.context(new_adapter(CONFIG, seed=3))
    inputs = examples.noise, examples.timesteps, context
    shares = torch.rand(3, context.shape[1], 4)
    with torch.no_grad():
        plain = unet.predict(*inputs)
        with unet.watched(shares) as found:
            watched = unet.predict(*inputs)
        recorder, before = Recorder(), diffusers_unet.attn_processors
        diffusers_unet.set_attn_processor(recorder)
        diffusers_unet(*inputs[:2], encoder_hidden_states=context)
        diffusers_unet.set_attn_processor(before)
    assert relative_error(watched, plain) < 1e-5
    expected = [weights.unflatten(0, (3, -1)).mean(1) @ shares for weights in recorder.kept]
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < EXACT
    assert unet.options == {}


def test_the_entity_loss_has_the_same_gradients_with_checkpointing(in_training):
    """They reach the adapter and the LoRA by themselves."""

    def gradients(checkpointing):
        unet, adapter = in_training(what="LoRA"), new_adapter(CONFIG, seed=3)
        lora = list(unet.learns().values())
        with torch.no_grad():
            for weight in lora:
                weight.fill_(0.01)
        denoise = Denoise(unet.predict, unet.schedule, adapter)
        guided = EntityGuided(lambda seen: 0 * denoise(seen), unet.watched, weight=1.0)
        with recomputed(list(unet.blocks) if checkpointing else []):
            guided(replace(batch(), pairs=[[((1, 80), (4, 83))]] * 3)).sum().backward()
        assert sum(weight.grad.norm() > 0 for weight in adapter.parameters()) > 5
        assert sum(weight.grad.norm() > 0 for weight in lora) > 8
        return [weight.grad for weight in (*adapter.parameters(), *lora)]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(one, other)


def diffusers_names(learns):
    """The LoRA's layers as ComfyUI names them → the weights of diffusers' UNet."""
    layers, names = {name.split(".lora_")[0] for name in learns}, names_in_diffusers()
    return {layer: names[f"{layer.removeprefix('diffusion_model.')}.weight"] for layer in layers}


def names_in_diffusers():
    """ComfyUI's names of this UNet's weights → diffusers'."""
    import comfy.utils  # noqa: PLC0415

    sizes = {"transformer_depth": [1], "channel_mult": (1,), "num_res_blocks": [1]}
    names = comfy.utils.unet_to_diffusers(
        {**sizes, "transformer_depth_output": [1, 1], "transformer_depth_middle": 1}
    )
    return {ours: theirs for theirs, ours in names.items()}


@pytest.mark.parametrize("which", ["patcher", "v_prediction"])
def test_a_picture_that_models_in_training_draw_is_the_one_that_ksampler_draws(which, request, in_training):
    """With core's euler, scheduler ddim_uniform, and contexts of unequal length."""
    import comfy.sample  # noqa: PLC0415

    model = request.getfixturevalue(which)
    torch.manual_seed(6)
    noise, positive, negative = torch.randn(1, 4, 8, 8), torch.randn(1, 80, 768), torch.randn(1, 77, 768)
    unet = in_training(model)
    found = sample(unet.predict, unet.schedule, noise, positive, negative, steps=5)
    with torch.inference_mode():
        sides = [[positive, {}]], [[negative, {}]]
        expected = comfy.sample.sample(
            model, noise, 5, 7.5, "euler", "ddim_uniform", *sides, torch.zeros_like(noise), seed=0
        )
    assert relative_error(model.model.process_latent_out(found), expected) <= 1e-3
