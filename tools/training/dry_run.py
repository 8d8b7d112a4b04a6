"""What a job would do, said before anything is loaded: the data, the steps, the memory, and what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from training.pairs import Pair, Problems

if TYPE_CHECKING:
    from training.session import Session

# Key of the job → ComfyUI's key of the folder that the file lies in.
FOLDERS = {
    "checkpoint": "checkpoints",
    "unet_file": "diffusion_models",
    "teacher_unet_file": "diffusion_models",
    "llm": "text_encoders",
    "teacher_llm": "text_encoders",
    "adapter": "llm4gen",
    "start_from": "llm4gen",
    "teacher_adapter": "llm4gen",
}
UNET = "model.diffusion_model."
CLIP_TOKENS = 77  # of a caption of one chunk
LEARNING = 5 * 4  # bytes for a weight that learns: itself, its gradient, AdamW's two moments, and its average


def problems_of(job: Mapping[str, Any], pairs: Sequence[Pair]) -> Iterator[str]:
    """What keeps the job from running."""
    import folder_paths  # noqa: PLC0415

    from llm4gen.nodes import folders  # noqa: PLC0415

    for key, folder in FOLDERS.items():
        name = job[key]
        own = folder in (folders.ENCODERS, folders.ADAPTERS)
        if name and not (folders.find(folder, name) if own else folder_paths.get_full_path(folder, name)):
            yield f"{key}: ComfyUI's {folder} folders hold no {name}."
    if job["adapter"] and job["start_from"]:
        yield "adapter and start_from are both given. adapter is trained further as it is; start_from begins a new one."
    if bool(job["teacher_llm"]) != bool(job["teacher_adapter"]):
        yield "A teacher needs both teacher_llm and teacher_adapter."
    if job["teacher_unet_file"] and not job["teacher_llm"]:
        yield "There is a teacher_unet_file without a teacher_llm."
    for place in job["data"]:
        if not place.exists():
            yield f"data: there is no {place}."
    if not pairs:
        yield "data: there is no picture with a caption."


def report(
    job: Mapping[str, Any], pairs: Sequence[Pair], problems: Problems, session: Session, processes: int
) -> Iterator[str]:
    """Lines for a person."""
    seen = sum(pair.repeats for pair in pairs)
    captions = {pair.caption for pair in pairs}
    examples = job["steps"] * job["batch_size"] * job["accumulate"] * processes
    yield f"data: {len(pairs)} pictures, {len(captions)} different captions"
    yield from problems.lines()
    yield f"steps: {job['steps']}, which see {examples} pictures" + (
        f" ({examples / seen:.1f} rounds)" if seen else ""
    )
    latents = len(pairs) * 4 * (job["resolution"] // 8) ** 2 * 4
    width = session.run("LLM4GEN_LoadLLMEncoder", encoder_name=job["llm"], dtype=job["llm_dtype"]).width
    states = (len(captions) + 1) * (CLIP_TOKENS * job["context_width"] * 4 + job["tokens"] * (width * 2 + 16))
    needed = (latents + states) / 1e9
    yield f"features: at most {needed:.2f} GB on the disk, of {job['features_gb']:g} GB that they may take"
    if needed > job["features_gb"]:
        part = 1 - job["features_gb"] / needed
        yield (
            f"features: up to {part:.0%} of them do not fit. Each step that sees such a picture or caption computes "
            "them again, with the VAE, CLIP and the LLM, which are then loaded beside what learns. The training says "
            "how long that takes"
        )
    yield memory(job, unet_weights(job))


def memory(job: Mapping[str, Any], unet: int | None) -> str:
    """unet: how many weights it has."""
    if unet is None:
        return "memory: not known, because the number of the UNet's weights cannot be read from its file"
    held = unet * (4 if job["precision"] == "fp32" else 2)
    if job["unet"] == "whole":
        held = unet * LEARNING
    others = "the LoRA, the adapter" if job["unet"] == "LoRA" else "the adapter"
    return f"memory: {held / 1e9:.2f} GB for the UNet, and more for {others} and the activations"


def unet_weights(job: Mapping[str, Any]) -> int | None:
    """How many weights the UNet has, from its file's header; None if it cannot be seen there."""
    import folder_paths  # noqa: PLC0415

    key = "unet_file" if job["unet_file"] else "checkpoint"
    path = folder_paths.get_full_path(FOLDERS[key], job[key])
    try:
        with safe_open(path, framework="np") as file:
            names = [name for name in file.keys() if key == "unet_file" or name.startswith(UNET)]  # noqa: SIM118
            sizes = [file.get_slice(name).get_shape() for name in names]
    except (OSError, SafetensorError):
        return None
    return sum(map(math.prod, sizes)) or None
