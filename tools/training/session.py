"""One training in a ComfyUI without its server, by the same nodes as in a graph."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from host.dynamic_vram import start_dynamic_vram
from host.folders import load_folder_paths
from pack import make_importable
from training.features import Encoders, stored_set
from training.job_file import ADVANCED, FILES, Key, keys_of
from training.pairs import Pair, Problems

if TYPE_CHECKING:
    from llm4gen.models.training.ranks import Ranks
    from llm4gen.nodes.training.job import Job
    from llm4gen.nodes.training.run import Run, Trained


@dataclass(frozen=True)
class Session:
    """ComfyUI's own nodes and the pack's, in this process.

    core: ComfyUI's module nodes.py. ours: the pack's node classes by node id.
    """

    core: ModuleType
    ours: Mapping[str, Any]

    def schema(self) -> dict[str, Key]:
        """All keys of a job."""
        from llm4gen.nodes.training.job import job_inputs, late_inputs  # noqa: PLC0415

        new = self.ours["LLM4GEN_NewCrossAdapter"].define_schema().inputs
        return {**FILES, **keys_of(new), **keys_of([*job_inputs(), *late_inputs()]), **ADVANCED}

    def run(self, node: str, **inputs: Any) -> Any:
        """The first output of one of the pack's nodes."""
        return self.ours[node].execute(**inputs).args[0]


def start_comfyui(comfyui: Path, arguments: Sequence[str]) -> Session:
    """arguments: ComfyUI's own. Raises: see `load_folder_paths`."""
    load_folder_paths(comfyui, arguments)
    start_dynamic_vram()
    make_importable()
    import nodes as core  # noqa: PLC0415 -- ComfyUI's module
    from llm4gen.nodes import comfy_entrypoint  # noqa: PLC0415

    extension = asyncio.run(comfy_entrypoint())
    asyncio.run(extension.on_load())
    ours = {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}
    return Session(core, ours)


@torch.inference_mode()
def train(
    session: Session,
    job: Mapping[str, Any],
    pairs: Sequence[Pair],
    problems: Problems,
    *,
    ranks: Ranks,
    watch: Callable[[Run, Any], None],
) -> Trained:
    """Runs a job. Raises: what the nodes raise."""
    from llm4gen.nodes.training.run import train as train_adapter  # noqa: PLC0415

    model, clip, vae = session.core.CheckpointLoaderSimple().load_checkpoint(job["checkpoint"])
    if job["unet_file"]:
        (model,) = session.core.UNETLoader().load_unet(job["unet_file"], "default")
    llm = session.run("LLM4GEN_LoadLLMEncoder", encoder_name=job["llm"], dtype=job["llm_dtype"])
    adapter = first_adapter(session, job, llm)
    found = stored_set(job, pairs, problems, ranks, Encoders(clip, vae, llm, adapter))
    teacher = teacher_of(session, job, clip)
    return train_adapter(
        model,
        found,
        adapter,
        trainer_job(job),
        **teacher,
        ranks=ranks,
        state_file=job["run"] / "state.safetensors",
        watch=watch,
    )


def trainer_job(job: Mapping[str, Any]) -> Job:
    """What Train Cross-Adapter would be asked for, and what only a job file can say. Raises: WrongTraining."""
    from llm4gen.nodes.training.job import job_inputs, job_of, late_inputs  # noqa: PLC0415

    asked = job_of(**{key: job[key] for key in keys_of([*job_inputs(), *late_inputs()])})
    advanced = {key: job[key] for key in ADVANCED}
    drops = replace(asked.settings.drops, clip_tokens=advanced.pop("drop_clip_tokens"))
    return replace(asked, settings=replace(asked.settings, drops=drops, **advanced))


def first_adapter(session: Session, job: Mapping[str, Any], llm: Any) -> Any:
    """The adapter that learns: a loaded one, or a new one."""
    if job["adapter"]:
        return session.run("LLM4GEN_LoadCrossAdapter", adapter_name=job["adapter"])
    node = session.ours["LLM4GEN_NewCrossAdapter"]
    inputs = {key: job[key] for key in keys_of(node.define_schema().inputs)}
    if job["start_from"]:
        inputs["start_from"] = session.run("LLM4GEN_LoadCrossAdapter", adapter_name=job["start_from"])
    return session.run("LLM4GEN_NewCrossAdapter", llm=llm, **inputs)


def teacher_of(session: Session, job: Mapping[str, Any], clip: Any) -> dict[str, Any]:
    """The inputs of a teacher, if the job has one."""
    if not job["teacher_llm"]:
        return {}
    fused = session.run(
        "LLM4GEN_ApplyToCLIP",
        clip=clip,
        llm=session.run("LLM4GEN_LoadLLMEncoder", encoder_name=job["teacher_llm"], dtype=job["llm_dtype"]),
        adapter=session.run("LLM4GEN_LoadCrossAdapter", adapter_name=job["teacher_adapter"]),
        strength=1.0,
    )
    if not job["teacher_unet_file"]:
        return {"teacher_clip": fused}
    (unet,) = session.core.UNETLoader().load_unet(job["teacher_unet_file"], "default")
    return {"teacher_clip": fused, "teacher_model": unet}
