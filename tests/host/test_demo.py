"""The example workflow, its API form, and the command that runs it."""

import copy
import struct

import numpy as np
import pytest
import standins
from client import Client, ExecutionError, ValidationError, image_paths
from demo import BadPicture, check_picture, demo
from host import HostError, Server
from model_choice import sd15_checkpoint, with_present_models
from PIL import Image
from workflow import TEXT_TO_IMAGE, UnknownNodes, read_workflow, to_prompt, widget_names

PROMPT = (
    "a blue sheep next to a brown vase, behind them a red bookcase and a window with yellow curtains, "
    "a small green frog sits on the vase"
)
# What the file is, in words of the API: node types and, for every input, a value or the node type it comes from.
GRAPH = {
    "CheckpointLoaderSimple": {"ckpt_name": "v1-5-pruned-emaonly-fp16.safetensors"},
    "LLM4GEN_LoadLLMEncoder": {
        "encoder_name": "rankgen-t5-xl-all.safetensors",
        "dtype": "auto",
        "device": "default",
    },
    "LLM4GEN_LoadCrossAdapter": {"adapter_name": "projector.pth"},
    "EmptyLatentImage": {"width": 512, "height": 512, "batch_size": 1},
    "KSampler": {
        "model": ("CheckpointLoaderSimple", 0),
        "positive": ("LLM4GEN_Conditioning", 0),
        "negative": ("LLM4GEN_Conditioning", 0),
        "latent_image": ("EmptyLatentImage", 0),
        "seed": 20240701,
        "steps": 20,
        "cfg": 7.5,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1,
    },
    "VAEDecode": {"samples": ("KSampler", 0), "vae": ("CheckpointLoaderSimple", 2)},
    "SaveImage": {"images": ("VAEDecode", 0), "filename_prefix": "LLM4GEN"},
}
CONDITIONING = {
    "clip": ("CheckpointLoaderSimple", 1),
    "llm": ("LLM4GEN_LoadLLMEncoder", 0),
    "adapter": ("LLM4GEN_LoadCrossAdapter", 0),
    "strength": 1,
    "long_prompt": "cut at 77 (as published)",
}


@pytest.fixture(scope="module")
def object_info(client):
    return client.object_info()


@pytest.fixture
def workflow():
    return read_workflow(TEXT_TO_IMAGE)


def by_type(prompt, node):
    """A node's inputs, with links told by the type that they come from."""
    return {
        name: (prompt[value[0]]["class_type"], value[1]) if isinstance(value, list) else value
        for name, value in prompt[node]["inputs"].items()
    }


def node_of(workflow, kind):
    (node,) = (node for node in workflow["nodes"] if node["type"] == kind)
    return node


def test_the_file_is_exactly_this_graph(workflow, object_info):
    prompt = to_prompt(workflow, object_info)
    types = sorted(node["class_type"] for node in prompt.values())
    assert types == sorted([*GRAPH, "LLM4GEN_Conditioning", "LLM4GEN_Conditioning"])
    for node, entry in prompt.items():
        if entry["class_type"] in GRAPH:
            assert by_type(prompt, node) == GRAPH[entry["class_type"]]
    (sampler,) = (entry for entry in prompt.values() if entry["class_type"] == "KSampler")
    for side, text in (("positive", PROMPT), ("negative", "")):
        node, slot = sampler["inputs"][side]
        assert (slot, by_type(prompt, node)) == (0, CONDITIONING | {"text": text})
    assert sampler["inputs"]["positive"] != sampler["inputs"]["negative"]


def test_no_two_nodes_overlap(workflow):
    title = 30  # pixels that a node's title takes above its place
    boxes = [(*node["pos"], *node["size"], node["type"]) for node in workflow["nodes"]]
    for i, (ax, ay, aw, ah, a) in enumerate(boxes):
        for bx, by, bw, bh, b in boxes[i + 1 :]:
            apart = ax + aw < bx or bx + bw < ax or ay + ah < by - title or by + bh < ay - title
            assert apart, f"{a} and {b}"


