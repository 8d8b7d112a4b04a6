"""The nodes that train, in a real ComfyUI and in inference mode, as ComfyUI runs every node."""

import dataclasses
import gc
import json
import re
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import in_process
from llm4gen.models.errors import UntrainableModel, WrongTraining
from sandbox.client import ExecutionError, Interrupted
from sandbox.standins import CHECKPOINT, ENCODER
from tiny import equal, identical, relative_error, untouched, weights_of
from training_inputs import JOB, NEW

TEXTS = ["a red cat on a mat", "a blue dog"]


@pytest.fixture(scope="module")
def nodes(started):
    from llm4gen.nodes import train  # noqa: PLC0415

    return train


@pytest.fixture(scope="module")
def new(nodes, llm):
    """A new adapter for the stand-in LLM."""

    def new(**changes):
        with torch.inference_mode():
            return in_process.run(nodes.NewCrossAdapter, llm=llm, **NEW | changes)

    return new


@pytest.fixture(scope="module")
def fresh(new):
    return new()


@pytest.fixture(scope="module")
def known(new, fresh):
    """The same weights, but not as random ones, which training takes to be drawn for states of its own scale."""
    return new(start_from=fresh)


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return [torch.rand(1, 64, 64, 3), torch.rand(1, 64, 64, 3)]


@pytest.fixture(scope="module")
def set_inputs(checkpoint, llm, fresh, images):
    """What Training Set gets: each input is a list."""
    _, clip, vae = checkpoint
    return {
        "texts": TEXTS,
        "clip": [clip],
        "llm": [llm],
        "adapter": [fresh],
        "images": images,
        "vae": [vae],
    }


@pytest.fixture(scope="module")
def training_set(nodes, set_inputs):
    with torch.inference_mode():
        return in_process.run(nodes.TrainingSetNode, **set_inputs)


@pytest.fixture(scope="module")
def train(nodes, model, training_set, fresh):
    """Train Cross-Adapter: its five outputs."""

    def train(model=model, training_set=training_set, adapter=fresh, **changes):
        with torch.inference_mode():
            return nodes.TrainCrossAdapter.execute(model, training_set, adapter, **JOB | changes).args

    return train


@pytest.fixture(scope="module")
def trained(train):
    return train(steps=1)[0]


@pytest.fixture
def states(started):
    """The files of states that the test's trainings leave."""
    from llm4gen.nodes import folders  # noqa: PLC0415

    before = set(folders.training_folder().iterdir())
    return lambda: sorted(set(folders.training_folder().iterdir()) - before)


def conditioned(condition, adapter):
    return condition(TEXTS[0], adapter=adapter)


def test_what_an_adapter_learns_from_is_what_conditioning_gives(training_set, fresh, condition):
    from llm4gen.models.training.data import Drawn, batches  # noqa: PLC0415

    text = training_set.encoded[TEXTS[0]]
    nothing = torch.zeros(4, 8, 8)
    (batch,) = batches([Drawn(nothing, text.clip, text.llm, None, nothing, 0)], torch.device("cpu"))
    with torch.inference_mode():
        ((expected, _),) = conditioned(condition, fresh)
        found = batch.context(fresh.adapter)
    assert found.shape == (1, 77 + 12, 768)
    assert torch.equal(found[:, :77], expected[:, :77])
    assert relative_error(found, expected) <= 1e-3  # the LLM's states are kept in fp16


def tensors_in(found):
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, (list, tuple)):
        yield from (tensor for entry in found for tensor in tensors_in(entry))
    elif isinstance(found, dict) or dataclasses.is_dataclass(found):
        entries = found if isinstance(found, dict) else vars(found)
        yield from (tensor for entry in entries.values() for tensor in tensors_in(entry))


def test_comfyui_can_count_the_memory_of_a_training_set(training_set):
    held, counted = (
        {id(tensor): tensor.nbytes for tensor in tensors_in(found)}
        for found in (training_set, training_set._comfy_cache_tensors())
    )
    assert counted.keys() <= held.keys() and sum(counted.values()) > 0.95 * sum(held.values())


def test_a_saved_adapter_gives_to_the_bit_what_the_trained_one_gave(
    train, nodes, started, condition, fresh, llm, states
):
    adapter, lora, _, losses, steps = train()
    assert not equal(weights_of(adapter.adapter), weights_of(fresh.adapter))
    assert (lora.message.count("frozen"), steps, len(losses["loss"])) == (1, 2, 2)
    with torch.inference_mode():
        nodes.SaveCrossAdapter.execute(adapter, "a folder/mine", notes="for tests")
        started.folders.filename_list_cache.clear()
        loaded = in_process.run(
            started.ours["LLM4GEN_LoadCrossAdapter"], adapter_name="a folder/mine_00001_.safetensors"
        )
    assert identical(conditioned(condition, loaded), conditioned(condition, adapter))
    assert loaded.recipe == adapter.recipe == fresh.recipe
    entry = json.loads(loaded.training)
    assert entry.pop("notes") == "for tests"
    assert entry == json.loads(adapter.training)
    assert (entry["steps"], entry["pictures"], entry["captions"], entry["objective"]) == (2, 2, 2, "denoise")
    assert entry["llm"]["name"] == llm.llm.file.path.name
    assert entry["version"] == 1
    decided = {"rank": None, "unet_learning_rate": JOB["learning_rate"]}  # of a frozen UNet
    decided |= {
        "entity_weight": 0.0,
        "weight_decay": 1e-2,
        "warm_up": 100,
        "decay": "constant",
        "clip_norm": 1.0,
        "ema": 0.999,
        "noises": 1,
        "weighting": "min-snr",
        "drop_clip_tokens": 0.0,
    }
    assert entry["job"] == {name: JOB[name] for name in entry["job"].keys() & JOB.keys()} | decided
    assert len(states()) == 1


