"""Training over SD2, SDXL and its refiner: their UNets' own inputs, and the nodes from a new adapter to a picture."""

import pytest
import torch
from diffusers import UNet2DConditionModel

import in_process
import other_models
import tiny_training as training
from in_process import SHORT
from llm4gen.models.cross_adapter import CrossAdapterConfig
from llm4gen.models.errors import UntrainableModel, WrongTraining
from llm4gen.models.training.data import Drawn, batches
from llm4gen.models.training.denoise import Denoise
from llm4gen.models.training.sampling import sample as sample_trained
from llm4gen.models.training.start import new_adapter
from tiny import relative_error, untouched, weights_of
from training_inputs import JOB, NEW

POOLED = 1280  # width of CLIP-G's pooled output
CHANGED = {
    **{"steps": 3, "unet": "LoRA", "drop_text": 0.1, "drop_llm": 0.1, "drop_clip": 0.1},
    **{"quiet_start": 1, "gradient_checkpointing": True, "preview_every": 2},
}


@pytest.fixture(scope="module", params=["SD2", "SDXL"])
def kind(request):
    return other_models.KINDS[request.param]


@pytest.fixture(scope="module")
def other_model(kind, load_unet):
    """A MODEL of that kind, from a file."""
    unet = other_models.make_model(kind).model.diffusion_model.state_dict()
    return load_unet(f"{kind.name}_for_training.safetensors", dict(unet))


@pytest.fixture(scope="module")
def other_clip(kind, started):
    with torch.inference_mode():
        return other_models.make_clip(kind, [])


@pytest.fixture(scope="module")
def new(started, llm):
    """New Cross-Adapter."""

    def new(**inputs):
        with torch.inference_mode():
            return in_process.run(started.ours["LLM4GEN_NewCrossAdapter"], llm=llm, **NEW | inputs)

    return new


@pytest.fixture(scope="module")
def fresh(kind, new):
    return new(context_width=kind.width)


@pytest.fixture(scope="module")
def training_set(started, llm, other_clip, fresh):
    torch.manual_seed(0)
    with torch.inference_mode():
        return in_process.run(
            started.ours["LLM4GEN_TrainingSet"],
            texts=[SHORT, "a blue dog"],
            clip=[other_clip],
            llm=[llm],
            adapter=[fresh],
            latents=[{"samples": torch.randn(2, 4, 8, 16)}],
        )


@pytest.fixture(scope="module")
def train(started, other_model, training_set, fresh):
    def train(model=other_model, adapter=fresh, **changes):
        node = started.ours["LLM4GEN_TrainCrossAdapter"]
        with torch.inference_mode():
            return node.execute(model, training_set, adapter, **JOB | CHANGED | changes).args

    return train


