"""Which weights the example runs on: real ones where they lie, random stand-ins elsewhere. Stdlib only."""

from __future__ import annotations

import copy
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from files.sd15 import is_sd15_checkpoint
from host.comfyui import MODEL_FOLDERS, STANDINS_DIR, TOOLS, HostError, Installation
from sandbox import standins
from sandbox.workflow import ObjectInfo, Workflow, choices, widget_names


@dataclass(frozen=True)
class Choice:
    """One drop-down of the workflow and the file that it is set to."""

    title: str
    node_type: str
    name: str
    standin: bool

    def __str__(self) -> str:
        return f"{self.title}: {self.name} ({'random stand-in' if self.standin else 'real weights'})"


def make_standins(host: Installation) -> Path:
    """The stand-ins' models directory; makes them under the host's Python when they are not there."""
    if not standins.is_current(STANDINS_DIR):
        print("making stand-in weights ...", end="", flush=True)
        start = time.monotonic()
        command = [host.python, "-m", "sandbox.standins", "--comfyui", host.comfyui, STANDINS_DIR]
        done = subprocess.run(
            list(map(str, command)), cwd=TOOLS, capture_output=True, env=host.environment(), check=False
        )
        if done.returncode:
            tail = done.stderr.decode("utf-8", "replace").strip()[-2000:]
            raise HostError(f"{host.python} could not make the stand-in weights:\n{tail}")
        print(f" {time.monotonic() - start:.0f} s", flush=True)
    return STANDINS_DIR


def with_present_models(
    workflow: Workflow, object_info: ObjectInfo, models: Sequence[Path] = ()
) -> tuple[Workflow, list[Choice]]:
    """The workflow with its model drop-downs set to what the server lists, and what was chosen.

    A name that the server has stays. Else the first real file of the kind is taken, else the stand-in.
    `models` are the real models directories, to look into checkpoints.
    """

    def is_sd15(name: str) -> bool:
        folders = [root / folder for root in models for folder in MODEL_FOLDERS["checkpoints"]]
        return any(is_sd15_checkpoint(folder / name) for folder in folders)

    kinds: dict[str, tuple[str, str, Callable[[str], bool]]] = {
        "CheckpointLoaderSimple": ("ckpt_name", standins.CHECKPOINT, is_sd15),
        "LLM4GEN_LoadLLMEncoder": ("encoder_name", standins.ENCODER, lambda name: "rankgen" in name.lower()),
        "LLM4GEN_LoadCrossAdapter": ("adapter_name", standins.ADAPTER, lambda name: True),
    }
    workflow = copy.deepcopy(workflow)
    chosen = []
    for node in workflow["nodes"]:
        if node["type"] not in kinds or node["type"] not in object_info:
            continue
        widget, standin, fits = kinds[node["type"]]
        listed = choices(object_info, node["type"], widget)
        index = widget_names(object_info[node["type"]], with_controls=True).index(widget)
        name = node["widgets_values"][index]
        if name not in listed:
            name = next((other for other in listed if other != standin and fits(other)), standin)
        node["widgets_values"][index] = name
        title = object_info[node["type"]].get("display_name") or node["type"]
        chosen.append(Choice(title, node["type"], name, name == standin))
    return workflow, chosen