@pytest.mark.parametrize("unet", ["LoRA", "whole"])
def test_training_leaves_the_users_models_as_they_are(
    train, model, checkpoint, llm, fresh, sample, condition, unet
):
    before = weights_of(model.model), weights_of(checkpoint[1].cond_stage_model), weights_of(fresh.adapter)
    positive = conditioned(condition, fresh)
    latent = sample(positive, positive).samples
    patches = dict(model.patches)
    train(unet=unet, quiet_start=1)
    after = weights_of(model.model), weights_of(checkpoint[1].cond_stage_model), weights_of(fresh.adapter)
    assert all(untouched(one, other) for one, other in zip(before, after, strict=True))
    assert dict(model.patches) == patches
    assert torch.equal(sample(positive, positive).samples, latent)


def unets_loaded(model):
    """How many UNets of a MODEL's kind ComfyUI holds. None of them is another MODEL with the same weights."""
    import comfy.model_management as management  # noqa: PLC0415

    loaded = [entry.model for entry in management.current_loaded_models]
    assert all(patcher is None or patcher is model or patcher.model is not model.model for patcher in loaded)
    kinds = [type(patcher.model).__name__ for patcher in loaded if patcher is not None]
    return kinds.count(type(model.model).__name__)


def test_after_a_training_comfyui_has_forgotten_the_copy(train, model):
    train(steps=1)
    assert unets_loaded(model) <= 1


def test_adapter_and_lora_bring_the_loss_of_eight_pictures_below_seven_tenths(train, nodes, set_inputs):
    torch.manual_seed(0)
    images = [torch.rand(1, 64, 64, 3) for _ in range(8)]
    texts = [
        f"a {colour} {animal}" for colour in ("red", "blue", "green", "white") for animal in ("cat", "dog")
    ]
    with torch.inference_mode():
        data = in_process.run(nodes.TrainingSetNode, **set_inputs | {"texts": texts, "images": images})
    job = {
        "unet": "LoRA",
        "rank": 16,
        "steps": 80,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "precision": "fp32",
    }
    losses = train(training_set=data, **job)[3]["loss"]
    assert mean(losses[-10:]) <= 0.7 * mean(losses[:5])


def test_a_lora_that_was_learnt_is_one_that_core_takes(train, started, model, sample, condition, fresh):
    adapter, lora, with_lora, _, _ = train(unet="LoRA", learning_rate=1e-2)
    from comfy_extras.nodes_train import LoraModelLoader  # noqa: PLC0415

    assert {name.rsplit(".", 2)[-2] for name in lora if name.endswith(".weight")} == {"lora_up", "lora_down"}
    with torch.inference_mode():
        by_core = in_process.run(LoraModelLoader, model=model, lora=lora, strength_model=1.0)
    positive = conditioned(condition, adapter)
    ours, cores, plain = (
        sample(positive, positive, model=one).samples for one in (with_lora, by_core, model)
    )
    assert torch.equal(ours, cores)
    assert not torch.equal(ours, plain)
    layers = {name.split(".lora_")[0] for name in lora if ".lora_" in name}
    assert len(with_lora.patches) == len(layers), "core knows every layer of the LoRA"


def test_a_whole_unet_that_was_learnt_is_a_model_that_core_samples_and_saves(
    train, started, model, sample, condition, put
):
    """It begins with the LoRA of the user's MODEL, and it can be trained further."""
    from comfy_extras.nodes_model_merging import ModelSave  # noqa: PLC0415

    def latent(model):
        return sample(positive, positive, model=model).samples

    adapter, _, with_lora, _, _ = train(unet="LoRA", learning_rate=1e-2)
    positive = conditioned(condition, adapter)
    unchanged = train(with_lora, unet="whole", steps=0)[2]
    assert (
        relative_error(latent(unchanged), latent(with_lora))
        < 1e-4
        < relative_error(latent(unchanged), latent(model))
    )
    learnt, lora, changed, _, _ = train(with_lora, unet="whole", unet_learning_rate=1e-3)
    assert "its input unet is whole" in lora.message
    assert json.loads(learnt.training)["job"]["unet_learning_rate"] == 1e-3
    assert relative_error(latent(changed), latent(unchanged)) > 1e-4
    assert torch.equal(latent(train(changed, unet="whole", steps=0)[2]), latent(changed))
    with torch.inference_mode():
        ModelSave().save(changed, "whole_unet")
        (saved,) = Path(started.folders.get_output_directory()).glob("whole_unet*")
        put("diffusion_models", "whole_unet.safetensors", load_file(saved))
        (loaded,) = started.core.UNETLoader().load_unet("whole_unet.safetensors", "default")
    assert torch.equal(latent(loaded), latent(changed))


def test_a_loaded_adapter_says_once_what_it_was_trained_with(train, nodes, started, caplog):
    loader = started.ours["LLM4GEN_LoadCrossAdapter"]
    alone = train(steps=1)[0]
    with_lora, _, patched, _, _ = train(steps=1, unet="LoRA")
    with_unet, on_lora = train(patched, steps=1, unet="whole")[0], train(patched, steps=1)[0]
    expected = {"together with a LoRA": with_lora, "together with the whole UNet": with_unet}
    for text, adapter in (expected | {"on a UNet with a LoRA or a merge": on_lora, "": alone}).items():
        caplog.clear()
        with torch.inference_mode(), caplog.at_level("INFO"):
            name = nodes.SaveCrossAdapter.execute(adapter, "said").ui["text"][0]
            started.folders.filename_list_cache.clear()
            loaded = in_process.run(loader, adapter_name=name)
        found = [line for line in caplog.messages if "was trained" in line]
        assert len(found) == (text != "") and all(f"{name} was trained {text}" in line for line in found)
        assert loaded.training == adapter.training


