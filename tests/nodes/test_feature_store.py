"""The feature store: each text is encoded once, also across loaders and restarts, within bounds of memory."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import in_process
import tiny
from graphs import fusing_graph
from sandbox.client import Client
from sandbox.model_choice import make_standins
from sandbox.server import Server
from sandbox.standins import ENCODER


def test_the_llm_does_not_run_again_for_the_same_text(llm, condition, monkeypatch):
    runs = []
    encode = type(llm.llm).encode_all
    monkeypatch.setattr(type(llm.llm), "encode_all", lambda *a, **k: runs.append(1) or encode(*a, **k))
    first = condition("a fox in the snow")[0][0]
    again = condition("a (fox:1.0) in the snow")[0][0]
    condition("a fox in the snow", strength=0.5)
    assert len(runs) == 1
    assert torch.equal(first, again)
    condition("a fox in the sand")
    assert len(runs) == 2


def test_another_loader_of_the_same_file_encodes_nothing_again_and_loads_no_weights(started, llm, adapter):
    """A workflow's loader may run again: while every text is in the store, the weights stay on disk."""
    ids = llm.llm.tokenize("a fox in the snow", adapter.recipe).ids
    stored = llm.features(ids, adapter.recipe)
    node = started.ours["LLM4GEN_LoadLLMEncoder"]
    again = in_process.run(node, encoder_name=ENCODER, dtype="fp32")
    assert again.features(ids, adapter.recipe) is stored
    assert again.loaded is None and again.patcher is None
    other = in_process.run(node, encoder_name=ENCODER, dtype="bf16")
    assert not torch.equal(other.features(ids, adapter.recipe).states, stored.states)


@pytest.fixture
def restart(started, monkeypatch):
    """Empties the store in memory, as a restart of the server does, and loads the LLM anew."""
    from llm4gen.models.features.store import FeatureStore  # noqa: PLC0415
    from llm4gen.nodes import managed  # noqa: PLC0415

    def restart():
        store = FeatureStore(managed.FEATURES.folder, managed.FEATURES.move)
        monkeypatch.setattr(managed, "FEATURES", store)
        node = started.ours["LLM4GEN_LoadLLMEncoder"]
        return in_process.run(node, encoder_name=ENCODER, dtype="fp32")

    return restart


def test_with_features_on_disk_the_llm_is_not_loaded_after_a_restart(
    started, adapter, restart, tmp_path, monkeypatch
):
    folders = started.folders.folder_names_and_paths
    monkeypatch.setitem(folders, "llm4gen_cache", ([str(tmp_path)], set()))
    llm = restart()
    ids = llm.llm.tokenize("a hare in the field", adapter.recipe).ids
    encoded = llm.features(ids, adapter.recipe)
    assert llm.loaded and len(list(tmp_path.iterdir())) == 1

    llm = restart()
    stored = llm.features(ids, adapter.recipe)
    assert llm.loaded is None
    assert torch.equal(stored.rows.expand(stored.states), encoded.rows.expand(encoded.states))

    folders.pop("llm4gen_cache")
    llm = restart()
    llm.features(ids, adapter.recipe)
    assert llm.loaded, "features are stored on disk although the user has not asked for it"


COLOURS, THINGS = ("red", "blue", "green", "black", "white"), ("cat", "dog", "tree", "house", "table")


def text_of(number):
    """Texts that all differ, of twenty lengths in turn, because torch keeps some memory for each length it meets."""
    pairs = [
        f"{COLOURS[number // 5**step % 5]} {THINGS[(number + step) % 5]}" for step in range(3 + number % 20)
    ]
    return " and ".join(pairs)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_two_hundred_prompts_take_no_more_memory_than_twenty(host, tmp_path, monkeypatch):
    """The server uses ComfyUI's classic cache of outputs, because the default one grows while there is room, and an
    allocator that returns freed memory at once, so that the test measures memory in use. ComfyUI collects garbage every
    ten seconds, or when it is asked to unload models."""
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.setenv(name, "65536")
    for folder in ("text_encoders", "llm4gen"):
        (tmp_path / "models" / folder).mkdir(parents=True)
    save_file(
        tiny.rankgen_tensors(tiny.t5_encoder()), tmp_path / "models" / "text_encoders" / "t5.safetensors"
    )
    save_file(tiny.adapter_tensors(clip=768, llm=32), tmp_path / "models" / "llm4gen" / "t5.safetensors")

    def prompt(number):
        loader = {"encoder_name": "t5.safetensors"}
        return fusing_graph(loader, "t5.safetensors", text_of(number), runs_clip=number % 5 == 0)

    def size():
        client.post("/free", {"unload_models": True})
        for _ in range(2):  # when the second begins, the garbage has been collected
            client.run(prompt(0))
        status = Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8")
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1])

    # Without --fp32-text-enc, converting CLIP from fp16 would take most of each prompt's time.
    arguments = ["--cache-classic", "--fp32-text-enc"]
    folders = [make_standins(host), tmp_path / "models"]
    with Server(host, tmp_path / "server", folders, arguments=arguments) as server:
        client, sizes = Client(server.url), {}
        for number in range(200):
            client.run(prompt(number))
            if number in (19, 199):
                sizes[number] = min(size() for _ in range(5))  # memory rises and falls
    assert len({text_of(number) for number in range(200)}) == 200
    assert sizes[199] <= 1.02 * sizes[19], sizes
