"""Chooses the weights that the example workflow runs on: real ones if there are any, else random stand-ins.

Standard library only.
"""

from __future__ import annotations

import copy
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from host.comfyui import MODEL_FOLDERS, STANDINS_DIR, TOOLS, HostError, Installation
from pack import make_importable
from sandbox import standins
from sandbox.workflow import ObjectInfo, Workflow, choices, widget_names

DEMO = "llm4gen_demo"  # begins the names of the demo model's files, which fit nothing else


@dataclass(frozen=True)
class Choice:
    """The file that a loader's drop-down is set to.

    title:     the loader's name on screen.
    node_type: the loader's id.
    name:      the entry that is chosen.
    standin:   whether that file is a random stand-in.
    """

    title: str
    node_type: str
    name: str
    standin: bool

    def __str__(self) -> str:
        return f"{self.title}: {self.name} ({'random stand-in' if self.standin else 'real weights'})"


def make_standins(host: Installation) -> Path:
    """Makes the stand-ins with ComfyUI's Python unless they are there. Returns their models directory.

    Raises: HostError if they cannot be made.
    """
    if not standins.is_current(STANDINS_DIR):
        make_models(host, "sandbox.standins", STANDINS_DIR, "stand-in weights")
    return STANDINS_DIR


def make_models(host: Installation, module: str, target: Path, what: str) -> None:
    """Makes a models directory with ComfyUI's Python. module: of tools/, whose argument is the directory.

    Raises: HostError if it cannot be made.
    """
    print(f"making {what} ...", end="", flush=True)
    start = time.monotonic()
    command = [host.python, "-m", module, "--comfyui", host.comfyui, target]
    done = subprocess.run(
        list(map(str, command)), cwd=TOOLS, capture_output=True, env=host.environment(), check=False
    )
    if done.returncode:
        tail = done.stderr.decode("utf-8", "replace").strip()[-2000:]
        raise HostError(f"{host.python} could not make the {what}:\n{tail}")
    print(f" {time.monotonic() - start:.0f} s", flush=True)


def with_present_models(
    workflow: Workflow, object_info: ObjectInfo, models: Sequence[Path] = ()
) -> tuple[Workflow, list[Choice]]:
    """Returns a copy of the workflow whose loaders name files that the server lists, and the choices made.

    A file that the server lists is kept. Otherwise the first real file of that kind is chosen, or the stand-in.

    models: models directories with real weights. Only checkpoints found there are recognised as SD1.5.
    """
    kinds = _kinds(models)
    workflow = copy.deepcopy(workflow)
    chosen = []
    for node in workflow["nodes"]:
        if node["type"] not in kinds or node["type"] not in object_info:
            continue
        widget, standin, fits = kinds[node["type"]]
        info = object_info[node["type"]]
        listed = choices(object_info, node["type"], widget)
        index = widget_names(info, with_controls=True).index(widget)
        name = node["widgets_values"][index]
        if name not in listed:
            # The named file in another format comes first, as in Load Cross-Adapter.
            others = sorted(listed, key=lambda other: Path(other).stem != Path(name).stem)
            name = next((other for other in others if other != standin and fits(other)), standin)
        node["widgets_values"][index] = name
        chosen.append(Choice(info.get("display_name") or node["type"], node["type"], name, name == standin))
    return workflow, chosen


def _kinds(models: Sequence[Path]) -> dict[str, tuple[str, str, Callable[[str], bool]]]:
    """Node type of a loader → its widget, the stand-in's name, and whether a listed name is of the right kind."""

    make_importable()
    from llm4gen.models.checkpoints.checkpoint_kind import SD15, context_width  # noqa: PLC0415

    def is_sd15(name: str) -> bool:
        folders = [root / folder for root in models for folder in MODEL_FOLDERS["checkpoints"]]
        return any(context_width(folder / name) == SD15 for folder in folders)

    return {
        "CheckpointLoaderSimple": ("ckpt_name", standins.CHECKPOINT, is_sd15),
        "LLM4GEN_LoadLLMEncoder": ("encoder_name", standins.ENCODER, lambda name: "rankgen" in name.lower()),
        "LLM4GEN_LoadCrossAdapter": (
            "adapter_name",
            standins.ADAPTER,
            lambda name: not name.startswith(DEMO),
        ),
    }
