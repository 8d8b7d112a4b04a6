"""Pickles: a training checkpoint is read where it is clear which tensors are meant, and code is never run."""

import argparse
import datetime
import pickle

import pytest
import torch
from safetensors.torch import save_file

import tiny
from llm4gen.models.checkpoints.adapter import load_cross_adapter
from llm4gen.models.errors import IncompleteCheckpoint, UnknownCheckpoint, UnreadableFile
from llm4gen.models.llm import open_llm

NAME = "CrossFusionModule.0.llm_proj.weight"


@pytest.fixture(scope="module")
def adapter():
    return tiny.adapter_tensors()


def optimizer_state():
    """The state of a real optimizer after a step, for two weights as large as the adapter's."""
    weights = [torch.nn.Parameter(torch.ones(64, 32)), torch.nn.Parameter(torch.ones(64))]
    optimizer = torch.optim.AdamW(weights)
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    return optimizer.state_dict()


LIGHTNING = {
    "epoch": 3,
    "global_step": 1000,
    "pytorch-lightning_version": "2.4.0",
    "loops": {"fit_loop": {"epoch_progress": {"total": {"ready": 3}}}},
    "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.1)}},
    "lr_schedulers": [{"last_epoch": 3}],
    "hparams_name": "kwargs",
}
DEEPSPEED = {
    "buffer_names": [],
    "param_shapes": [{NAME: torch.Size([64, 32])}],
    "ds_config": {"train_batch_size": 8},
    "ds_version": "0.15.0",
    "optimizer": None,
    "dp_world_size": 8,
}
# What training programs save, around the weights `w` and an optimizer's state `o`.
CHECKPOINTS = {
    "bare keys": lambda w, o: {"model": w},
    "DDP": lambda w, o: {"module": w, "optimizer": o, "epoch": 4},
    "model_state_dict": lambda w, o: {"epoch": 1, "model_state_dict": w, "optimizer_state_dict": o, "loss": 0.5},
    "ema": lambda w, o: {"ema": w, "step": torch.tensor(5)},
    "params": lambda w, o: {"params": w},
    "net": lambda w, o: {"net": w, "acc": 0.9, "rng_state": torch.get_rng_state()},
    "GAN": lambda w, o: {"generator": w, "discriminator": {"main.0.weight": torch.ones(64, 3, 3, 3)}, "opt": o},
    "DDP's names": lambda w, o: {"model": {f"module.{name}": tensor for name, tensor in w.items()}, "optim": o},
    "torch.compile": lambda w, o: {f"_orig_mod.{name}": tensor for name, tensor in w.items()},
    "FSDP": lambda w, o: {
        "model": {f"_fsdp_wrapped_module.{name.replace('.0.', '.0._fsdp_wrapped_module.')}": w[name] for name in w},
        "optim": {"state": {NAME: {"exp_avg": torch.ones(64, 32), "step": torch.tensor(1.0)}}, "param_groups": []},
    },
    "Lightning": lambda w, o: LIGHTNING | {"state_dict": w, "optimizer_states": [o]},
    "DeepSpeed": lambda w, o: DEEPSPEED | {"module": w},
    "two deep": lambda w, o: {"state": {"model": w, "optimizer": o}, "config": {"lr": 1e-4}},
    "counters among the tensors": lambda w, o: {**w, "step": 7, "lr": 0.1, "name": "x", "optimizer": o},
    "another key": lambda w, o: {"epoch": 3, "weights": w},
}  # fmt: skip


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_training_checkpoint_is_read_when_one_set_of_weights_is_meant(kind, adapter, tmp_path):
    torch.save(adapter, tmp_path / "plain.pth")
    torch.save(CHECKPOINTS[kind](adapter, optimizer_state()), tmp_path / "trained.pth")
    plain, trained = (load_cross_adapter(tmp_path / name)[0] for name in ("plain.pth", "trained.pth"))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(trained.state_dict()[name], tensor)


def test_an_encoder_is_read_from_a_training_checkpoint_too(tmp_path):
    tensors = tiny.rankgen_tensors(tiny.t5_encoder(vocab_size=64))
    torch.save({"model": tensors, "critic": {"head.weight": torch.ones(4, 4)}}, tmp_path / "t5.bin")
    assert open_llm(tmp_path / "t5.bin").load().config.vocabulary == 64


@pytest.mark.parametrize("keys", [("model", "ema"), ("params", "params_ema"), ("generator", "generator_ema")])
def test_two_sets_of_the_same_weights_are_refused_and_both_named(keys, adapter, tmp_path):
    torch.save({**dict.fromkeys(keys, adapter), "step": 5}, tmp_path / "a.pth")
    with pytest.raises(UnknownCheckpoint) as caught:
        load_cross_adapter(tmp_path / "a.pth")
    assert "a.pth holds 2 models of this kind" in str(caught.value)
    assert all(f"{key}.{NAME}" in str(caught.value) for key in keys) and "into a file of its own" in str(
        caught.value
    )
    together = {f"{key}.{name}": tensor.clone() for key in keys for name, tensor in adapter.items()}
    save_file(together, tmp_path / "a.safetensors")
    with pytest.raises(UnknownCheckpoint, match="holds 2 models of this kind"):
        load_cross_adapter(tmp_path / "a.safetensors")


