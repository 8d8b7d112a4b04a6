"""The files in the folder of a training run of the demo model, and how the commands on it are started."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

JOB_STATE, FEATURES = "state.safetensors", "features"
START, CHECKPOINT = "start.safetensors", "clip_and_vae.safetensors"
TEACHER, TEACHER_STATE = "teacher.safetensors", "teacher_state.safetensors"
UNET, ADAPTER = "unet.safetensors", "adapter.safetensors"
FIGURES, SHEETS = "figures.jsonl", "sheets"
# ComfyUI's own attention on a CPU is slower for so few cells.
ARGUMENTS = ("--cpu", "--use-pytorch-cross-attention")


def parser(description: str | None) -> ArgumentParser:
    """A parser of what all commands on a run need."""
    made = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    made.add_argument("--comfyui", type=Path, required=True, metavar="DIR", help="ComfyUI's folder")
    made.add_argument("--llm", type=Path, required=True, metavar="FILE", help="SmolLM2")
    made.add_argument("--folder", type=Path, required=True, metavar="DIR", help="of the training run")
    return made