def test_a_whole_unet_learns_at_a_tenth_of_the_adapters_rate_unless_told(nodes):
    rates = {
        unet: nodes.job_of(**JOB | {"unet": unet, "unet_learning_rate": own}).settings.unet_learning_rate
        for unet, own in (("LoRA", 0.0), ("whole", 0.0), ("frozen", 2e-5))
    }
    assert rates == {"LoRA": 1e-3, "whole": pytest.approx(1e-4), "frozen": 2e-5}


def test_the_same_job_gives_the_same_adapter_with_and_without_checkpointing(train):
    """Another seed gives another."""
    jobs = ({"gradient_checkpointing": True}, {}, {"seed": 2})
    first, second, other = (weights_of(train(steps=1, **job)[0].adapter) for job in jobs)
    assert equal(first, second)
    assert not equal(first, other)


def test_cancel_ends_within_a_step_and_the_same_job_goes_on_to_the_bit(train, states, monkeypatch):
    import comfy.model_management as management  # noqa: PLC0415

    from llm4gen.models.training.trainer import Trainer  # noqa: PLC0415

    job = {"unet": "LoRA", "steps": 3, "seed": 11}
    whole = train(**job)
    for file in states():
        file.unlink()
    step = Trainer.step

    def cancelled(trainer):
        loss = step(trainer)
        if trainer.steps == 2:
            management.interrupt_current_processing(True)
        return loss

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", cancelled)
        with pytest.raises(management.InterruptProcessingException):
            train(**job)
    (file,) = states()
    with safe_open(file, framework="pt") as state:
        assert len(state.get_tensor("losses")) == 2, "the step that ran was the last"
    calls = []
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", lambda trainer: calls.append(trainer.steps) or step(trainer))
        resumed = train(**job, resume=True)
    assert calls == [2]
    assert resumed[3] == whole[3]
    assert equal(weights_of(resumed[0].adapter), weights_of(whole[0].adapter))
    assert equal(resumed[1], whole[1])


@pytest.fixture
def fitting(started, monkeypatch):
    """Lets the UNet run out of memory with more than `most` latents at once, and in every call after `until`."""
    from llm4gen.nodes.training.unet import UNetInTraining  # noqa: PLC0415

    predict, limit = UNetInTraining.predict, SimpleNamespace(most=1, until=None, calls=0)

    def short(unet, noised, *rest):
        limit.calls += 1
        if len(noised) > limit.most or (limit.until is not None and limit.calls > limit.until):
            raise torch.cuda.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 8 GiB."
            )
        return predict(unet, noised, *rest)

    monkeypatch.setattr(UNetInTraining, "predict", short)
    return limit


@pytest.fixture
def told(started, monkeypatch):
    """The texts that the node shows."""
    from llm4gen.nodes.training import shown  # noqa: PLC0415

    found = []
    monkeypatch.setattr(shown.server, "show_text", found.append)
    monkeypatch.setattr(shown, "PERIOD", 0.0)
    return found


def test_a_batch_that_does_not_fit_gives_the_same_adapter_and_the_node_says_so(train, fitting, told, caplog):
    job = {"steps": 2, "quiet_start": 1, "seed": 45, "preview_every": 0}
    fitting.most = 2
    whole = train(**job)
    assert not any("memory" in text for text in told)
    told.clear()
    fitting.most = 1
    parts = train(**job)
    assert parts[3]["loss"] == pytest.approx(whole[3]["loss"], rel=1e-5)
    for name, weight in weights_of(whole[0].adapter).items():
        if name != "key.bias":  # its true gradient is 0, of which AdamW sees the rounding alone
            torch.testing.assert_close(
                weights_of(parts[0].adapter)[name], weight, rtol=1e-4, atol=1e-6, msg=name
            )
    assert caplog.text.count("Batches of 2 do not fit in memory") == 1, (
        "the training begins with the smaller parts"
    )
    line = "short of memory: 2 at once do not fit, so at most 1 are computed together"
    assert [text.splitlines()[-1] for text in told] == [line] * 3


def test_one_picture_that_does_not_fit_ends_a_training_which_then_goes_on_to_the_bit(
    train, fitting, states, model, checkpoint, fresh
):
    """The error says what was wanted and what to do, and the user's models are as before."""
    from llm4gen.models.errors import OutOfMemory  # noqa: PLC0415

    own = model.model, checkpoint[1].cond_stage_model, checkpoint[2].first_stage_model, fresh.adapter
    before, patches = list(map(weights_of, own)), dict(model.patches)
    job = {"unet": "LoRA", "steps": 3, "seed": 46, "preview_every": 0, "precision": "fp32"}
    whole = train(**job)
    for file in states():
        file.unlink()
    fitting.calls, fitting.until = 0, 1 + 2 * 2  # a try of both, and two steps of one and one
    with pytest.raises(OutOfMemory) as raised:
        train(**job)
    assert str(raised.value) == (
        "There is not enough memory for this training, even one picture at a time: another 2.00 GiB is wanted. "
        "End other programs that use the GPU. Turn on gradient_checkpointing, which gives the same result. Choose "
        "bf16 as precision. Use smaller pictures. Choose frozen as unet. The state after step 2 is kept, from which "
        "the same inputs go on, also with gradient_checkpointing."
    )
    assert all(map(untouched, before, map(weights_of, own))) and dict(model.patches) == patches
    assert unets_loaded(model) <= 1
    fitting.until = None
    resumed = train(**job, resume=True, gradient_checkpointing=True)
    assert resumed[3] == whole[3]
    assert equal(weights_of(resumed[0].adapter), weights_of(whole[0].adapter)) and equal(resumed[1], whole[1])


