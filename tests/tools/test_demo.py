"""The demo command: which weights it chooses, what it prints, and how its server and client report errors."""

import copy
import io
import json
import os
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo_model import models
from demo_model.data import CELLS
from demo_model.picture import found_in
from demo_model.prompts import PROMPTS, is_right
from host.comfyui import HostError
from llm4gen.models.checkpoints.checkpoint_kind import context_width
from paths import TOOLS
from sandbox import standins
from sandbox.client import Client, ExecutionError, ValidationError, image_paths
from sandbox.demo import BadPicture, check_picture, set_up
from sandbox.made_once import make_once
from sandbox.model_choice import with_present_models
from sandbox.process import ProcessTree
from sandbox.progress import TextProgress
from sandbox.server import Server
from sandbox.workflow import read_workflow, to_prompt
from scenes.painting import paint, place_things
from warm_start import ForkedTree


def test_stand_ins_replace_missing_files_and_are_reported(workflow, object_info):
    before = copy.deepcopy(workflow)
    changed, chosen = with_present_models(workflow, object_info)
    assert workflow == before
    assert [choice.name for choice in chosen] == [standins.CHECKPOINT, standins.ENCODER, standins.ADAPTER]
    assert all(choice.standin and "random stand-in" in str(choice) for choice in chosen)
    prompt = to_prompt(changed, object_info)
    unlike = [node for node, entry in to_prompt(before, object_info).items() if entry != prompt[node]]
    assert sorted(prompt[node]["class_type"] for node in unlike) == sorted(
        choice.node_type for choice in chosen
    )


def test_real_files_are_preferred_to_stand_ins(workflow, object_info, tmp_path):
    def listing(kind, name, files):
        info = copy.deepcopy(object_info[kind])
        info["input"]["required"][name] = ["COMBO", {"options": files}]
        return {kind: info}

    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    header = json.dumps({name: {"dtype": "F16", "shape": [320, 768]}}).encode()
    (tmp_path / "checkpoints").mkdir()
    for name, body in (("mine.safetensors", header), ("xl.safetensors", b"{}")):
        (tmp_path / "checkpoints" / name).write_bytes(struct.pack("<Q", len(body)) + body)
    info = object_info | listing(
        "CheckpointLoaderSimple",
        "ckpt_name",
        ["a.ckpt", standins.CHECKPOINT, "xl.safetensors", "mine.safetensors"],
    )
    info |= listing(
        "LLM4GEN_LoadLLMEncoder",
        "encoder_name",
        ["clip_l.safetensors", standins.ENCODER, "x/RankGen-all.bin"],
    )
    info |= listing(
        "LLM4GEN_LoadCrossAdapter", "adapter_name", ["a.pth", "projector.safetensors", standins.ADAPTER]
    )
    _, chosen = with_present_models(workflow, info, [tmp_path])
    assert [choice.name for choice in chosen] == [
        "mine.safetensors",
        "x/RankGen-all.bin",
        "projector.safetensors",
    ]
    assert not any(choice.standin for choice in chosen)


def test_files_that_another_process_made_meanwhile_are_kept(tmp_path):
    target, writing = tmp_path / "standins", []

    def write(folder):
        folder.mkdir()
        (folder / "encoder").write_text(str(len(writing)))
        writing.append(folder)
        if len(writing) == 1:
            assert make_once(target, 1, write)  # the other process runs from start to end

    assert not make_once(target, 1, write)
    assert (target / "encoder").read_text() == "1", "files that may be in use were replaced"
    assert not make_once(target, 1, write) and len(writing) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["standins"], "a temporary folder was left behind"


def test_a_folder_that_something_else_made_is_not_replaced(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="was not made by this command"):
        make_once(tmp_path, 1, lambda folder: folder.mkdir())
    assert (tmp_path / "mine.txt").read_text() == "mine"


READS = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
NO_CHECKPOINTS = {
    "empty": b"",
    "huge": b"\xff" * 8,
    **{
        name: struct.pack("<Q", len(text)) + text.encode()
        for name, text in {
            "not json": "{{{",
            "deep": "[" * 100_000,
            "no entry": json.dumps({READS: []}),
            "a text": json.dumps({READS: "shape"}),
            "no sizes": json.dumps({READS: {"shape": [1, [768]]}}),
            "two widths": json.dumps(
                {READS: {"shape": [1, 768]}, READS.replace("1.1", "2.1"): {"shape": [1, 1024]}}
            ),
        }.items()
    },
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_a_damaged_checkpoint_is_not_chosen(name, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(NO_CHECKPOINTS[name])
    assert context_width(path) is None


def test_flat_and_wrongly_sized_pictures_are_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 64), (90, 10, 200)).save(path)
    with pytest.raises(BadPicture, match="flat"):
        check_picture(path, (64, 64))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    check_picture(path, (64, 64))
    with pytest.raises(BadPicture, match="64x64 pixels, wanted 512x512"):
        check_picture(path, (512, 512))