def test_the_note_names_every_folder(workflow):
    (text,) = node_of(workflow, "MarkdownNote")["widgets_values"]
    for word in (
        "ComfyUI/models",
        "checkpoints",
        "text_encoders",
        "llm4gen",
        "diffusion_models",
        "Load Diffusion",
    ):
        assert word in text


def test_the_thumbnail_lies_beside_the_workflow():
    path = TEXT_TO_IMAGE.with_suffix(".jpg")
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and 1000 <= picture.width <= 1600
    assert path.stat().st_size < 300_000


def test_unknown_nodes_are_named(workflow, object_info):
    node_of(workflow, "VAEDecode")["type"] = "NoSuchNode"
    with pytest.raises(UnknownNodes, match="NoSuchNode") as caught:
        to_prompt(workflow, object_info)
    assert caught.value.types == ["NoSuchNode"]


def test_widgets_that_do_not_fit_the_node_are_refused(workflow, object_info):
    node_of(workflow, "KSampler")["widgets_values"].pop()
    with pytest.raises(ValueError, match=r"KSampler.* 6 widget values.* 7: seed, \(after generate\), steps"):
        to_prompt(workflow, object_info)


def test_a_file_that_is_no_workflow_is_refused(tmp_path):
    path = tmp_path / "prompt.json"
    path.write_text('{"1": {"class_type": "KSampler", "inputs": {}}}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"prompt\.json is no workflow"):
        read_workflow(path)


def test_a_linked_widget_gives_way_to_its_link(workflow, object_info):
    """As when seed is turned into an input: its saved value stays in the file and must not be sent."""
    sampler, latent = node_of(workflow, "KSampler"), node_of(workflow, "EmptyLatentImage")
    (slot,) = (i for i in sampler["inputs"] if i["name"] == "steps")
    slot["link"] = 99
    workflow["links"].append([99, latent["id"], 0, sampler["id"], 6, "INT"])
    inputs = to_prompt(workflow, object_info)[str(sampler["id"])]["inputs"]
    assert inputs["steps"] == [str(latent["id"]), 0] and inputs["cfg"] == 7.5


def test_muted_nodes_are_left_out_with_what_hangs_on_them(workflow, object_info):
    encoder = node_of(workflow, "LLM4GEN_LoadLLMEncoder")
    encoder["mode"] = 2
    prompt = to_prompt(workflow, object_info)
    assert str(encoder["id"]) not in prompt
    assert all("llm" not in entry["inputs"] for entry in prompt.values())


def test_a_bypassed_node_hands_its_input_on(workflow, object_info):
    decode, save = node_of(workflow, "VAEDecode"), node_of(workflow, "SaveImage")
    before = to_prompt(workflow, object_info)[str(save["id"])]["inputs"]["images"]
    passing = copy.deepcopy(decode) | {"id": 77, "type": "ImageInvert", "mode": 4, "widgets_values": []}
    passing["inputs"] = [{"name": "image", "type": "IMAGE", "link": save["inputs"][0]["link"]}]
    workflow["nodes"].append(passing)
    workflow["links"].append([99, 77, 0, save["id"], 0, "IMAGE"])
    save["inputs"][0]["link"] = 99
    after = to_prompt(workflow, object_info)
    assert "77" not in after and after[str(save["id"])]["inputs"]["images"] == before


def test_widget_names_follow_the_saved_order(object_info):
    assert widget_names(object_info["KSampler"], with_controls=True)[:3] == ["seed", None, "steps"]
    assert widget_names(object_info["LLM4GEN_Conditioning"]) == ["text", "strength", "long_prompt"]


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
    info |= listing("LLM4GEN_LoadCrossAdapter", "adapter_name", ["a.pth", "projector.pth", standins.ADAPTER])
    _, chosen = with_present_models(workflow, info, [tmp_path])
    assert [choice.name for choice in chosen] == ["mine.safetensors", "x/RankGen-all.bin", "projector.pth"]
    assert not any(choice.standin for choice in chosen)


@pytest.mark.parametrize(
    "body", [b"", b"\xff" * 8, struct.pack("<Q", 3) + b"{{{"], ids=["empty", "huge", "no json"]
)
def test_a_damaged_checkpoint_is_not_chosen(body, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(body)
    assert not sd15_checkpoint(path)


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
