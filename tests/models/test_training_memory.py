"""A training whose batches do not fit in memory: the same is learnt from their parts."""

import contextlib
import json
import os
import re
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import tiny_training as training
from llm4gen.models.training.data import Example, TrainingData
from llm4gen.models.training.denoise import Denoise
from llm4gen.models.training.drawing import generator
from llm4gen.models.training.ranks import ALONE
from tiny import equal

try:
    import resource
except ImportError:  # Windows
    resource = None

STATM = Path("/proc/self/statm")


class Short:
    """A UNet for which a batch of more than `most` does not fit: in its forward pass from a call on, or backward."""

    def __init__(self, unet, most, place="forward", fits=0):
        self.unet, self.most, self.place, self.fits = unet, most, place, fits
        self.sizes, self.held, self.left = [], [], []

    def __call__(self, noised, timesteps, context, _=None):
        self.left.append(sum(found() is not None for found in self.held))
        self.sizes.append(len(noised))
        prediction = self.unet(noised, timesteps, context)
        if len(noised) > self.most and len(self.sizes) > self.fits:
            self.held.append(weakref.ref(prediction))
            if self.place == "forward":
                self.fail()
            context.register_hook(self.fail)  # by then, the UNet's last layers have their gradients
        return prediction

    def fail(self, *_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def trained_on(unet, learns, **settings):
    """A trainer of an adapter and all of a small UNet."""
    adapter = training.adapter()
    objective = Denoise(unet, training.schedule(), adapter)
    return training.trainer(objective, adapter, unet=learns, learning_rate=1e-3, **settings)


@pytest.mark.parametrize("place", ["forward", "backward"])
@pytest.mark.parametrize(("most", "sizes"), [(4, {4}), (2, {2}), (1, {1})])
def test_a_batch_that_does_not_fit_is_computed_in_parts_and_gives_the_same(place, most, sizes, caplog):
    """The batches before the one that fails, and the layers that had their gradients by then, count once."""
    plain, short = (training.SmallUNet().requires_grad_(True) for _ in range(2))
    faulty = Short(short, most, place, fits=1 if place == "forward" else 0)
    settings = {"steps": 3, "batch_size": 8, "accumulate": 2}
    whole = trained_on(plain, dict(plain.named_parameters()), **settings)
    parts = trained_on(faulty, dict(short.named_parameters()), **settings)
    for trainer in (whole, parts):
        trainer.step()
    second = len(faulty.sizes)
    for trainer in (whole, parts):
        trainer.run()
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)
    for part in ("adapter", "unet"):
        for name, weight in whole.result(part).items():
            if name != "key.bias":  # its true gradient is 0, of which AdamW sees the rounding alone
                torch.testing.assert_close(parts.result(part)[name], weight, rtol=1e-5, atol=1e-5)
    assert set(faulty.sizes[second:]) == sizes and sum(faulty.sizes[second:]) == 2 * 8 * 2
    assert set(faulty.left) == {0}, "the next try begins with the memory of the failed one"
    told = [message for message in caplog.messages if "do not fit in memory" in message]
    tries = {4: [(8, 4)], 2: [(8, 4), (4, 2)], 1: [(8, 4), (4, 2), (2, 1)]}[most]
    assert [tuple(map(int, re.findall(r"\d+", message))) for message in told] == tries


def test_nothing_is_split_where_everything_fits():
    unet = training.SmallUNet()
    faulty = Short(unet, 8)
    trained_on(faulty, {}, steps=1, batch_size=8).run()
    assert faulty.sizes == [8]


def test_one_example_that_does_not_fit_is_an_error_that_changes_nothing():
    unet = training.SmallUNet().requires_grad_(True)
    faulty = Short(unet, 8)
    trainer = trained_on(faulty, dict(unet.named_parameters()), steps=3, batch_size=5)
    trainer.step()
    before = {name: weight.detach().clone() for name, weight in trainer.weights.items()}
    faulty.most, faulty.sizes = 0, []
    with pytest.raises(torch.cuda.OutOfMemoryError):
        trainer.run()
    assert faulty.sizes == [5, 3, 2, 1]
    assert equal(before, trainer.weights) and trainer.steps == 1
    faulty.most = 1
    trainer.run()
    assert trainer.steps == 3, "with more memory, it goes on"


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    unet = training.SmallUNet()
    faulty = Short(unet, 1)
    trainer = trained_on(faulty, {}, steps=1, batch_size=2)
    trainer.is_out_of_memory = lambda error: "another system's words" in str(error)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        trainer.run()
    assert faulty.sizes == [2]


def test_a_process_with_less_memory_than_the_others_computes_its_share_in_parts():
    count = 2
    barrier, given = threading.Barrier(count, timeout=60), [None] * count

    def trainer(number, ranks, batch_size):
        unet = training.SmallUNet().requires_grad_(True)
        learns = dict(unet.named_parameters())
        made = trained_on(Short(unet, 1) if number == 1 else unet, learns, steps=3, batch_size=batch_size)
        made.ranks = ranks
        return made

    found = [trainer(number, training.Sharing(number, count, barrier, given), 4) for number in range(count)]
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda one: one.run(), found))
    whole = trainer(0, ALONE, 8)
    whole.run()
    assert [one.at_once for one in found] == [4, 1]
    for one in found:
        assert one.losses == pytest.approx(whole.losses, rel=1e-5)
        for name, weight in whole.result("unet").items():
            torch.testing.assert_close(one.result("unet")[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not STATM.exists(), reason="NOT LINUX: only there a process's memory is limited so.")
def test_a_process_whose_memory_really_ends_learns_the_same_from_parts(monkeypatch):
    """A copy of this process may take 64 MiB more, of which the activations of 64 examples would need some 200."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    whole = of_large_pictures()
    whole.run()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        train_in_little_memory(tell)
    os.close(tell)
    with open(told, "rb") as answer:
        found = json.loads(answer.read())
    os.waitpid(child, 0)
    assert "error" not in found, found["error"]
    assert 1 <= found["at_once"] < 64
    assert found["losses"] == pytest.approx(whole.losses, rel=1e-5)
    for name, weight in whole.result("adapter").items():
        if name != "key.bias":  # its true gradient is 0
            torch.testing.assert_close(torch.tensor(found["weights"][name]), weight, rtol=1e-4, atol=1e-5)


def of_large_pictures():
    """Latents of 32 by 32: the UNet's activations of one example take about 3 MB."""
    examples = [Example(torch.randn(4, 32, 32, generator=generator(n)), training.text(n)) for n in range(3)]
    data = TrainingData(examples, training.text(99))
    adapter = training.adapter()
    objective = Denoise(training.SmallUNet(), training.schedule(), adapter)
    return training.trainer(objective, adapter, data, steps=2, batch_size=64)


def allow(size):
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


def train_in_little_memory(tell):
    """Never comes back to pytest."""
    try:
        trainer = of_large_pictures()
        size = int(STATM.read_text().split()[0]) * resource.getpagesize()
        allow(size)
        kept = []  # what the process has already, and does not use
        with contextlib.suppress(RuntimeError, MemoryError):
            while True:
                kept.append(torch.empty(1 << 20, dtype=torch.uint8))
        allow(size + (64 << 20))
        trainer.run()
        allow(resource.RLIM_INFINITY)
        weights = {name: weight.tolist() for name, weight in trainer.result("adapter").items()}
        with open(tell, "w") as answer:
            json.dump({"at_once": trainer.at_once, "losses": trainer.losses, "weights": weights}, answer)
    except BaseException as error:
        with open(tell, "w") as answer:
            json.dump({"error": repr(error)}, answer)
    finally:
        os._exit(0)