def test_a_prompt_that_the_server_refuses_says_why(client):
    with pytest.raises(ValidationError, match="Value not in list") as caught:
        client.run(
            {
                "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "none"}},
                "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
            }
        )
    assert caught.value.node_errors["1"]["class_type"] == "CheckpointLoaderSimple"


def test_a_nodes_error_has_its_type_message_and_traceback(client, models):
    (models / "checkpoints").mkdir(exist_ok=True)
    (models / "checkpoints" / "empty.safetensors").touch()
    with pytest.raises(ExecutionError, match="CheckpointLoaderSimple") as caught:
        client.run(
            {
                "7": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "empty.safetensors"}},
                "8": {"class_type": "PreviewAny", "inputs": {"source": ["7", 0]}},
            }
        )
    error = caught.value
    assert (error.node_id, error.node_type) == ("7", "CheckpointLoaderSimple")
    assert error.exception_type and error.exception_message and error.traceback


def test_outputs_are_complete_when_every_node_was_cached(client, server):
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 7}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "cached"}},
    }
    first, second = (image_paths(client.run(prompt), server.output) for _ in range(2))
    assert first == second and len(first) == 1 and first[0].is_file()


@pytest.mark.parametrize("start", ["as a user's", "as the tests'"])
def test_the_server_ends_with_its_block_and_frees_its_port(start, host, tmp_path, request):
    if start == "as a user's":
        request.getfixturevalue("cold_start")
    with Server(host, tmp_path / "base") as server:
        assert server.alive and server.get("/system_stats")["system"]
        again = server.port
    assert not server.alive
    with pytest.raises(ConnectionError):
        Client(server.url).run({})
    with (
        pytest.raises(HostError, match="ended while starting"),
        Server(host, tmp_path / "base", port=again, arguments=["--no-such-argument"]),
    ):
        pass
    assert "--no-such-argument" in server.log_text()


# Prints what a process is told when it starts.
TOLD = """
import os, signal, sys
signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGCHLD)]
print(__name__, __file__, sys.argv, sys.path, os.getcwd(), sorted(os.environ.items()), signals)
print(os.getpgrp() == os.getpid() == os.getsid(0), sorted(os.listdir("/proc/self/fd")), repr(sys.stdin.read()))
sys.exit("an error")
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="NO LINUX: servers are not forked")
def test_a_forked_process_is_told_what_a_new_one_is(host, tmp_path):
    (tmp_path / "told.py").write_text(TOLD, encoding="utf-8")
    command, environment, logs = [str(host.python), str(tmp_path / "told.py"), "-v"], host.environment(), []
    for start in (ProcessTree, Server.start):
        logs.append(tmp_path / f"{len(logs)}.log")
        logs[-1].write_text("an older log")
        process = start(command, folder=tmp_path, environment=environment, log=logs[-1])
        assert type(process) is (ProcessTree if start is ProcessTree or host.has_accelerator else ForkedTree)
        process.wait()
        assert not process.alive
    new, forked = (log.read_text(encoding="utf-8").splitlines() for log in logs)
    assert forked == new and new[-1] == "an error"
    changed = Server.start(
        command, folder=tmp_path, environment=environment | {"ANOTHER": "1"}, log=tmp_path / "log"
    )
    changed.wait()
    assert type(changed) is ProcessTree and "ANOTHER" in (tmp_path / "log").read_text(encoding="utf-8")


TEXT_OF_EXAMPLE = (
    "a blue sheep next to a brown vase, behind them a red bookcase and a window with yellow curtains, a small green "
    "frog sits on the vase"
)
PROMPT = {
    "3": {"class_type": "KSampler", "inputs": {}, "_meta": {"title": "Sampler"}},
    "4": {"class_type": "SaveImage", "inputs": {}, "_meta": {"title": "Save"}},
}


def run_events(steps):
    """Handles the events of a prompt whose first node counts steps."""
    progress = TextProgress(PROMPT)
    progress("execution_start", {})
    progress("executing", {"node": "3"})
    for step in range(1, steps + 1):
        progress("progress", {"node": "3", "value": step, "max": steps})
    progress("executing", {"node": "4"})
    progress("progress", {"node": "4", "value": 1, "max": 1})
    progress("executing", {"node": None})
    progress("execution_success", {})


def test_a_log_file_gets_titles_and_a_few_of_the_steps(capsys):
    run_events(100)
    assert capsys.readouterr().out.splitlines() == [
        "  Sampler",
        *("    25/100", "    50/100", "    75/100", "    100/100"),
        "  Save",
    ]


def test_a_terminal_gets_titles_and_a_bar_that_is_redrawn_in_its_line(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    run_events(100)
    first, bar, last, rest = terminal.getvalue().split("\n")
    assert (first, last, rest) == ("  Sampler", "  Save", "")
    assert bar.startswith("\r") and re.search(r"100%.* 100/100 ", bar.rpartition("\r")[2])


def run_demo(host, folder, *arguments):
    """The command without real weights, which ComfyUI's own models folder may hold."""
    folder.mkdir()
    places = (
        "--comfyui",
        host.comfyui,
        "--python",
        host.python,
        "--models",
        folder,
        "--base",
        folder / "base",
    )
    return subprocess.run(
        [sys.executable, TOOLS / "dev.py", "demo", *arguments, *places],
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )


def test_the_command_draws_its_prompt_with_the_demo_model(host, tmp_path):
    text = "a large green cross and a small yellow square; the cross is to the left of the square"
    done = run_demo(host, tmp_path / "models", "--prompt", text, "--steps", "5")
    assert done.returncode == 0, done.stderr
    picture = Path(re.search(r"^picture: (.*)$", done.stdout, re.MULTILINE)[1])
    assert picture.parent == tmp_path / "models" / "base"
    with Image.open(picture) as image:
        assert image.size == (1040, 512)
    shown = done.stdout
    assert re.search(rf"the LLM reads: {text} \(\d\d tokens\)", shown) and "5/5" in shown
    assert re.search("left, with the LLM: .*\n.*right, CLIP alone: ", shown)


def test_the_command_refuses_what_the_demo_model_has_never_seen(host, tmp_path):
    done = run_demo(host, tmp_path / "models", "--prompt", "a blue sheep next to a brown vase")
    assert done.returncode == 1
    assert "does not know sheep, next, brown, vase" in done.stderr and "square, ring, cross" in done.stderr


def test_with_real_weights_the_prompt_goes_into_the_text_to_image_workflow(workflow, object_info):
    prompt = to_prompt(workflow, object_info)
    assert set_up(prompt, None, None) == TEXT_OF_EXAMPLE
    assert set_up(prompt, "a cat", 3) == "a cat"
    texts = [node["inputs"]["text"] for node in prompt.values() if "text" in node["inputs"]]
    steps = [node["inputs"]["steps"] for node in prompt.values() if "steps" in node["inputs"]]
    assert texts.count("a cat") == 1 and TEXT_OF_EXAMPLE not in texts and steps == [3]


def test_the_demo_model_draws_what_its_ten_prompts_say(host, tmp_path):
    """Of pairs of things that its training never showed. Drawn in ComfyUI from the files that are shipped."""
    right = []
    with Server(host, tmp_path / "base", [models.demo_models(host)]) as server:
        client = Client(server.url)
        prompt = to_prompt(read_workflow(models.GRAPH), client.object_info())
        for one in PROMPTS:
            set_up(prompt, one.text, None)
            (picture,) = image_paths(client.run(prompt), server.output)
            with_llm, _ = found_in(picture)
            right.append(is_right(with_llm, one.scene))
    assert sum(right) >= 8, right


def test_what_a_demo_picture_shows_is_found_in_both_halves(tmp_path):
    scenes = [one.scene for one in PROMPTS[:2]]
    things = [place_things(scene, random.Random(3), CELLS) for scene in scenes]
    left, right = (
        np.asarray(paint(placed, CELLS).permute(1, 2, 0)).repeat(64, 0).repeat(64, 1) for placed in things
    )
    both = np.concatenate([left, np.ones((512, 16, 3)), right], axis=1)
    Image.fromarray(((both + 1) * 127.5).astype(np.uint8)).save(tmp_path / "a.png")
    found = found_in(tmp_path / "a.png")
    assert [set(one) for one in found] == [set(one) for one in things]
    assert all(is_right(one, scene) for one, scene in zip(found, scenes, strict=True))
    assert not is_right(found[0], scenes[1])