@pytest.mark.parametrize(
    ("changes", "at_once", "saved", "expected"),
    [
        (
            {"gradient_checkpointing": True, "unet": "whole"},
            1,
            None,
            "memory for this training, even one picture at a time: another 2.00 GiB is wanted. End other programs "
            "that use the GPU. Use smaller pictures. Train a LoRA in place of the whole UNet.",
        ),
        (
            {"gradient_checkpointing": True, "entity_weight": 0.1},
            2,
            "5 of the quiet start",
            "memory for this training: another 2.00 GiB is wanted. End other programs that use the GPU. Set "
            "entity_weight to 0. Use smaller pictures. The state after step 5 of the quiet start is kept, from which "
            "the same inputs go on.",
        ),
        (
            {},
            None,
            None,
            "memory to load the models of this training: another 2.00 GiB is wanted. End other programs that use the "
            "GPU. Turn on gradient_checkpointing, which gives the same result. Use smaller pictures.",
        ),
    ],
)
def test_a_shortage_of_memory_names_what_the_job_can_still_do(nodes, changes, at_once, saved, expected):
    from llm4gen.nodes.training.shortage import shortage  # noqa: PLC0415

    error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 8.00 GiB.")
    found = shortage(error, nodes.job_of(**JOB | changes), torch.bfloat16, at_once, saved)
    assert str(found) == f"There is not enough {expected}"


def test_a_preview_that_does_not_fit_is_left_out_and_the_training_goes_on(train, bar, monkeypatch, caplog):
    from llm4gen.nodes.training import shown  # noqa: PLC0415

    def short(preview):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(shown.Preview, "latents", short)
    job = {"steps": 2, "seed": 48}
    plain = train(**job, preview_every=0)
    found = train(**job, preview_every=1)
    assert caplog.text.count("There is not enough memory for a preview") == 2
    assert found[3] == plain[3] and [picture for _, picture in bar if picture] == []


SAVING = -1  # Cancel is pressed while a state is saved


class Moments:
    """ComfyUI's question whether the user has pressed Cancel, which is pressed when it is asked for the n-th time."""

    def __init__(self, management):
        self.management, self.asked, self.last = management, 0, None
        self.ask = management.throw_exception_if_processing_interrupted

    def __call__(self):
        self.asked += 1
        if self.asked == self.last:
            self.management.interrupt_current_processing(True)
        self.ask()


@pytest.fixture
def moments(started, monkeypatch):
    import comfy.model_management as management  # noqa: PLC0415

    found = Moments(management)
    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", found)
    return found


def losses_in(file):
    with safe_open(file, framework="pt") as state:
        return state.get_tensor("losses").tolist()


def test_a_training_that_is_cancelled_at_20_moments_loses_no_step_and_ends_as_one_that_ran_through(
    train, states, moments, monkeypatch, model, fresh
):
    """Cancel comes in the quiet start, in steps, in previews and while a state is saved; each run goes on from the
    one before. One run of three does a step."""
    from llm4gen.models.training.trainer import Trainer  # noqa: PLC0415
    from llm4gen.nodes.training import kept, shown  # noqa: PLC0415

    job = {"unet": "LoRA", "steps": 5, "quiet_start": 2, "save_every": 1, "preview_every": 2, "seed": 13}
    monkeypatch.setattr(shown, "STEPS", 2)
    before = weights_of(model.model), weights_of(fresh.adapter)
    begun, done, step, save_state = [], [], Trainer.step, kept.save_state

    def counted(trainer):
        begun.append(moments.asked)
        loss = step(trainer)
        done.append(loss)
        return loss

    def saved(*inputs):
        save_state(*inputs)
        if moments.last == SAVING:
            moments.management.interrupt_current_processing(True)

    monkeypatch.setattr(Trainer, "step", counted)
    monkeypatch.setattr(kept, "save_state", saved)
    whole, expected = train(**job), done.copy()
    for file in states():
        file.unlink()
    # Of a step of the quiet start, and of one of the training that no preview follows.
    first, lengths = begun[0], (begun[1] - begun[0], begun[3] - begun[2])
    done.clear()
    for number in range(20):
        into = (0.1 + 0.04 * number, 0.95 - 0.03 * number, 1.6 + 0.02 * number)[number % 3]
        length = lengths[len(done) >= job["quiet_start"]]
        moments.asked, moments.last = 0, SAVING if number in (5, 14) else first + round(into * length)
        with pytest.raises(moments.management.InterruptProcessingException):
            train(**job, resume=True)
        assert done == expected[: len(done)], "each step is done once"
        if done:
            (file,) = states()
            in_training = len(done) - job["quiet_start"]
            assert losses_in(file) == (done if in_training < 0 else done[job["quiet_start"] :])
    assert job["quiet_start"] + 2 <= len(done) < len(expected), "Cancel came in both parts"
    moments.last = None
    resumed = train(**job, resume=True)
    assert done == expected and resumed[3] == whole[3]
    assert equal(weights_of(resumed[0].adapter), weights_of(whole[0].adapter))
    assert equal(resumed[1], whole[1])
    assert all(map(equal, before, (weights_of(model.model), weights_of(fresh.adapter))))


def test_cancel_while_captions_are_read_leaves_the_models_as_they_are(
    nodes, checkpoint, fresh, set_inputs, training_set, moments
):
    _, clip, vae = checkpoint
    models = clip.cond_stage_model, vae.first_stage_model, fresh.adapter
    before = list(map(weights_of, models))
    with torch.inference_mode():
        for last in (1, 50):
            moments.asked, moments.last = 0, last
            with pytest.raises(moments.management.InterruptProcessingException):
                in_process.run(nodes.TrainingSetNode, **set_inputs)
        found = in_process.run(nodes.TrainingSetNode, **set_inputs)
    assert all(map(untouched, before, map(weights_of, models)))
    assert all(map(torch.equal, tensors_in(found), tensors_in(training_set)))


