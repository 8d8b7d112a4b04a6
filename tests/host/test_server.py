"""What a running server offers of the pack: saved workflows rely on these names and types."""

import pytest

MODELS = {"clip": "CLIP", "llm": "LLM4GEN_LLM", "adapter": "LLM4GEN_ADAPTER"}
SETTINGS = {"strength": "FLOAT", "long_prompt": "COMBO", "controlnet_context": "COMBO"}
# By node: the inputs that it must have, those that it may have, and its outputs.
NODES = {
    "LLM4GEN_LoadLLMEncoder": ({"encoder_name": "COMBO"}, {"dtype": "COMBO", "device": "COMBO"}, ["LLM4GEN_LLM"]),
    "LLM4GEN_LoadCrossAdapter": ({"adapter_name": "COMBO"}, {}, ["LLM4GEN_ADAPTER"]),
    "LLM4GEN_ApplyToCLIP": (MODELS, SETTINGS, ["CLIP"]),
    "LLM4GEN_Conditioning": (
        MODELS | {"text": "STRING"}, SETTINGS | {"llm_text": "STRING"}, ["CONDITIONING"]
    ),
}  # fmt: skip


@pytest.mark.floor
def test_the_server_offers_exactly_these_nodes(client):
    def types(node, need):
        return {name: kind for name, (kind, *_) in node["input"].get(need, {}).items()}

    found = {
        name: (types(node, "required"), types(node, "optional"), node["output"])
        for name, node in client.object_info().items()
        if node["python_module"] == "custom_nodes.llm4gen"
    }
    assert found == NODES
