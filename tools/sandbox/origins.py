"""Writes into workflow files where their nodes and models come from, as ComfyUI's own templates do.

The front end shows it to a person who opens a workflow without having the pack or the files: the pack to install, and
the name, folder and address of each missing file. To write it into all of the pack's workflow files, in tools/:

    python -m sandbox.origins
"""

from __future__ import annotations

import copy
import json
import re

from checks.installed import required_version
from fetch.items import LLM4GEN, RANKGEN
from host.comfyui import ROOT
from sandbox.workflow import NOTES, REROUTE, Workflow, example_workflows, loaders, read_workflow

CORE = "comfy-core"  # what the registry calls ComfyUI's own nodes
OURS = "LLM4GEN_"  # what the ids of this pack's nodes begin with
OF_THE_PAGE = (*NOTES, REROUTE, "PrimitiveNode")  # these nodes belong to the front end, not to a pack
HUB = "https://huggingface.co"
# The hub's short address. At the long one, the front end offers to download whatever is there under the name in the
# workflow. What the workflows call a file of another name must be converted or renamed, so only its page is named.
HUB_PAGE = "https://hf.co"
# What the examples' loaders name, as `folder/file` → its address and, where that is published, its sha256.
PUBLISHED: dict[str, tuple[str, str | None]] = {
    "checkpoints/v1-5-pruned-emaonly-fp16.safetensors": (
        f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
        "e9476a13728cd75d8279f6ec8bad753a66a1957ca375a1464dc63b37db6e3916",
    ),
    "checkpoints/sd-v1-5-inpainting.safetensors": (
        f"{HUB}/webui/stable-diffusion-inpainting/resolve/main/sd-v1-5-inpainting.safetensors",
        "0ec8f8585b104417a8c34a9fbcc1e922a70b8c15490ec4553087f01c8cf33673",
    ),
    "checkpoints/dreamshaper_8.safetensors": (
        "https://civitai.com/api/download/models/128713",
        "879db523c30d3b9017143d56705015e15a2cb5628762c11d086fed9538abd7fd",
    ),
    "checkpoints/sd_xl_base_1.0.safetensors": (
        f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
        None,
    ),
    "controlnet/control_v11p_sd15_canny_fp16.safetensors": (
        f"{HUB}/comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/"
        "control_v11p_sd15_canny_fp16.safetensors",
        None,
    ),
    "llm4gen/projector.pth": (f"{HUB}/{LLM4GEN}/resolve/main/projector.pth", None),
    "text_encoders/rankgen-t5-xl-all-bf16.safetensors": (f"{HUB_PAGE}/{RANKGEN}", None),
    "text_encoders/SmolLM2-135M-Instruct": (f"{HUB_PAGE}/HuggingFaceTB/SmolLM2-135M-Instruct", None),
    "diffusion_models/llm4gen_sd15_unet.safetensors": (f"{HUB_PAGE}/{LLM4GEN}/tree/main/unet", None),
}
# What the user chooses, or has made with another of the examples.
USERS_OWN = (
    "loras/my_sd15_lora.safetensors",
    "loras/my_sdxl_lora_1000_steps_00001_.safetensors",
    "llm4gen/my_sdxl_adapter_00001_.safetensors",
)


def with_origins(workflow: Workflow) -> Workflow:
    """A copy of a workflow whose nodes say which pack they belong to and, if they load a model, where it is published.

    Raises: KeyError if a loader names a file of which no address is known here.
    """
    workflow = copy.deepcopy(workflow)
    subgraphs = workflow.get("definitions", {}).get("subgraphs", [])
    without_pack = {*OF_THE_PAGE, *(subgraph["id"] for subgraph in subgraphs)}
    for graph in (workflow, *subgraphs):
        for node in graph["nodes"]:
            if node["type"] not in without_pack:
                node["properties"] = {**node.get("properties", {}), **pack_of(node["type"])}
        for file, node in loaders(graph):
            if file not in USERS_OWN:
                node["properties"]["models"] = [model_entry(file)]
    return workflow


def pack_of(node_type: str) -> dict[str, str]:
    """The registry's id of the pack that a node belongs to, and the oldest version that is known to have the node."""
    if node_type.startswith(OURS):
        return {"cnr_id": declared("name"), "ver": declared("version")}
    return {"cnr_id": CORE, "ver": required_version("requires-comfyui")}


def declared(entry: str) -> str:
    """The text of an entry of pyproject.toml's [project], which comes first in the file."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(rf'^{entry} = "(.*)"$', text, re.MULTILINE)[1]


def model_entry(file: str) -> dict[str, str]:
    """What the front end needs to know of a missing file. file: `folder/file`. Raises: KeyError if it is not known."""
    url, sha256 = PUBLISHED[file]
    hashed = {"hash": sha256, "hash_type": "SHA256"} if sha256 else {}
    folder, _, name = file.partition("/")
    return {"name": name, "url": url, **hashed, "directory": folder}


def main() -> None:
    for file in example_workflows():
        text = json.dumps(with_origins(read_workflow(file)), indent=2, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
