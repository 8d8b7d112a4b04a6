"""What a list, a keystroke and a run cost in file-system calls: on a network drive each takes a millisecond or more.

The bounds: a list costs at most three times what ComfyUI's own costs, a keystroke and a fingerprint at most ten calls.
"""

import collections
import json
import os
import threading

import pytest
from safetensors.torch import save_file

import in_process
import tiny

FILES, FOLDERS = 300, 10
ENCODER, FOLDER, ADAPTER = "sub0/m0.safetensors", "sub1/model", "adapters/p.safetensors"


@pytest.fixture
def slow_drive(place, tmp_path):
    """300 encoders in ten folders and three roots, one of them a folder of its own, and an adapter."""
    root = tmp_path / "two" / "text_encoders"
    for number in range(FILES):
        folder = root / f"sub{number % FOLDERS}"
        folder.mkdir(exist_ok=True)
        (folder / f"m{number}.safetensors").write_bytes(b"x")
    tensors = tiny.rankgen_tensors(tiny.t5_encoder())
    save_file(tensors, root / ENCODER)
    (root / FOLDER).mkdir()
    save_file(tensors, root / FOLDER / "model.safetensors")
    for name in ("config", "generation_config", "special_tokens_map"):
        (root / FOLDER / f"{name}.json").write_text("{}", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = (place.host_t5_tokenizer() / name).read_bytes()
        (root / FOLDER / name).write_bytes(content)
    (tmp_path / "two" / "llm4gen" / "adapters").mkdir()
    save_file(tiny.adapter_tensors(clip=768), tmp_path / "two" / "llm4gen" / ADAPTER)
    (tmp_path / "three" / "text_encoders").mkdir(parents=True)
    in_process.start().folders.add_model_folder_path(
        "text_encoders", str(tmp_path / "three" / "text_encoders")
    )
    place.choices("text_encoders")
    place.choices("llm4gen")
    return place


class CountedEntry:
    """A directory entry that counts the calls of `stat`, which its name and its kind cost no call."""

    def __init__(self, entry, calls):
        self.entry, self.calls = entry, calls

    def __getattr__(self, name):
        return getattr(self.entry, name)

    def stat(self, **options):
        self.calls["entry.stat"] += 1
        return self.entry.stat(**options)


class CountedScan:
    def __init__(self, found, calls):
        self.found, self.calls = found, calls

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.found.close()

    def __iter__(self):
        return self

    def __next__(self):
        return CountedEntry(next(self.found), self.calls)


@pytest.fixture
def count(tmp_path, monkeypatch):
    """Counts the file-system calls below `tmp_path` of a second run, when all caches are filled."""

    def count(run):
        run()
        calls = collections.Counter()

        def counted(name, real):
            def call(path, *arguments, **options):
                if not str(path).startswith(str(tmp_path)):
                    return real(path, *arguments, **options)
                calls[name] += 1
                found = real(path, *arguments, **options)
                return CountedScan(found, calls) if name == "scandir" else found

            return call

        with monkeypatch.context() as patch:
            for name in ("stat", "lstat", "scandir", "listdir", "open", "readlink"):
                patch.setattr(os, name, counted(name, getattr(os, name)))
            patch.setattr("io.open", counted("io.open", open))
            run()
        return calls.total()

    return count


def test_a_list_costs_at_most_three_times_comfyuis(slow_drive, count):
    theirs = count(in_process.start().core.CLIPLoader.INPUT_TYPES)
    assert theirs >= FOLDERS, "their list looks at each folder"
    ours = count(in_process.start().ours["LLM4GEN_LoadLLMEncoder"].INPUT_TYPES)
    assert FOLDERS <= ours <= 3 * theirs


@pytest.mark.parametrize("encoder", [ENCODER, FOLDER, "sub3/m3.safetensors", "not/there.safetensors"])
def test_a_keystroke_and_a_fingerprint_cost_at_most_ten_calls(encoder, slow_drive, count):
    from llm4gen.nodes.pages import meter  # noqa: PLC0415

    is_readable = encoder in (ENCODER, FOLDER)
    assert ("note" in meter.count("a cat", None, encoder, ADAPTER)) == (encoder == "sub3/m3.safetensors")
    assert (1 if is_readable else 0) <= count(lambda: meter.count("a cat", None, encoder, ADAPTER)) <= 10
    for node, name in (("LLM4GEN_LoadLLMEncoder", encoder), ("LLM4GEN_LoadCrossAdapter", ADAPTER)):
        assert (
            count(lambda node=node, name=name: in_process.start().ours[node].fingerprint_inputs(name)) <= 10
        )


def test_a_keystroke_still_sees_a_changed_file(slow_drive, tmp_path):
    from llm4gen.nodes.pages import meter  # noqa: PLC0415

    folder = tmp_path / "two" / "text_encoders" / FOLDER
    assert "note" not in meter.count("a cat", None, FOLDER, ADAPTER)
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    assert "cannot be read" in meter.count("a cat", None, FOLDER, ADAPTER)["note"]
    (tmp_path / "two" / "llm4gen" / ADAPTER).unlink()
    assert "p.safetensors" in meter.count("a cat", None, FOLDER, ADAPTER)["note"]


def test_no_file_is_looked_at_on_the_servers_own_thread(slow_drive, tmp_path, monkeypatch):
    """The server answers nobody else while its event loop waits for a drive."""
    import asyncio  # noqa: PLC0415

    from aiohttp import web  # noqa: PLC0415
    from aiohttp.test_utils import TestClient, TestServer  # noqa: PLC0415

    from llm4gen.nodes.pages import routes  # noqa: PLC0415

    threads = set()
    for name in ("stat", "scandir"):
        real = getattr(os, name)

        def look(path, *arguments, real=real, **options):
            if str(path).startswith(str(tmp_path)):
                threads.add(threading.current_thread())
            return real(path, *arguments, **options)

        monkeypatch.setattr(os, name, look)

    async def ask():
        app = web.Application()
        app.router.add_post("/tokens", routes.answering(routes.tokens, "POST"))
        app.router.add_get("/report", routes.answering(routes.report, "GET"))
        async with TestClient(TestServer(app)) as client:
            body = {"text": "a cat", "encoder": ENCODER, "adapter": ADAPTER}
            assert (await client.post("/tokens", json=body)).status == 200
            assert len(json.loads(await (await client.get("/report")).text())["encoders"]) == FILES + 1

    asyncio.run(ask())
    assert threads and threading.main_thread() not in threads