def test_after_ten_trainings_no_more_memory_is_held_than_after_three(train, states):
    """Within 3%, of the tensors that are alive and of what the process has of the machine's memory."""
    held, resident = [], []
    for seed in range(10):
        train(unet="LoRA", steps=1, quiet_start=1, preview_every=0, seed=seed)
        for file in states():
            file.unlink()
        if seed not in (2, 9):
            continue
        gc.collect()
        storages = {
            found.untyped_storage().data_ptr(): found.untyped_storage().nbytes()
            for found in gc.get_objects()
            if isinstance(found, torch.Tensor)
        }
        held.append(sum(storages.values()))
        resident.append(psutil.Process().memory_info().rss)
    for third, tenth in (held, resident):
        assert tenth <= 1.03 * third


@pytest.fixture
def bar(started, monkeypatch):
    """What the node's progress bar shows: pairs of steps and picture, None where there is none."""
    import comfy.utils  # noqa: PLC0415

    from llm4gen.nodes.training import shown  # noqa: PLC0415

    found = []

    def show(value, total, picture, node_id=None):
        found.append((value, picture))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", show)
    monkeypatch.setattr(shown, "STEPS", 2)
    return found


@pytest.mark.parametrize("unet", ["LoRA", "whole"])
def test_previews_change_nothing_of_what_is_learnt(train, bar, unet):
    job = {"unet": unet, "steps": 4, "seed": 71, "learning_rate": 1e-2, "gradient_checkpointing": True}
    plain = train(**job, preview_every=0)
    assert [picture for _, picture in bar if picture] == []
    watched = train(**job, preview_every=2)
    pictures = {steps: picture for steps, picture in bar if picture}
    assert list(pictures) == [2, 4]
    assert {(kind, image.size) for kind, image, _ in pictures.values()} == {("JPEG", (8, 8))}
    assert pictures[2][1].tobytes() != pictures[4][1].tobytes(), "each shows its step"
    assert watched[3] == plain[3]
    assert equal(weights_of(watched[0].adapter), weights_of(plain[0].adapter))
    assert unet != "LoRA" or equal(watched[1], plain[1])
    changes = (
        {name: patch[0][1][1][0] for name, patch in one[2].patches.items()} for one in (watched, plain)
    )
    assert unet != "whole" or equal(*changes)


def test_a_preview_is_what_ksampler_draws_for_the_first_caption(train, model, condition, known, monkeypatch):
    import comfy.sample  # noqa: PLC0415

    from llm4gen.nodes.training import shown  # noqa: PLC0415

    seen, latents = [], shown.Preview.latents

    def drawn(preview):
        seen.append((preview.noise.cpu(), latents(preview).cpu()))
        return seen[-1][1]

    monkeypatch.setattr(shown.Preview, "latents", drawn)
    monkeypatch.setattr(shown, "STEPS", 4)
    train(adapter=known, steps=1, preview_every=1, learning_rate=1e-8)
    ((noise, found),) = seen
    start = torch.zeros_like(noise)
    with torch.inference_mode():
        first, second, empty = (condition(text, adapter=known) for text in (*TEXTS, ""))
        expected, other = (
            comfy.sample.sample(model, noise, 4, 7.5, "euler", "ddim_uniform", text, empty, start, seed=0)
            for text in (first, second)
        )
    found = model.model.process_latent_out(found)
    assert relative_error(found, expected) <= 1e-2 < relative_error(found, other)


def test_cancel_during_a_preview_ends_within_a_step_of_it_and_keeps_the_training(train, states, monkeypatch):
    import comfy.model_management as management  # noqa: PLC0415

    from llm4gen.nodes.training.unet import UNetInTraining  # noqa: PLC0415

    predict, calls = UNetInTraining.predict, []

    def cancelled(self, noised, *rest):
        if not torch.is_grad_enabled():
            calls.append(len(noised))
            management.interrupt_current_processing(len(calls) == 4)
        return predict(self, noised, *rest)

    monkeypatch.setattr(UNetInTraining, "predict", cancelled)
    with pytest.raises(management.InterruptProcessingException):
        train(steps=3, seed=81, preview_every=2)
    assert calls == [1] * 4, "no other call of the UNet came after the one in which Cancel was pressed"
    (file,) = states()
    with safe_open(file, framework="pt") as state:
        assert len(state.get_tensor("losses")) == 2


def test_previews_leave_no_memory_behind(train, bar, monkeypatch):
    from llm4gen.nodes.training import kept  # noqa: PLC0415

    tensors = []
    save_state = kept.save_state

    def count(*inputs):
        gc.collect()
        tensors.append(sum(torch.is_tensor(entry) for entry in gc.get_objects()))
        return save_state(*inputs)

    monkeypatch.setattr(kept, "save_state", count)
    train(steps=3, seed=91, save_every=1, preview_every=1)
    assert [steps for steps, picture in bar if picture] == [1, 2, 3]
    assert len(set(tensors[:3])) == 1, "each state is kept before the preview of its step"


