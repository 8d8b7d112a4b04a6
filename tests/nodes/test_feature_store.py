"""What the LLM has read is not read again, and what is remembered stays within its bounds."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import in_process
import tiny
from sandbox.client import Client
from sandbox.model_choice import make_standins
from sandbox.server import Server
from sandbox.standins import CHECKPOINT, ENCODER


def test_the_llm_is_not_run_again_for_what_it_has_read(llm, condition, monkeypatch):
    runs = []
    encode = type(llm.llm).encode
    monkeypatch.setattr(type(llm.llm), "encode", lambda *a, **k: runs.append(1) or encode(*a, **k))
    first = condition("a fox in the snow")[0][0]
    again = condition("a (fox:1.0) in the snow")[0][0]
    condition("a fox in the snow", strength=0.5)
    assert len(runs) == 1
    assert torch.equal(first, again)
    condition("a fox in the sand")
    assert len(runs) == 2


def test_another_loader_of_the_same_file_reads_nothing_anew_and_loads_nothing(started, llm, adapter):
    """As when a graph's loader runs again: with every text known, the weights stay on disk."""
    ids = llm.llm.tokenize("a fox in the snow", adapter.recipe).ids
    known = llm.features(ids, adapter.recipe)
    node = started.ours["LLM4GEN_LoadLLMEncoder"]
    again = in_process.run(node, encoder_name=ENCODER, dtype="fp32")
    assert again.features(ids, adapter.recipe) is known
    assert again.loaded is None and again.patcher is None
    other = in_process.run(node, encoder_name=ENCODER, dtype="bf16")
    assert not torch.equal(other.features(ids, adapter.recipe).states, known.states)


@pytest.fixture
def forget(started, monkeypatch):
    """As a server that was just started."""
    from llm4gen.models.features.store import FeatureStore  # noqa: PLC0415
    from llm4gen.nodes import managed  # noqa: PLC0415

    def forget():
        store = FeatureStore(managed.FEATURES.folder, managed.FEATURES.move)
        monkeypatch.setattr(managed, "FEATURES", store)
        node = started.ours["LLM4GEN_LoadLLMEncoder"]
        return in_process.run(node, encoder_name=ENCODER, dtype="fp32")

    return forget


def test_kept_on_disk_it_is_not_even_loaded_after_a_restart(started, adapter, forget, tmp_path, monkeypatch):
    folders = started.folders.folder_names_and_paths
    monkeypatch.setitem(folders, "llm4gen_cache", ([str(tmp_path)], set()))
    llm = forget()
    ids = llm.llm.tokenize("a hare in the field", adapter.recipe).ids
    read = llm.features(ids, adapter.recipe)
    assert llm.loaded and len(list(tmp_path.iterdir())) == 1

    llm = forget()
    kept = llm.features(ids, adapter.recipe)
    assert llm.loaded is None
    assert torch.equal(kept.rows.expand(kept.states), read.rows.expand(read.states))

    folders.pop("llm4gen_cache")
    llm = forget()
    llm.features(ids, adapter.recipe)
    assert llm.loaded, "off unless the user asks for it"


COLOURS, THINGS = ("red", "blue", "green", "black", "white"), ("cat", "dog", "tree", "house", "table")


def words(number):
    """Prompts that all differ, of twenty lengths in turn: torch keeps something for each length that it meets."""
    pairs = [
        f"{COLOURS[number // 5**step % 5]} {THINGS[(number + step) % 5]}" for step in range(3 + number % 20)
    ]
    return " and ".join(pairs)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_two_hundred_prompts_leave_the_server_as_large_as_twenty(host, tmp_path, monkeypatch):
    """Without the host's own memory of outputs, which holds as many as there is room for, and with an allocator
    that gives back at once what is freed, so that what is in use is what is measured."""
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.setenv(name, "65536")
    for folder in ("text_encoders", "llm4gen"):
        (tmp_path / "models" / folder).mkdir(parents=True)
    save_file(
        tiny.rankgen_tensors(tiny.t5_encoder()), tmp_path / "models" / "text_encoders" / "t5.safetensors"
    )
    save_file(tiny.adapter_tensors(clip=768, llm=32), tmp_path / "models" / "llm4gen" / "t5.safetensors")

    def prompt(number):
        inputs = {"clip": ["1", 1], "llm": ["2", 0], "adapter": ["3", 0], "text": words(number)}
        return {
            "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
            "2": {"class_type": "LLM4GEN_LoadLLMEncoder", "inputs": {"encoder_name": "t5.safetensors"}},
            "3": {"class_type": "LLM4GEN_LoadCrossAdapter", "inputs": {"adapter_name": "t5.safetensors"}},
            "4": {"class_type": "LLM4GEN_Conditioning", "inputs": inputs},
            "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 0]}},
        }

    held = []
    places, arguments = [make_standins(host), tmp_path / "models"], ["--cache-classic"]
    with Server(host, tmp_path / "server", places, arguments=arguments) as server:
        client = Client(server.url)
        for number in range(200):
            client.run(prompt(number))
            status = Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8")
            held.append(int(re.search(r"RssAnon:\s+(\d+)", status)[1]))
    assert len({words(number) for number in range(200)}) == 200
    # It breathes: the least of some is what stays.
    assert min(held[-5:]) <= 1.02 * min(held[15:20])
