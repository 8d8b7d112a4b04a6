"""What a new version must keep: the nodes that saved workflows name, and the files that the last version wrote.

`promises/` holds what version 0.1.0 offers and wrote. It may grow; an entry in it may never change.
"""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import in_process
from llm4gen.models.recipe import Recipe
from paths import ROOT
from sandbox.origins import USERS_OWN
from sandbox.workflow import EXAMPLES, example_workflows, read_workflow

PROMISES = ROOT / "tests" / "laws" / "promises"
NODES = json.loads((PROMISES / "nodes.json").read_text(encoding="utf-8"))
WORKFLOWS = json.loads((PROMISES / "workflows.json").read_text(encoding="utf-8"))
NOTES = ("Note", "MarkdownNote")  # text for people, which may change
LISTED_FILES = ("encoder_name", "adapter_name")  # their options depend on the model folders
WRITTEN_AT = 10**18  # ns; the time of the files of the encoder, which is part of its identity
FED = (3, 4, 5, 6, 7, 4, 8, 1)  # "pre a red cat on a mat" in the tokens of the encoder


def inputs_of(node):
    """In the order in which a workflow saves the values: the required ones first."""
    inputs = []
    for need in ("required", "optional"):
        for name in node["input_order"].get(need, []):
            kind, options = node["input"][need][name]
            inputs.append({"name": name, "need": need, "type": kind, **options})
    return inputs


@pytest.mark.floor
@pytest.mark.parametrize("node", NODES)
def test_a_saved_workflow_finds_its_node_inputs_and_outputs(node, client):
    promised, found = NODES[node], client.object_info()[node]
    for entry in promised.keys() - {"inputs"}:
        assert found[entry] == promised[entry], entry
    known = len(promised["inputs"])
    inputs = inputs_of(found)
    for old, new in zip(promised["inputs"], inputs, strict=False):
        options = set(old.get("options", ()))
        assert options <= set(new.get("options", ()))
        assert {name: new.get(name) for name in old if name != "options"} == {
            name: value for name, value in old.items() if name != "options"
        }
    assert len(inputs) >= known
    # Values are saved by their place, so what is new comes last, and may be absent.
    assert {new["need"] for new in inputs[known:]} <= {"optional"}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_an_example_workflow_is_the_same_graph(name):
    workflow = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))
    nodes = [
        {
            "id": node["id"],
            "type": node["type"],
            "mode": node.get("mode", 0),
            "inputs": [[slot["name"], slot["type"], slot.get("link")] for slot in node.get("inputs", [])],
            "outputs": [[slot["name"], slot["type"]] for slot in node.get("outputs", [])],
            "widgets_values": node.get("widgets_values"),
        }
        for node in workflow["nodes"]
        if node["type"] not in NOTES
    ]
    nodes.sort(key=lambda node: node["id"])
    promised = copy.deepcopy(WORKFLOWS[name])
    for loader in adapter_loaders([*nodes, *promised["nodes"]]):  # may name another format of the same file
        loader["widgets_values"] = [Path(*loader["widgets_values"]).stem]
    assert {"id": workflow["id"], "links": workflow["links"], "nodes": nodes} == promised


def adapter_loaders(nodes):
    return [node for node in nodes if node["type"] == "LLM4GEN_LoadCrossAdapter"]


@pytest.mark.parametrize("present", ["projector.pth", "projector.safetensors"])
def test_the_adapter_that_a_workflow_names_is_found_in_either_format(present, place, tmp_path):
    """Older examples name the converted file, newer ones the published file, and those of SDXL one of the user's."""
    path = tmp_path / "one" / "llm4gen" / present
    path.touch()
    saved = [*WORKFLOWS.values(), *(read_workflow(file) for file in example_workflows())]
    names = {loader["widgets_values"][0] for flow in saved for loader in adapter_loaders(flow["nodes"])}
    names -= {Path(own).name for own in USERS_OWN}
    assert names == {"projector.pth", "projector.safetensors"}
    assert {place.resolve("llm4gen", name) for name in names} == {path}


@pytest.fixture
def loaded(started, tmp_path, monkeypatch):
    """The encoder and the adapter of the promises, by the pack's loaders; the disk cache is `tmp_path/features`."""
    shutil.copytree(PROMISES / "models", tmp_path / "models")
    shutil.copytree(PROMISES / "features", tmp_path / "features")
    encoders = tmp_path / "models" / "text_encoders"
    for file in (encoders / "small-t5").iterdir():
        os.utime(file, ns=(WRITTEN_AT, WRITTEN_AT))
    places = started.folders.folder_names_and_paths
    monkeypatch.setitem(places, "text_encoders", ([str(encoders)], set()))
    monkeypatch.setitem(places, "llm4gen", ([str(tmp_path / "models" / "llm4gen")], set()))
    monkeypatch.setitem(places, "llm4gen_cache", ([str(tmp_path / "features")], set()))
    monkeypatch.setattr(started.folders, "filename_list_cache", {})
    load_encoder, load_adapter = (
        started.ours[f"LLM4GEN_Load{what}"] for what in ("LLMEncoder", "CrossAdapter")
    )
    with torch.inference_mode():
        llm = in_process.run(load_encoder, encoder_name="small-t5", dtype="fp32")
        return llm, in_process.run(load_adapter, adapter_name="adapter.safetensors")


def test_what_the_last_version_kept_on_disk_is_found_and_still_true(loaded, tmp_path, monkeypatch):
    llm, adapter = loaded
    with torch.inference_mode():
        kept = llm.features(FED, adapter.recipe)
        assert llm.loaded is None, "the states came from the disk"
        computed = llm.encode(FED, adapter.recipe)
    assert torch.equal(kept.rows.row_of, computed.rows.row_of)
    torch.testing.assert_close(kept.states, computed.states, atol=1e-5, rtol=0)


def test_an_adapter_that_the_last_version_converted_keeps_its_recipe_and_its_result(loaded):
    llm, adapter = loaded
    assert adapter.recipe == Recipe(tokens=40, layer=-2, heads=4)
    truth = load_file(PROMISES / "fused.safetensors")
    with torch.inference_mode():
        fused = adapter.fuse(truth["clip"], llm.features(FED, adapter.recipe))
    torch.testing.assert_close(fused, truth["fused"], atol=1e-5, rtol=0)