def test_a_training_tells_the_node_its_loss_speed_and_time_left(train, monkeypatch):
    from llm4gen.nodes.training import shown  # noqa: PLC0415

    texts = []
    monkeypatch.setattr(shown.server, "show_text", texts.append)
    losses = train(steps=3, seed=95, quiet_start=1)[3]["loss"]
    assert re.fullmatch(r"quiet start: step 1 of 1\nmean loss [\d.]+\n[\d.e+]+ steps/s, 00:00 left", texts[0])
    first, last = texts[1], texts[-1]
    assert re.fullmatch(
        rf"training: step 1 of 3\nmean loss {losses[0]:.4f}\n[\d.e+]+ steps/s, [\d:]+ left", first
    )
    assert last.startswith(f"training: step 3 of 3\nmean loss {sum(losses) / 3:.4f}\n")
    assert shown.described(100, 400, 0.5, 2.0) == "step 100 of 400\nmean loss 0.5000\n0.5 steps/s, 10:00 left"


def test_more_steps_go_on_and_another_job_starts_anew(train, states):
    train(steps=1, seed=21)
    assert len(train(steps=2, seed=21, resume=True)[3]["loss"]) == 2
    assert len(states()) == 1
    train(steps=1, seed=22, resume=True)
    assert len(states()) == 2


def test_a_state_is_kept_every_few_steps(train, states, monkeypatch):
    from llm4gen.nodes.training import kept  # noqa: PLC0415

    saved = []
    save_state = kept.save_state
    monkeypatch.setattr(
        kept, "save_state", lambda trainer, *rest: saved.append(trainer.steps) or save_state(trainer, *rest)
    )
    train(steps=3, save_every=2, seed=31)
    assert saved == [2, 3]
    assert len(states()) == 1


def test_a_full_disk_is_named_and_costs_nothing_but_the_state(train, states, monkeypatch, caplog):
    from llm4gen.nodes.training import kept  # noqa: PLC0415

    def full(*_):
        raise OSError(28, "No space left on device")

    expected = train(steps=2, seed=41)
    for file in states():
        file.unlink()
    monkeypatch.setattr(kept, "save_state", full)
    found = train(steps=2, seed=41, save_every=1)
    assert equal(weights_of(found[0].adapter), weights_of(expected[0].adapter))
    assert "The state after step 1 cannot be kept" in caplog.text
    assert "No space left on device" in caplog.text
    assert states() == []


def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(train, started, clip, llm, known, model):
    """The teacher reads the same captions through the same adapter, so the first loss is 0 but for rounding."""
    with torch.inference_mode():
        teacher = in_process.run(
            started.ours["LLM4GEN_ApplyToCLIP"], clip=clip, llm=llm, adapter=known, strength=1.0
        )
    *_, losses, _ = train(adapter=known, steps=1, teacher_clip=teacher, teacher_model=model)
    assert losses["loss"][0] < 1e-6
    *_, losses, _ = train(adapter=known, steps=1, teacher_clip=clip)
    assert losses["loss"][0] > 1e-4


def test_only_a_new_adapter_gets_a_quiet_start(train, new, fresh):
    assert not equal(*(weights_of(train(steps=0, quiet_start=n)[0].adapter) for n in (0, 2)))
    trained = new(start_from=fresh, seed=5)
    assert equal(weights_of(trained.adapter), weights_of(fresh.adapter))
    started_from = weights_of(train(adapter=trained, steps=0, quiet_start=2)[0].adapter)
    for name, weight in weights_of(trained.adapter).items():
        # Its first layer was converted to the scale of training and back.
        torch.testing.assert_close(started_from[name], weight, rtol=1e-4, atol=1e-5)


def test_a_quiet_start_ends_within_1_percent_of_the_prediction_without_it(train, fresh, model, condition):
    """For captions and noise that it has not seen, through core's own call of the UNet."""
    import comfy.model_management as management  # noqa: PLC0415

    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(4, 4, 8, 8, generator=generator)

    def change(adapter):
        management.load_models_gpu([model])
        apart, size = 0.0, 0.0
        for text in ("an old house in the rain", "two birds"):
            ((context, _),) = condition(text, adapter=adapter)
            contexts = (context, context[:, :77])
            for sigma in (0.3, 2.0, 14.0):
                noised, sigmas = latents * (1 + sigma**2) ** 0.5, torch.full((4,), sigma)
                changed, base = (
                    noised - model.model.apply_model(noised, sigmas, c_crossattn=one.expand(4, -1, -1))
                    for one in contexts
                )
                apart, size = (
                    apart + (changed - base).square().sum() / sigma**2,
                    size + base.square().sum() / sigma**2,
                )
        return (apart / size).sqrt().item()

    with torch.inference_mode():
        new, started = change(fresh), change(train(steps=0, quiet_start=20)[0])
    assert new > 0.1 and started <= 0.01, (new, started)


def test_the_llms_half_is_left_out_only_where_the_unet_learns(nodes):
    """An adapter that learns alone would learn nothing from such a step."""
    rates = {"drop_text": 0.1, "drop_llm": 0.2, "drop_clip": 0.3}
    frozen, lora = (
        nodes.job_of(**{**JOB, **rates, "unet": unet}).settings.drops for unet in ("frozen", "LoRA")
    )
    assert (frozen.text, frozen.llm, frozen.clip) == (0.1, 0.0, 0.3)
    assert (lora.text, lora.llm, lora.clip) == (0.1, 0.2, 0.3)


def test_the_entity_loss_needs_pairs_and_changes_what_is_learnt(nodes, set_inputs, train):
    with torch.inference_mode():
        found = in_process.run(nodes.TrainingSetNode, **set_inputs, pairs=["red: cat", ""])
        with pytest.raises(WrongTraining, match="There are 2 captions and 1 texts of pairs"):
            nodes.TrainingSetNode.execute(**set_inputs, pairs=["red: cat"])
    assert len(found.encoded[TEXTS[0]].pairs) == 1
    assert found.encoded[TEXTS[1]].pairs == ()
    jobs = ({}, {"entity_weight": 1.0}, {"entity_weight": 1.0})
    without, *guided = (train(training_set=found, steps=1, **job) for job in jobs)
    assert guided[0][3]["loss"][0] > without[3]["loss"][0]
    assert not equal(weights_of(guided[0][0].adapter), weights_of(without[0].adapter))
    assert equal(*(weights_of(one[0].adapter) for one in guided))
    with pytest.raises(WrongTraining, match="entity_weight is set, but no caption has pairs"):
        train(steps=1, entity_weight=1.0)


