"""A running server offers the pack's nodes, and makes a picture with them."""

import pytest

from sandbox.client import image_paths
from sandbox.demo import check_picture
from sandbox.model_choice import with_present_models
from sandbox.workflow import TEXT_TO_IMAGE, read_workflow, to_prompt

MODELS = {"clip": "CLIP", "llm": "LLM4GEN_LLM", "adapter": "LLM4GEN_ADAPTER"}
SETTINGS = {"strength": "FLOAT", "long_prompt": "COMBO", "controlnet_context": "COMBO"}
# Saved workflows rely on these. For each node: its required inputs, its optional inputs, its outputs.
NODES = {
    "LLM4GEN_LoadLLMEncoder": ({"encoder_name": "COMBO"}, {"dtype": "COMBO", "device": "COMBO"}, ["LLM4GEN_LLM"]),
    "LLM4GEN_LoadCrossAdapter": ({"adapter_name": "COMBO"}, {}, ["LLM4GEN_ADAPTER"]),
    "LLM4GEN_ApplyToCLIP": (MODELS, SETTINGS, ["CLIP"]),
    "LLM4GEN_Conditioning": (
        MODELS | {"text": "STRING"}, SETTINGS | {"llm_text": "STRING"}, ["CONDITIONING"]
    ),
    "LLM4GEN_FuseConditioning": (
        {"conditioning": "CONDITIONING", "llm": "LLM4GEN_LLM", "adapter": "LLM4GEN_ADAPTER", "text": "STRING"},
        {"strength": "FLOAT", "controlnet_context": "COMBO"},
        ["CONDITIONING"],
    ),
    "LLM4GEN_Attention": (MODELS | {"text": "STRING"}, {"heads": "COMBO"}, ["IMAGE"]),
}  # fmt: skip


# Their many inputs are held by tests/laws/promises alone.
TRAINING_NODES = {
    "LLM4GEN_NewCrossAdapter",
    "LLM4GEN_TrainingSet",
    "LLM4GEN_TrainCrossAdapter",
    "LLM4GEN_SaveCrossAdapter",
}


@pytest.mark.floor
def test_the_server_offers_exactly_these_nodes(client):
    def types(node, group):
        return {name: kind for name, (kind, *_) in node["input"].get(group, {}).items()}

    found = {
        name: (types(node, "required"), types(node, "optional"), node["output"])
        for name, node in client.object_info().items()
        if node["python_module"] == "custom_nodes.llm4gen"
    }
    assert found.keys() == NODES.keys() | TRAINING_NODES
    assert {name: found[name] for name in NODES} == NODES


@pytest.mark.floor
def test_the_example_makes_a_small_picture_in_two_steps(client, server):
    info = client.object_info()
    workflow, _ = with_present_models(read_workflow(TEXT_TO_IMAGE), info)
    prompt = to_prompt(workflow, info)
    inputs = {entry["class_type"]: entry["inputs"] for entry in prompt.values()}
    inputs["EmptyLatentImage"].update(width=128, height=64)
    inputs["KSampler"].update(steps=2)
    (picture,) = image_paths(client.run(prompt), server.output)
    check_picture(picture, (128, 64))
