"""A training that stops goes on from its file as if it had never stopped."""

import json
import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_training as training
from llm4gen.models.errors import UnusableState
from llm4gen.models.training import state
from llm4gen.models.training.adamw import MOMENTS
from llm4gen.models.training.denoise import Denoise
from llm4gen.models.training.settings import Drops
from llm4gen.models.training.state import load_state, save_state, state_of
from tiny import equal

JOB = "a job"


def fresh(steps, **settings):
    """A trainer of an adapter and one matrix of the UNet, with all of the drops."""
    adapter, unet = training.adapter(), training.SmallUNet()
    learns = {"out": unet.leave.weight.requires_grad_(True)}
    objective = Denoise(unet, training.schedule(), adapter)
    rates = {"drops": Drops(0.2, 0.2, 0.2), "ema": 0.9, "warm_up": 3, "batch_size": 3}
    return training.trainer(objective, adapter, unet=learns, steps=steps, **rates | settings)


def test_n_steps_and_n_more_equal_2n_to_the_bit(tmp_path):
    whole = fresh(6)
    whole.run()
    first = fresh(3)
    first.run()
    save_state(first, tmp_path / "state.safetensors", JOB)
    second = fresh(6)
    load_state(second, tmp_path / "state.safetensors", JOB)
    assert second.steps == 3
    second.run()
    assert second.losses == whole.losses
    assert equal(state_of(second), state_of(whole))
    assert equal(second.result("adapter"), whole.result("adapter"))
    assert equal(second.result("unet"), whole.result("unet"))


@pytest.mark.parametrize("version", ["this", "older"])
def test_a_weight_that_had_no_gradient_yet_goes_on_too(version, tmp_path):
    """At first the LLM's half is always left out, so AdamW knows nothing of the adapter yet. Files of older versions
    have no moments then."""
    first, path = fresh(2, drops=Drops(0.0, 1.0, 0.0)), tmp_path / "state.safetensors"
    first.run()
    save_state(first, path, JOB)
    if version == "older":
        spoil(path, without_the_adapters_moments)
    second = fresh(3)
    second.step()
    load_state(second, path, JOB)
    assert equal(state_of(second), state_of(first))
    second.run()


def without_the_adapters_moments(tensors, entry):
    del entry["sum"]
    for name in [name for name in tensors if name.startswith(tuple(f"{kind}.adapter." for kind in MOMENTS))]:
        del tensors[name]


def test_a_step_makes_no_moments():
    """If memory ended while it made them, some weights would be a step ahead of others."""
    trainer = fresh(1)
    made = {name: tensor.data_ptr() for name, tensor in state_of(trainer).items() if name != "losses"}
    assert {f"{kind}.{name}" for kind in MOMENTS for name in trainer.weights} < set(made)
    trainer.run()
    assert made == {name: tensor.data_ptr() for name, tensor in state_of(trainer).items() if name != "losses"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="NO FORK: Windows cannot copy a process.")
def test_a_run_that_is_killed_at_any_moment_leaves_a_state_that_goes_on(tmp_path):
    """A copy of this process saves after every step, and is killed 20 times, at a random moment after its first."""
    path, chance, steps = tmp_path / "state.safetensors", random.Random(0), 0
    for _ in range(20):
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            go_on_for_ever(path, tell)
        os.close(tell)  # so that a copy that fails ends the wait
        assert os.read(told, 1) == b"."
        time.sleep(chance.uniform(0.0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
        trainer = fresh(0)
        load_state(trainer, path, JOB)
        assert trainer.steps > steps
        steps = trainer.steps
    whole = fresh(steps)
    whole.run()
    assert equal(state_of(trainer), state_of(whole))


def go_on_for_ever(path, tell):
    """Trains until it is killed, and writes a byte for each state saved. It never comes back to pytest."""
    try:
        trainer = fresh(10**9)
        if path.exists():
            load_state(trainer, path, JOB)

        def save():
            save_state(trainer, path, JOB)
            os.write(tell, b".")

        trainer.run(save)
    finally:
        os._exit(1)


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    trainer, path = fresh(2), tmp_path / "state.safetensors"
    trainer.step()
    save_state(trainer, path, JOB)
    before = path.read_bytes()

    def full(tensors, file, metadata):
        file.write_bytes(before[: len(before) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "save_file", full)
    trainer.step()
    with pytest.raises(OSError, match="No space left"):
        save_state(trainer, path, JOB)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def spoil(path, change):
    """Rewrites a state's tensors and entry."""
    tensors = load_file(path)
    with state.safe_open(path, framework="pt") as file:
        entry = json.loads(file.metadata()[state.STATE_KEY])
    change(tensors, entry)
    save_file(tensors, path, {state.STATE_KEY: json.dumps(entry)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, entry: entry.update(job="another"), "is not the state of this training.*'another'"),
        (lambda tensors, entry: entry.update(version=1), "is not the state of this training"),
        (lambda tensors, entry: tensors.pop("weight.unet.out"), "weight.unet.out is missing"),
        (lambda tensors, entry: tensors.pop("losses"), "losses is missing"),
        (
            lambda tensors, entry: tensors.update({"average.adapter.out.bias": torch.zeros(3)}),
            r"average.adapter.out.bias is \[3\], and \[32\] is wanted",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, change, message):
    trainer, path = fresh(1), tmp_path / "state.safetensors"
    trainer.run()
    save_state(trainer, path, JOB)
    spoil(path, change)
    other = fresh(1)
    before = {name: tensor.clone() for name, tensor in state_of(other).items()}
    with pytest.raises(UnusableState, match=message):
        load_state(other, path, JOB)
    assert equal(state_of(other), before)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 5000])
def test_a_file_that_is_no_state_is_named(tmp_path, content):
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    with pytest.raises(UnusableState, match=r"state.safetensors cannot be read .* Delete it"):
        load_state(fresh(1), path, JOB)