def test_a_new_adapter_can_be_used_as_any_other(fresh, condition):
    ((states, _),) = conditioned(condition, fresh)
    assert states.shape == (1, 77 + 12, 768)
    assert states.isfinite().all()
    assert fresh.is_new


def test_pictures_of_several_sizes_and_batches_are_learnt_from_together(nodes, checkpoint, llm, fresh, train):
    _, clip, vae = checkpoint
    images = [torch.rand(2, 64, 64, 3), torch.rand(1, 64, 128, 4)]
    with torch.inference_mode():
        found = in_process.run(
            nodes.TrainingSetNode,
            texts=[TEXTS[0]] * 3,
            clip=[clip],
            llm=[llm],
            adapter=[fresh],
            images=images,
            vae=[vae],
        )
        expected = vae.encode(images[1][..., :3])[0]
    assert [tuple(latent.shape) for latent in found.latents] == [(4, 8, 8), (4, 8, 8), (4, 8, 16)]
    assert torch.equal(found.latents[2], expected)
    assert train(training_set=found, steps=1, batch_size=3)[4] == 1


def test_pictures_without_a_caption_are_named_and_left_out(nodes, checkpoint, llm, fresh, caplog):
    _, clip, _ = checkpoint
    latents = [{"samples": torch.zeros(2, 4, 8, 8)}, {"samples": torch.zeros(1, 4, 8, 8)}]
    with torch.inference_mode():
        found = in_process.run(
            nodes.TrainingSetNode,
            texts=["", TEXTS[0], "  "],
            clip=[clip],
            llm=[llm],
            adapter=[fresh],
            latents=latents,
        )
    assert list(found.texts) == [TEXTS[0]]
    assert "2 of 3 pictures have no caption and are left out: 1, 3." in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": TEXTS[:1]}, "There are 2 pictures and 1 captions"),
        ({"texts": ["", " "]}, "no picture with a caption"),
        ({"vae": None}, "either images and vae, or latents"),
        ({"vae": [None]}, "got no VAE"),
        (
            {"images": None, "vae": None, "latents": [{"samples": torch.zeros(2, 16, 8, 8)}]},
            "SD1.5, SD2 and SDXL have 4 channels",
        ),
        ({"images": None, "vae": None}, "either images and vae, or latents"),
        ({"latents": [{"samples": torch.zeros(2, 4, 8, 8)}]}, "either images and vae, or latents"),
    ],
)
def test_a_training_set_that_is_not_whole_is_refused(nodes, set_inputs, changes, message):
    with torch.inference_mode(), pytest.raises(WrongTraining, match=message):
        nodes.TrainingSetNode.execute(**set_inputs | changes)


def test_an_adapter_with_another_recipe_is_refused(train, new):
    with pytest.raises(
        WrongTraining, match="Connect the same adapter to Training Set and Train Cross-Adapter"
    ):
        train(adapter=new(tokens=13))


def test_a_teachers_model_without_its_clip_is_refused(train, model):
    with pytest.raises(WrongTraining, match="teacher_model without a teacher_clip"):
        train(teacher_model=model)


def test_models_that_cannot_be_trained_say_which_can(train, model, started, monkeypatch):
    advice = "Connect a MODEL of SD1.5, SD2 or SDXL from Load Checkpoint or Load Diffusion Model, in fp32, fp16 or bf16"
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3  # noqa: PLC0415

    unknown = model.clone()
    unknown.cached_patcher_init = None
    with pytest.raises(UntrainableModel, match=f"does not know the file.*{advice}"):
        train(model=unknown)
    clean = ModelSamplingDiscrete().patch(model, "x0", zsnr=False)[0]
    flow = ModelSamplingSD3().patch(model, 3.0)[0]
    for other in (clean, flow):
        with pytest.raises(UntrainableModel, match=f"predicts neither noise nor velocity.*{advice}"):
            train(model=other)
    other = model.clone()
    monkeypatch.setitem(other.model.model_config.unet_config, "in_channels", 9)
    with pytest.raises(UntrainableModel, match=f"This MODEL is SD15 for inpainting.*{advice}"):
        train(model=other)


def test_a_quantised_model_is_refused(train, started, put, standin):
    unet = {name: tensor for name, tensor in standin.items() if name.startswith("model.diffusion_model.")}
    put("diffusion_models", "to_quantise.safetensors", unet)
    with torch.inference_mode():
        (model,) = started.core.UNETLoader().load_unet("to_quantise.safetensors", "fp8_e4m3fn")
    with pytest.raises(UntrainableModel, match=r"This MODEL is quantised: .* float8_e4m3fn"):
        train(model=model)


@pytest.mark.parametrize(
    "prefix",
    [
        "../elsewhere",
        "/tmp/elsewhere",
        "",
        ".",
        "mine/",
        "a//b",
        "a\nb",
        "a:b",
        "a?",
        "nul",
        "con.x",
        ".hid",
        "x" * 300,
    ],
)
def test_a_prefix_that_is_no_name_on_every_system_is_refused(nodes, trained, prefix):
    with pytest.raises(WrongTraining, match="is no file name that every system can store in llm4gen"):
        nodes.SaveCrossAdapter.execute(trained, prefix)


