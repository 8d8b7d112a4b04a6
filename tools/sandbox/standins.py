"""A models directory with small random stand-ins, for running the workflow without real weights.

Only making the stand-ins needs torch and ComfyUI. To make them by hand, in tools/, with ComfyUI's Python:

    python -m sandbox.standins --comfyui ../.host/ComfyUI ../.host/standins
"""

from __future__ import annotations

from pathlib import Path

from sandbox.made_once import command_line, is_made, make_once

CHECKPOINT = "llm4gen_standin_sd15.safetensors"
ENCODER = "rankgen-t5-xl-standin.safetensors"
ADAPTER = "projector_standin.pth"
# Increase this with every change in standin_models.py that changes a tensor, so that existing files are replaced.
VERSION = 2


def ensure_standins(target: Path) -> bool:
    """Makes the stand-ins in `target` unless they are there. Returns whether it made them."""
    return make_once(target, VERSION, _write_all)


def is_current(target: Path) -> bool:
    """Whether `target` contains stand-ins of this version."""
    return is_made(target, VERSION)


def _write_all(folder: Path) -> None:
    # Imported here, because many callers of this module only need the names.
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    from sandbox import standin_models  # noqa: PLC0415

    for name in ("checkpoints", "text_encoders", "llm4gen"):
        (folder / name).mkdir(parents=True)
    save_file(standin_models.sd15_checkpoint(), folder / "checkpoints" / CHECKPOINT)
    save_file(standin_models.rankgen_encoder(), folder / "text_encoders" / ENCODER)
    torch.save(standin_models.cross_adapter(), folder / "llm4gen" / ADAPTER)


if __name__ == "__main__":
    command_line(__doc__, ensure_standins)
