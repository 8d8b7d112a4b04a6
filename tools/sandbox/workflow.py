"""Converts workflow files, as the front end saves them, to the prompts that ComfyUI's API takes.

It does what the front end does when Run is pressed, but expands neither subgraphs nor `{a|b}` in texts.
Standard library only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from host.comfyui import ROOT

EXAMPLES = ROOT / "example_workflows"
TEXT_TO_IMAGE = EXAMPLES / "llm4gen_text_to_image.json"

Workflow = dict[str, Any]
Node = dict[str, Any]
Prompt = dict[str, dict[str, Any]]
ObjectInfo = dict[str, dict[str, Any]]

NOTES = ("Note", "MarkdownNote")
REROUTE = "Reroute"
MUTED, BYPASSED = 2, 4  # node modes: LiteGraph's NEVER, the front end's BYPASS
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
# Node type of a loader → the models folder of the file that its first widget names.
LOADER_FOLDERS = {
    "CheckpointLoaderSimple": "checkpoints",
    "UNETLoader": "diffusion_models",
    "ControlNetLoader": "controlnet",
    "LoraLoader": "loras",
    "LoraLoaderModelOnly": "loras",
    "LLM4GEN_LoadLLMEncoder": "text_encoders",
    "LLM4GEN_LoadCrossAdapter": "llm4gen",
}


class UnknownNodes(ValueError):
    """The workflow uses node types that the server lacks: `types`, in alphabetical order."""

    def __init__(self, types: list[str]) -> None:
        self.types = types
        super().__init__(
            f"the server lacks the node types {', '.join(types)}. "
            "Is the node pack that has them in custom_nodes, and could ComfyUI import it (see the server's log)?"
        )


def example_workflows() -> list[Path]:
    """The pack's workflow files, text to image first."""
    return sorted(EXAMPLES.glob("*.json"), key=lambda path: (path != TEXT_TO_IMAGE, path.name))


def read_workflow(path: Path) -> Workflow:
    """Raises: ValueError if the file is not a workflow that the front end saved, but a prompt for the API, say."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(workflow, dict) or not isinstance(workflow.get("nodes"), list):
        raise ValueError(f"{path.name} is not a workflow in the UI's format: it has no list of nodes.")
    return workflow


def model_files(workflow: Workflow) -> set[str]:
    """The model files that a workflow's loaders name, as `folder/file` in a models directory."""
    return {file for file, _ in loaders(workflow)}


def loaders(workflow: Workflow) -> list[tuple[str, Node]]:
    """The loaders of a graph, each with the model file that it names, as `folder/file` in a models directory."""
    found = [node for node in workflow["nodes"] if node["type"] in LOADER_FOLDERS]
    return [(f"{LOADER_FOLDERS[node['type']]}/{node['widgets_values'][0]}", node) for node in found]


def to_prompt(workflow: Workflow, object_info: ObjectInfo) -> Prompt:
    """Converts a saved workflow to a prompt for the API.

    object_info: the server's answer to /object_info.
    Raises: UnknownNodes; ValueError if a node was saved with more widgets than the server's node has.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: (link[1], link[2]) for link in workflow.get("links", [])}
    running = [node for node in nodes.values() if _runs(node)]
    unknown = sorted({node["type"] for node in running} - object_info.keys())
    if unknown:
        raise UnknownNodes(unknown)
    prompt: Prompt = {}
    for node in running:
        info = object_info[node["type"]]
        inputs = _widget_values(node, info)
        for slot in node.get("inputs", []):
            if slot.get("link") is None:
                continue
            source = _source(links[slot["link"]], nodes, links)
            if source is None:
                inputs.pop(slot["name"], None)
            else:
                inputs[slot["name"]] = source
        title = node.get("title") or info.get("display_name") or node["type"]
        prompt[str(node["id"])] = {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}
    return prompt


def _runs(node: Node) -> bool:
    return node["type"] not in (*NOTES, REROUTE) and node.get("mode", 0) not in (MUTED, BYPASSED)


def _source(
    origin: tuple[int, int], nodes: dict[int, Node], links: dict[int, tuple[int, int]]
) -> list[Any] | None:
    """The output [node id, slot] that a link's value comes from; None if it is a muted node's or an open input.

    origin: the node and output slot that the link starts at, which may be a reroute's or a bypassed node's.
    """
    node, slot = nodes[origin[0]], origin[1]
    if _runs(node):
        return [str(node["id"]), slot]
    if node.get("mode", 0) == MUTED:
        return None
    # A reroute or a bypassed node passes on an input of the output's type, preferably the one in the same slot.
    inputs = node.get("inputs", [])
    wanted = node["outputs"][slot]["type"]
    candidates = inputs[slot : slot + 1] + inputs
    for candidate in candidates:
        fits = node["type"] == REROUTE or candidate["type"] == wanted
        if fits and candidate.get("link") is not None:
            return _source(links[candidate["link"]], nodes, links)
    return None


def _widget_values(node: Node, info: dict[str, Any]) -> dict[str, Any]:
    saved = node.get("widgets_values") or []
    if isinstance(saved, dict):
        return {name: saved[name] for name in widget_names(info) if name in saved}
    names = widget_names(info, with_controls=True)
    if len(saved) > len(names):
        raise ValueError(
            f"node {node['id']} ({node['type']}) was saved with {len(saved)} widget values, "
            f"but the server's node has {len(names)}: {', '.join(name or '(no input)' for name in names)}."
        )
    values = {name: value for name, value in zip(names, saved, strict=False) if name is not None}
    # A widget that was added to the node after the file was saved gets its default.
    added = {name: default(info, name) for name in names[len(saved) :] if name is not None}
    return values | {name: value for name, value in added.items() if value is not None}


def widget_names(info: dict[str, Any], *, with_controls: bool = False) -> list[str | None]:
    """The names of a node's widgets, in the order of `widgets_values`.

    with_controls: include the widgets that the front end adds, as None: "control after generate" after a seed, and
                   the upload button at the end of its section.
    """
    names: list[str | None] = []
    for section in ("required", "optional"):
        uploads = False
        for name in info.get("input_order", {}).get(section, []):
            kind, options = _declaration(info["input"][section][name])
            if not (isinstance(kind, list) or kind in WIDGET_TYPES) or options.get("forceInput"):
                continue
            names.append(name)
            uploads |= options.get("image_upload", False)
            seed = kind == "INT" and name in ("seed", "noise_seed")
            if with_controls and options.get("control_after_generate", seed):
                names.append(None)
        if with_controls and uploads:
            names.append(None)
    return names


def default(info: dict[str, Any], name: str) -> Any:
    """A widget's initial value; None if the node declares none."""
    kind, options = _declaration(
        (info["input"].get("required", {}) | info["input"].get("optional", {}))[name]
    )
    first = (kind if isinstance(kind, list) else options.get("options", []))[:1]
    return options.get("default", *first) if first else options.get("default")


def choices(object_info: ObjectInfo, node_type: str, name: str) -> list[str]:
    """The entries of a drop-down, declared in the old form `[[...], {}]` or as `["COMBO", {"options": [...]}]`."""
    sections = object_info[node_type]["input"]
    declared = sections.get("required", {}) | sections.get("optional", {})
    kind, options = _declaration(declared[name])
    return list(kind if isinstance(kind, list) else options.get("options", []))


def _declaration(declared: list[Any]) -> tuple[Any, dict[str, Any]]:
    return declared[0], declared[1] if len(declared) > 1 else {}
