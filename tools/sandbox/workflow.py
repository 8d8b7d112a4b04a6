"""Workflow files as people save them → the prompts that ComfyUI's API takes. Standard library only.

What the front end does when Run is pressed, for the node kinds of an ordinary graph: `{a|b}` in prompts is
not expanded, subgraphs are not unfolded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from host.comfyui import ROOT

EXAMPLES = ROOT / "example_workflows"
TEXT_TO_IMAGE = EXAMPLES / "llm4gen_text_to_image.json"

Workflow = dict[str, Any]
Prompt = dict[str, dict[str, Any]]
ObjectInfo = dict[str, dict[str, Any]]

NOTES = ("Note", "MarkdownNote")
REROUTE = "Reroute"
MUTED, BYPASSED = 2, 4  # LiteGraph's node modes NEVER and the front end's BYPASS
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
# Where the file lies that a loader's first widget names.
LOADER_FOLDERS = {
    "CheckpointLoaderSimple": "checkpoints",
    "UNETLoader": "diffusion_models",
    "ControlNetLoader": "controlnet",
    "LoraLoader": "loras",
    "LLM4GEN_LoadLLMEncoder": "text_encoders",
    "LLM4GEN_LoadCrossAdapter": "llm4gen",
}


class UnknownNodes(ValueError):
    """The workflow uses node types that the server does not have."""

    def __init__(self, types: list[str]) -> None:
        self.types = types
        super().__init__(
            f"the server lacks the node types {', '.join(types)}. "
            "Is the node pack that brings them in custom_nodes, and did it import (see the server's log)?"
        )


def example_workflows() -> list[Path]:
    """The workflow files of the pack, the plainest first."""
    return sorted(EXAMPLES.glob("*.json"), key=lambda path: (path != TEXT_TO_IMAGE, path.name))


def read_workflow(path: Path) -> Workflow:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(workflow, dict) or not isinstance(workflow.get("nodes"), list):
        raise ValueError(f"{path.name} is no workflow in the UI's format: it holds no list of nodes.")
    return workflow


def model_files(workflow: Workflow) -> set[str]:
    """The model files that a workflow names, as `folder/file` under a models directory."""
    nodes = (node for node in workflow["nodes"] if node["type"] in LOADER_FOLDERS)
    return {f"{LOADER_FOLDERS[node['type']]}/{node['widgets_values'][0]}" for node in nodes}


def to_prompt(workflow: Workflow, object_info: ObjectInfo) -> Prompt:
    """The API form of a UI workflow; `object_info` is the server's answer to /object_info.

    Raises UnknownNodes, and ValueError when a node's saved widgets do not fit the server's node.
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


def _runs(node: dict[str, Any]) -> bool:
    return node["type"] not in (*NOTES, REROUTE) and node.get("mode", 0) not in (MUTED, BYPASSED)


def _source(
    origin: tuple[int, int], nodes: dict[int, dict[str, Any]], links: dict[int, tuple[int, int]]
) -> list[Any] | None:
    """The running node's output that feeds a link; None where a muted node or an open end does."""
    node, slot = nodes[origin[0]], origin[1]
    if _runs(node):
        return [str(node["id"]), slot]
    if node.get("mode", 0) == MUTED:
        return None
    # A bypassed node or a reroute hands on the input of the output's type: the one in the same place first.
    inputs = node.get("inputs", [])
    wanted = node["outputs"][slot]["type"]
    candidates = inputs[slot : slot + 1] + inputs
    for candidate in candidates:
        fits = node["type"] == REROUTE or candidate["type"] == wanted
        if fits and candidate.get("link") is not None:
            return _source(links[candidate["link"]], nodes, links)
    return None


def _widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
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
    # Widgets that the node got after the file was saved start at their defaults.
    added = {name: default(info, name) for name in names[len(saved) :] if name is not None}
    return values | {name: value for name, value in added.items() if value is not None}


def widget_names(info: dict[str, Any], *, with_controls: bool = False) -> list[str | None]:
    """A node's widgets in the order of `widgets_values`.

    With `with_controls`, None stands where the front end adds one of its own: "control after generate" behind a
    seed, the upload button behind the rest.
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
    """What a widget starts with; None if the node does not say."""
    kind, options = _declaration(
        (info["input"].get("required", {}) | info["input"].get("optional", {}))[name]
    )
    first = (kind if isinstance(kind, list) else options.get("options", []))[:1]
    return options.get("default", *first) if first else options.get("default")


def choices(object_info: ObjectInfo, node_type: str, name: str) -> list[str]:
    """What a drop-down of the server offers, old (`[[...], {}]`) or new (`["COMBO", {"options": ...}]`)."""
    sections = object_info[node_type]["input"]
    declared = sections.get("required", {}) | sections.get("optional", {})
    kind, options = _declaration(declared[name])
    return list(kind if isinstance(kind, list) else options.get("options", []))


def _declaration(declared: list[Any]) -> tuple[Any, dict[str, Any]]:
    return declared[0], declared[1] if len(declared) > 1 else {}
