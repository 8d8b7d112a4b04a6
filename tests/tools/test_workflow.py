"""The example workflow files, and their conversion to prompts for the API."""

import copy
import re

import pytest
from PIL import Image

from fetch.items import ITEMS
from paths import ROOT
from sandbox.origins import PUBLISHED, USERS_OWN, with_origins
from sandbox.workflow import (
    LOADER_FOLDERS,
    UnknownNodes,
    example_workflows,
    loaders,
    model_files,
    read_workflow,
    to_prompt,
    widget_names,
)

EXAMPLES = pytest.mark.parametrize("file", example_workflows(), ids=lambda file: file.stem)
SAMPLERS = ("sampler_name",)  # ends in _name but does not name a file
PROMPT = (
    "a blue sheep next to a brown vase, behind them a red bookcase and a window with yellow curtains, "
    "a small green frog sits on the vase"
)
# The text-to-image workflow as a prompt: node type → input → its value, or (node type, output) that it is linked to.
GRAPH = {
    "CheckpointLoaderSimple": {"ckpt_name": "v1-5-pruned-emaonly-fp16.safetensors"},
    "LLM4GEN_LoadLLMEncoder": {
        "encoder_name": "rankgen-t5-xl-all-bf16.safetensors",
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
    "controlnet_context": "clip",
}


def by_type(prompt, node):
    """A node's inputs. A link is given as the type of the node that it comes from, and the output slot."""
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


@EXAMPLES
def test_no_two_nodes_overlap(file):
    title = 30  # pixels of a node's title, which is above its position
    boxes = [(*node["pos"], *node["size"], node["type"]) for node in read_workflow(file)["nodes"]]
    for i, (ax, ay, aw, ah, a) in enumerate(boxes):
        for bx, by, bw, bh, b in boxes[i + 1 :]:
            apart = ax + aw < bx or bx + bw < ax or ay + ah < by - title or by + bh < ay - title
            assert apart, f"{a} and {b}"


@EXAMPLES
def test_the_notes_name_every_folder_that_models_are_loaded_from(file):
    workflow = read_workflow(file)
    text = "\n".join(n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MarkdownNote")
    folders = {name.split("/")[0] for name in model_files(workflow)}
    assert folders and [f for f in ("ComfyUI/models", *folders) if f"`{f}`" not in text] == []


def test_the_note_mentions_the_tuned_unet(workflow):
    (text,) = node_of(workflow, "MarkdownNote")["widgets_values"]
    assert "diffusion_models" in text and "Load Diffusion" in text


@EXAMPLES
def test_every_loader_in_an_example_is_in_the_table_of_loaders(file, object_info):
    """Otherwise the thumbnail would mark its file as missing, and the notes would not be checked for its folder."""
    for node in read_workflow(file)["nodes"]:
        widgets = widget_names(object_info[node["type"]]) if node["type"] in object_info else []
        names_a_file = any(name and name.endswith("_name") and name not in SAMPLERS for name in widgets)
        assert names_a_file == (node["type"] in LOADER_FOLDERS), node["type"]


@EXAMPLES
def test_every_node_says_which_pack_and_which_file_it_needs(file):
    workflow = read_workflow(file)
    assert workflow == with_origins(workflow), "in tools/, run: python -m sandbox.origins"


@EXAMPLES
def test_the_pack_of_a_node_is_the_one_that_the_server_has_it_from(file, object_info):
    for node in read_workflow(file)["nodes"]:
        properties = node["properties"]
        if node["type"] not in object_info:
            assert not {"cnr_id", "ver", "models"} & properties.keys(), "it is a part of the page"
            continue
        is_ours = object_info[node["type"]]["python_module"] == "custom_nodes.llm4gen"
        assert properties["cnr_id"] == ("llm4gen" if is_ours else "comfy-core")
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        entry = "version = " if is_ours else "requires-comfyui = "
        assert re.search(rf'^{entry}"(>=)?{re.escape(properties["ver"])}"$', text, re.MULTILINE)


@EXAMPLES
def test_a_loader_says_where_the_file_that_it_names_is_published(file):
    """The front end finds an entry by the file's name, and shows it only in the folder of the loader."""
    for path, node in loaders(read_workflow(file)):
        models = node["properties"].get("models", [])
        assert [f"{model['directory']}/{model['name']}" for model in models] == [path] * (
            path not in USERS_OWN
        )
        assert all(re.fullmatch("[0-9a-f]{64}", model["hash"]) for model in models if "hash" in model)


def test_the_weights_of_the_pack_are_published_where_they_are_fetched_from():
    for item in ITEMS.values():
        (name,) = {f"{item.folder_key}/{name}" for name in item.possible_names(None)} & PUBLISHED.keys()
        url, _ = PUBLISHED[name]
        page = f"{item.repository}/tree/main/unet" if item.is_in_folder else item.repository
        file = f"https://huggingface.co/{item.repository}/resolve/main/{item.remote_path}"
        # A click on the address of a file must bring it under the name that the workflow has for it.
        assert url == (file if name.endswith(f"/{item.remote_path}") else f"https://hf.co/{page}")


def test_nodes_in_a_subgraph_say_where_they_come_from(workflow):
    inside = workflow["nodes"]
    workflow["definitions"] = {"subgraphs": [{"id": "a-b-c", "nodes": copy.deepcopy(inside)}]}
    workflow["nodes"] = [{"id": 1, "type": "a-b-c"}, {"id": 2, "type": "Reroute", "properties": {}}]
    for node in workflow["definitions"]["subgraphs"][0]["nodes"]:
        del node["properties"]
    changed = with_origins(workflow)
    assert changed["nodes"] == workflow["nodes"]
    origins = [{k: node["properties"].get(k) for k in ("cnr_id", "ver", "models")} for node in inside]
    found = [node.get("properties", {}) for node in changed["definitions"]["subgraphs"][0]["nodes"]]
    assert [{k: properties.get(k) for k in ("cnr_id", "ver", "models")} for properties in found] == origins


def test_a_file_whose_address_is_unknown_is_named(workflow):
    node_of(workflow, "CheckpointLoaderSimple")["widgets_values"] = ["mine.safetensors"]
    with pytest.raises(KeyError, match=r"checkpoints/mine\.safetensors"):
        with_origins(workflow)


@EXAMPLES
def test_the_thumbnail_is_beside_the_workflow(file):
    path = file.with_suffix(".jpg")
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and 1000 <= picture.width <= 1600
    assert path.stat().st_size < 300_000


def test_no_two_examples_have_the_same_id():
    """The front end distinguishes graphs by their ids."""
    ids = [read_workflow(file)["id"] for file in example_workflows()]
    assert len(set(ids)) == len(ids) > 1


def test_unknown_nodes_are_named(workflow, object_info):
    node_of(workflow, "VAEDecode")["type"] = "NoSuchNode"
    with pytest.raises(UnknownNodes, match="NoSuchNode") as caught:
        to_prompt(workflow, object_info)
    assert caught.value.types == ["NoSuchNode"]


def test_widgets_that_do_not_fit_the_node_are_refused(workflow, object_info):
    node_of(workflow, "KSampler")["widgets_values"].append(1)
    with pytest.raises(ValueError, match=r"KSampler.* 8 widget values.* 7: seed, \(no input\), steps"):
        to_prompt(workflow, object_info)


def test_a_widget_that_was_added_after_the_file_was_saved_gets_its_default(workflow, object_info):
    now = to_prompt(workflow, object_info)
    for node in workflow["nodes"]:
        if node["type"] == "LLM4GEN_Conditioning":
            assert node["widgets_values"].pop() == "clip"
    assert to_prompt(workflow, object_info) == now


def test_a_file_that_is_not_a_workflow_is_refused(tmp_path):
    path = tmp_path / "prompt.json"
    path.write_text('{"1": {"class_type": "KSampler", "inputs": {}}}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"prompt\.json is not a workflow"):
        read_workflow(path)


def test_a_link_replaces_the_saved_value_of_a_widget(workflow, object_info):
    """When a widget is turned into an input, its old value stays in the file, but must not be sent."""
    sampler, latent = node_of(workflow, "KSampler"), node_of(workflow, "EmptyLatentImage")
    (slot,) = (i for i in sampler["inputs"] if i["name"] == "steps")
    slot["link"] = 99
    workflow["links"].append([99, latent["id"], 0, sampler["id"], 6, "INT"])
    inputs = to_prompt(workflow, object_info)[str(sampler["id"])]["inputs"]
    assert inputs["steps"] == [str(latent["id"]), 0] and inputs["cfg"] == 7.5


def test_muted_nodes_and_the_links_from_them_are_left_out(workflow, object_info):
    encoder = node_of(workflow, "LLM4GEN_LoadLLMEncoder")
    encoder["mode"] = 2
    prompt = to_prompt(workflow, object_info)
    assert str(encoder["id"]) not in prompt
    assert all("llm" not in entry["inputs"] for entry in prompt.values())


def test_a_bypassed_node_passes_its_input_on(workflow, object_info):
    decode, save = node_of(workflow, "VAEDecode"), node_of(workflow, "SaveImage")
    before = to_prompt(workflow, object_info)[str(save["id"])]["inputs"]["images"]
    passing = copy.deepcopy(decode) | {"id": 77, "type": "ImageInvert", "mode": 4, "widgets_values": []}
    passing["inputs"] = [{"name": "image", "type": "IMAGE", "link": save["inputs"][0]["link"]}]
    workflow["nodes"].append(passing)
    workflow["links"].append([99, 77, 0, save["id"], 0, "IMAGE"])
    save["inputs"][0]["link"] = 99
    after = to_prompt(workflow, object_info)
    assert "77" not in after and after[str(save["id"])]["inputs"]["images"] == before


def test_widget_names_are_in_the_saved_order(object_info):
    assert widget_names(object_info["KSampler"], with_controls=True)[:3] == ["seed", None, "steps"]
    assert widget_names(object_info["LLM4GEN_Conditioning"]) == [
        "text",
        "strength",
        "long_prompt",
        "controlnet_context",
    ]