def test_an_unknown_weight_beside_the_adapters_is_refused_in_a_training_checkpoint(adapter, tmp_path):
    torch.save({"model": adapter | {"CrossFusionModule.0.gate": torch.ones(64)}, "head": {"w": torch.ones(2)}},
               tmp_path / "a.pth")  # fmt: skip
    with pytest.raises(
        IncompleteCheckpoint, match=r"has unknown 1 tensor \(model.CrossFusionModule.0.gate\)"
    ):
        load_cross_adapter(tmp_path / "a.pth")


def test_a_checkpoint_whose_weights_are_in_other_files_says_so(adapter, tmp_path):
    """DeepSpeed's third stage leaves empty tensors."""
    torch.save(DEEPSPEED | {"module": {name: torch.zeros(0) for name in adapter}}, tmp_path / "a.pt")
    with pytest.raises(
        UnknownCheckpoint, match=r"left its weights in other files: 20 tensors.*zero_to_fp32.py"
    ):
        load_cross_adapter(tmp_path / "a.pt")


def test_weights_in_a_dictionary_for_each_module_are_checked_like_others(adapter, tmp_path):
    modules = {}
    for name, tensor in adapter.items():
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = tensor
    torch.save(modules, tmp_path / "a.pth")
    load_cross_adapter(tmp_path / "a.pth")
    modules["CrossFusionModule.0.out_proj"]["gate"] = torch.ones(64)
    torch.save(modules, tmp_path / "a.pth")
    with pytest.raises(IncompleteCheckpoint, match=r"unknown 1 tensor \(CrossFusionModule.0.out_proj.gate\)"):
        load_cross_adapter(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "words", ["can't allocate memory", "not enough memory: you tried to allocate 9 bytes."]
)
def test_a_full_memory_is_no_damage(words, adapter, tmp_path, monkeypatch):
    torch.save(adapter, tmp_path / "a.pth")

    def load(*_, **__):
        raise RuntimeError(f"[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: {words}")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        load_cross_adapter(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("saved", "found"),
    [
        (
            {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}},
            "a dictionary with 'optimizer'",
        ),
        ({"shadow_params": [torch.ones(3)], "decay": 0.9}, "a dictionary with 'shadow_params', 'decay'"),
        ([torch.ones(3)], "a list"),
        (torch.ones(3), "a Tensor"),
        ({}, "a dictionary with nothing in it"),
    ],
)
def test_a_pickle_without_named_tensors_says_what_it_holds(saved, found, tmp_path):
    torch.save(saved, tmp_path / "a.pth")
    with pytest.raises(
        UnreadableFile, match=f"a.pth holds {found}, but no dictionary of named tensors.*state dict"
    ):
        load_cross_adapter(tmp_path / "a.pth")


def test_a_dictionary_that_holds_itself_is_refused(tmp_path):
    for key in ("state_dict", "model"):
        saved = {}
        saved[key] = saved
        torch.save(saved, tmp_path / "a.pth")
        with pytest.raises(UnreadableFile):
            load_cross_adapter(tmp_path / "a.pth")


class Quantised(torch.Tensor):
    """Stands for a quantising library's tensor class."""


Quantised.__module__ = "torchao.dtypes"


def save_torchscript(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


UNSAFE = {
    "argparse": (
        lambda path: torch.save({"model": {}, "args": argparse.Namespace(lr=1)}, path),
        "argparse.Namespace",
    ),
    "a whole module": (
        lambda path: torch.save(torch.nn.Linear(2, 2), path),
        "torch.nn.modules.linear.Linear",
    ),
    "a date": (lambda path: torch.save({"at": datetime.timedelta(1)}, path), "datetime.timedelta"),
    "an old pickle": (
        lambda path: torch.save({"a": argparse.Namespace()}, path, _use_new_zipfile_serialization=False),
        "argparse.Namespace",
    ),
    "a call": (lambda path: torch.save({"a": tiny.Payload(path.with_name("proof"))}, path), "io.open"),
    "TorchScript": (save_torchscript, "TorchScript program"),
    "no pickle": (lambda path: path.write_bytes(b"\0<html>404</html>"), "damaged"),
    "another pickle": (
        lambda path: path.write_bytes(pickle.dumps(datetime.date(2020, 1, 1))),
        "datetime.date|damaged",
    ),
}


@pytest.mark.filterwarnings("ignore")  # torch's compiler of scripts is deprecated
@pytest.mark.parametrize("kind", UNSAFE)
def test_a_refused_pickle_is_explained_in_our_words(kind, tmp_path):
    """torch's own text advises to load it all the same, and has the colours of a terminal in it."""
    write, found = UNSAFE[kind]
    write(tmp_path / "a.pth")
    with pytest.raises(UnreadableFile, match=f"a.pth .*({found})") as caught:
        load_cross_adapter(tmp_path / "a.pth")
    message = str(caught.value)
    for advice in ("weights_only", "torch.load", "safe_globals", "allowlist", "trust", "\x1b", "\n"):
        assert advice not in message
    assert any(advice in message for advice in ("Get the", "ownload it again"))


def test_a_quantised_tensor_of_a_library_is_named(tmp_path, monkeypatch):
    import sys  # noqa: PLC0415
    import types  # noqa: PLC0415

    module = types.ModuleType("torchao.dtypes")
    module.Quantised = Quantised
    monkeypatch.setitem(sys.modules, "torchao", types.ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.dtypes", module)
    torch.save({"x": torch.zeros(2).as_subclass(Quantised)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        UnreadableFile, match=r"is quantised with torchao: it holds objects of torchao.* bf16"
    ):
        open_llm(tmp_path / "pytorch_model.bin")