def test_no_saved_file_is_overwritten_and_other_users_can_read_it(nodes, trained, started):
    names = [nodes.SaveCrossAdapter.execute(trained, "mine\\twice").ui["text"][0] for _ in range(2)]
    assert names == ["twice_00001_.safetensors", "twice_00002_.safetensors"]
    folder = Path(started.folders.models_dir, "llm4gen", "mine")
    assert {path.name for path in folder.glob("twice*")} == set(names)
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.glob("twice*"))


def test_an_adapter_that_has_not_been_trained_is_not_saved(nodes, fresh):
    with pytest.raises(WrongTraining, match="has not been trained"):
        nodes.SaveCrossAdapter.execute(fresh, "mine")


def test_training_further_keeps_what_the_adapter_said_of_itself(train, trained):
    entry = json.loads(train(adapter=trained, steps=1)[0].training)
    assert entry["start"] == json.loads(trained.training)


def test_another_prediction_starts_another_training(train, model, states):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete  # noqa: PLC0415

    train(steps=1, seed=51)
    velocity = ModelSamplingDiscrete().patch(model, "v_prediction", zsnr=False)[0]
    train(model=velocity, steps=1, seed=51, resume=True)
    assert len(states()) == 2


def test_a_kept_state_is_not_lost_when_resume_is_off(train, states):
    train(steps=2, seed=61)
    train(steps=1, seed=61)
    losses = []
    for file in states():
        with safe_open(file, framework="pt") as state:
            losses.append(len(state.get_tensor("losses")))
    assert sorted(losses) == [1, 2]


def graph(**job):
    """A prompt for the server that trains on an empty latent (node 5) and saves the adapter (node 6)."""
    nodes = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}),
        "2": ("LLM4GEN_LoadLLMEncoder", {"encoder_name": ENCODER}),
        "3": ("LLM4GEN_NewCrossAdapter", {"llm": ["2", 0], **NEW}),
        "4": (
            "LLM4GEN_TrainingSet",
            {"texts": ["8", 0], "clip": ["1", 1], "llm": ["2", 0], "adapter": ["3", 0], "latents": ["7", 0]},
        ),
        "5": (
            "LLM4GEN_TrainCrossAdapter",
            {"model": ["1", 0], "training_set": ["4", 0], "adapter": ["3", 0], **JOB, "resume": True, **job},
        ),
        "6": ("LLM4GEN_SaveCrossAdapter", {"adapter": ["5", 0], "prefix": "trained_in_a_graph"}),
        "7": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "8": ("PrimitiveString", {"value": TEXTS[1]}),
        "9": ("PreviewAny", {"source": ["5", 4]}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def unsaved(**job):
    """The same without node 6, so that no adapter is left among the stand-ins."""
    return {name: node for name, node in graph(**job).items() if name != "6"}


def test_a_training_that_is_cancelled_in_a_server_goes_on_and_saves_its_adapter_but_no_lora(client, server):
    def cancel(kind, data):
        if kind == "progress" and data["node"] == "5":
            client.interrupt()

    with pytest.raises(Interrupted):
        client.run(graph(steps=1_000_000, batch_size=1), cancel)
    outputs = client.run(graph(steps=1, batch_size=1))
    (file,) = outputs["6"]["text"]
    assert file == "trained_in_a_graph_00001_.safetensors"
    assert int(outputs["9"]["text"][0]) >= 1, "what was learnt before Cancel"
    loader = client.object_info()["LLM4GEN_LoadCrossAdapter"]
    assert file in loader["input"]["required"]["adapter_name"][1]["options"]
    saves_lora = {"10": {"class_type": "SaveLoRA", "inputs": {"lora": ["5", 1], "prefix": "loras/none"}}}
    with pytest.raises(ExecutionError, match="learnt no LoRA, because its input unet is frozen"):
        client.run(graph(steps=1, batch_size=1) | saves_lora)
    assert list(server.output.rglob("none*")) == []
    (saved,) = (server.base / "models" / "llm4gen").glob(file)
    saved.unlink()  # other tests expect the stand-in alone


def test_a_server_that_trains_ten_times_holds_no_more_memory_than_after_three(client, server):
    """Within 3%, with what its user's caches keep of the last one."""
    process, resident = psutil.Process(server.pid), {}
    for number in range(1, 11):
        client.run(unsaved(steps=1, batch_size=1, unet="LoRA", preview_every=0, seed=200 + number))
        resident[number] = process.memory_info().rss
    assert resident[10] <= 1.03 * resident[3], resident


def test_cancels_at_several_moments_in_a_server_lose_no_step_and_the_next_prompt_runs(client, server):
    """At some of the server's messages: before the training, in it, and between two of its steps. Those in it are
    counted from its start, because the nodes before it may be in the server's cache or not."""
    folder, kept = server.output / "llm4gen_training", [0]
    before = set(folder.glob("*"))
    for start, left in (("prompt", 4), ("training", 5), ("prompt", 2), ("training", 12), ("training", 7)):
        is_counted = start == "prompt"

        def cancel(kind, data):
            nonlocal left, is_counted
            is_counted = is_counted or (kind, data.get("node")) == ("executing", "5")
            left -= is_counted
            if left == 0:
                client.interrupt()

        with pytest.raises(Interrupted):
            client.run(unsaved(steps=1_000_000, batch_size=1, preview_every=3, seed=300), cancel)
        files = set(folder.glob("*")) - before
        kept.append(len(losses_in(*files)) if files else 0)
    assert kept == sorted(kept) and kept[-1] > 0
    assert len(files) == 1, "nothing is left of a state that was not written to its end"
    outputs = client.run(unsaved(steps=1, batch_size=1, seed=300))
    assert int(outputs["9"]["text"][0]) == kept[-1]