@pytest.fixture(params=["eps", "v_prediction"])
def predicting(request, started, other_model):
    """The MODEL, which predicts noise, or velocity as that of SD2.1 for 768 pixels does."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete  # noqa: PLC0415

    if request.param == "eps":
        return other_model
    return ModelSamplingDiscrete().patch(other_model, request.param, zsnr=False)[0]


@pytest.fixture
def in_training(started, kind, predicting):
    from llm4gen.nodes import host  # noqa: PLC0415
    from llm4gen.nodes.training.unet import UNetInTraining  # noqa: PLC0415

    with torch.inference_mode(False):
        unet = UNetInTraining(predicting, kind.width, what="frozen", rank=4, dtype=torch.float32, seed=0)
        host.load_to_train([unet.patcher])
    yield unet
    host.release(unet.patcher)


def pooled(kind, seed):
    """A pooled output, if the UNet takes one."""
    if kind.name == "SD2":
        return None
    return torch.randn(1, POOLED, generator=torch.Generator().manual_seed(seed))


def test_a_picture_that_models_in_training_draw_is_the_one_that_ksampler_draws(kind, predicting, in_training):
    """So the UNet gets the same pooled output and sizes. The picture is wider than high."""
    import comfy.sample  # noqa: PLC0415

    torch.manual_seed(6)
    noise, positive, negative = (
        torch.randn(1, 4, 8, 16),
        torch.randn(1, 80, kind.width),
        torch.randn(1, 77, kind.width),
    )
    both = pooled(kind, 1), pooled(kind, 2)
    found = sample_trained(
        in_training.predict, in_training.schedule, noise, positive, negative, pooled=both, steps=5
    )
    sides = [
        [[context, {} if one is None else {"pooled_output": one}]]
        for context, one in zip((positive, negative), both, strict=True)
    ]
    with torch.inference_mode():
        expected = comfy.sample.sample(
            predicting, noise, 5, 7.5, "euler", "ddim_uniform", *sides, torch.zeros_like(noise), seed=0
        )
    assert relative_error(predicting.model.process_latent_out(found), expected) <= 1e-3


def test_losses_and_the_adapters_gradients_equal_those_through_diffusers(kind, in_training):
    diffusers_unet = diffusers_of(kind, in_training.patcher.model)
    config = CrossAdapterConfig(clip_dim=kind.width, llm_dim=training.LLM_WIDTH, mlp_dim=64, heads=8)

    def theirs(noised, timesteps, context, pooled):
        # Height, width, crop, target.
        sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).expand(len(noised), -1)
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": sizes}
        return diffusers_unet(noised, timesteps, context, added_cond_kwargs=added).sample

    torch.manual_seed(5)
    drawn = []
    for index, example in enumerate(training.data(3).examples):
        one = pooled(kind, index)
        clip, noise = torch.randn(77, kind.width), torch.randn(example.latent.shape)
        timestep = (20, 500, 950)[index]
        drawn.append(
            Drawn(
                example.latent,
                clip,
                example.text.llm,
                None,
                noise,
                timestep,
                pooled=one if one is None else one[0],
            )
        )
    (batch,) = batches(drawn, torch.device("cpu"))
    found = []
    for predict in (in_training.predict, theirs):
        adapter = new_adapter(config, seed=3)
        losses = Denoise(predict, in_training.schedule, adapter)(batch)
        losses.mean().backward()
        found.append((losses.detach(), dict(adapter.named_parameters())))
    (losses, weights), (expected, others) = found
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0.0)
    for name, weight in weights.items():
        if name != "key.bias":  # the true gradient is 0
            assert relative_error(weight.grad, others[name].grad) <= 1e-4, name


def diffusers_of(kind, model):
    """diffusers' UNet with the weights of ComfyUI's."""
    import comfy.utils  # noqa: PLC0415

    levels = 1 if kind.name == "SD2" else 3
    plain = 0 if levels == 1 else 1  # levels without a transformer
    added = (
        {}
        if kind.name == "SD2"
        else {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }
    )
    down = ["DownBlock2D"] * plain + ["CrossAttnDownBlock2D"] * (levels - plain)
    unet = UNet2DConditionModel(
        block_out_channels=(320,) * levels,
        layers_per_block=1 if levels == 1 else 2,
        down_block_types=tuple(down),
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        transformer_layers_per_block=1 if levels == 1 else (1, 1, 2),
        cross_attention_dim=kind.width,
        attention_head_dim=5,  # heads of 64 channels
        use_linear_projection=True,
        **added,
    )
    names = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
    ours, wanted = model.diffusion_model.state_dict(), unet.state_dict()
    # ComfyUI's map leaves out what does not come from a block.
    weights = {theirs: ours[name] for theirs, name in names.items() if theirs in wanted and name in ours}
    unet.load_state_dict(weights)
    return unet.eval().requires_grad_(False)


def test_a_few_steps_change_the_picture_and_not_the_users_models(
    kind, train, other_model, other_clip, fresh, run_conditioning, sample, monkeypatch
):
    from llm4gen.nodes.training import shown  # noqa: PLC0415

    monkeypatch.setattr(shown, "STEPS", 2)  # of the preview, whose picture another test looks at
    before, users = weights_of(fresh.adapter), (other_model.model, other_clip.cond_stage_model)
    was = [weights_of(module) for module in users]
    adapter, lora, changed, losses, steps = train()
    assert all(untouched(one, weights_of(module)) for one, module in zip(was, users, strict=True))
    assert steps == len(losses["loss"]) == 3 and all(loss > 0 for loss in losses["loss"])
    assert any(not torch.equal(weight, before[name]) for name, weight in weights_of(adapter.adapter).items())
    assert lora and any(weight.any() for name, weight in lora.items() if "lora_up" in name)
    pictures = [
        sample(run_conditioning(one), run_conditioning(one, ""), model=other_model).samples
        for one in (fresh, adapter)
    ]
    assert not torch.equal(*pictures)
    with_lora = sample(run_conditioning(adapter), run_conditioning(adapter, ""), model=changed).samples
    assert not torch.equal(with_lora, pictures[1])


@pytest.fixture(scope="module")
def run_conditioning(started, llm, other_clip):
    def run(adapter, text=SHORT):
        node = started.ours["LLM4GEN_Conditioning"]
        with torch.inference_mode():
            return in_process.run(node, clip=other_clip, llm=llm, adapter=adapter, text=text)

    return run


def test_the_pooled_output_is_what_conditioning_gives_and_is_kept_on_disk(
    kind, training_set, run_conditioning, fresh
):
    from llm4gen.models.training.stored import packed, unpacked  # noqa: PLC0415

    text = training_set.encoded[SHORT]
    ((_, options),) = run_conditioning(fresh)
    if kind.name == "SD2":
        assert text.pooled is None and "pooled" not in packed(text)
        return
    assert torch.equal(text.pooled, options["pooled_output"][0])
    assert torch.equal(unpacked(packed(text)).pooled, text.pooled)


def test_a_dropped_text_drops_its_pooled_output_and_a_dropped_llm_keeps_it(kind, training_set):
    from llm4gen.models.training.drawing import draw_text  # noqa: PLC0415
    from llm4gen.models.training.settings import Drops  # noqa: PLC0415

    data = training_set.data(lambda latent: latent, training_set.standard())
    example = data.examples[0]
    seen = [
        draw_text(data, example, Drops(0.25, 0.25, 0.25), chance).pooled for chance in (0.1, 0.4, 0.6, 0.9)
    ]
    text, empty = example.text.pooled, data.empty.pooled
    assert [one is text for one in seen] == ([True] * 4 if text is None else [False, True, False, True])
    assert [one is empty for one in seen] == ([True] * 4 if text is None else [True, False, True, False])


def test_a_teacher_gets_the_pooled_output_of_its_own_clip(
    kind, started, train, llm, fresh, other_clip, monkeypatch
):
    from llm4gen.nodes.training.unet import Teacher  # noqa: PLC0415

    with torch.inference_mode():
        clip = in_process.run(
            started.ours["LLM4GEN_ApplyToCLIP"], clip=other_clip, llm=llm, adapter=fresh, strength=1.0
        )
        _, expected = clip.encode_from_tokens(clip.tokenize(SHORT), return_pooled=True)
    predict, seen = Teacher.predict, []
    monkeypatch.setattr(Teacher, "predict", lambda self, *given: seen.append(given) or predict(self, *given))
    train(teacher_clip=clip, steps=2, drop_text=0.0, drop_clip=1.0, drop_llm=0.0, preview_every=0)
    assert seen and all(given[2].shape[1] == 77 + 12 for given in seen)
    for *_, found in seen:
        if kind.name == "SD2":
            assert found is None
        else:
            assert any(torch.equal(row, expected[0]) for row in found), "the student reads no CLIP here"


def test_an_adapter_of_another_width_is_refused_with_both(kind, train, new, training_set):
    with pytest.raises(UntrainableModel, match=f"{kind.width} wide.*768 wide.*context_width.*{kind.width}"):
        train(adapter=new())
    # An adapter to start from keeps its own width.
    started_from = new(start_from=new(context_width=kind.width))
    assert started_from.adapter.config.clip_dim == kind.width


def test_a_model_of_another_kind_is_refused(started, train, new, checkpoint, kind):
    with pytest.raises(UntrainableModel, match=f"SD15.*768 wide.*{kind.width} wide"):
        train(model=checkpoint[0])
    with pytest.raises(WrongTraining, match=r"12 attention heads do not divide.*1000"):
        new(context_width=1000, heads=12)
