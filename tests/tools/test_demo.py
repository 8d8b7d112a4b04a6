"""The command that runs the example: which weights it takes, what it shows, how its server ends."""

import copy
import struct

import numpy as np
import pytest
from PIL import Image

from files.sd15 import is_sd15_checkpoint
from host.comfyui import HostError
from sandbox import standins
from sandbox.client import Client, ExecutionError, ValidationError, image_paths
from sandbox.demo import BadPicture, check_picture, demo
from sandbox.model_choice import with_present_models
from sandbox.server import Server
from sandbox.workflow import to_prompt


def test_missing_files_are_replaced_by_stand_ins_and_say_so(workflow, object_info):
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


def test_real_files_come_before_stand_ins(workflow, object_info, tmp_path):
    def listing(kind, name, files):
        info = copy.deepcopy(object_info[kind])
        info["input"]["required"][name] = ["COMBO", {"options": files}]
        return {kind: info}

    header = b'{"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight":{"shape":[320,768]}}'
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


def test_stand_ins_that_another_worker_made_meanwhile_stay(tmp_path, monkeypatch):
    target, writing = tmp_path / "standins", []

    def write(folder):
        folder.mkdir()
        (folder / "encoder").write_text(str(len(writing)))
        writing.append(folder)
        if len(writing) == 1:
            assert standins.ensure_standins(target)  # the other worker, from start to end

    monkeypatch.setattr(standins, "_write_all", write)
    assert not standins.ensure_standins(target)
    assert (target / "encoder").read_text() == "1", "files that are in use were replaced"
    assert not standins.ensure_standins(target) and len(writing) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["standins"], "something was left over"


@pytest.mark.parametrize(
    "body", [b"", b"\xff" * 8, struct.pack("<Q", 3) + b"{{{"], ids=["empty", "huge", "no json"]
)
def test_a_damaged_checkpoint_is_not_chosen(body, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(body)
    assert not is_sd15_checkpoint(path)


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


def test_an_error_of_a_node_carries_its_type_and_words(client, models):
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


def test_outputs_are_complete_when_all_was_cached(client, server):
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 7}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "cached"}},
    }
    first, second = (image_paths(client.run(prompt), server.output) for _ in range(2))
    assert first == second and len(first) == 1 and first[0].is_file()


def test_the_server_ends_with_its_block_and_lets_the_address_go(host, tmp_path):
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


def test_demo_ends_with_a_picture(host, tmp_path, capsys):
    picture = demo(host, base=tmp_path / "demo")
    with Image.open(picture) as image:
        assert image.size == (512, 512)
    shown = capsys.readouterr().out
    assert "random stand-in" in shown and "coloured noise" in shown and "20/20" in shown
