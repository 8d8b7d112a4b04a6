"""A models directory with small random stand-ins, for running the workflow without real weights.

Only making the stand-ins needs torch and ComfyUI. To make them by hand, in tools/, with ComfyUI's Python:

    python -m sandbox.standins --comfyui ../.host/ComfyUI ../.host/standins
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

CHECKPOINT = "llm4gen_standin_sd15.safetensors"
ENCODER = "rankgen-t5-xl-standin.safetensors"
ADAPTER = "projector_standin.pth"
# Increase this with every change in standin_models.py that changes a tensor, so that existing files are replaced.
VERSION = 2
STAMP = "standins.json"


def ensure_standins(target: Path) -> bool:
    """Makes the stand-ins in `target` unless they are there. Returns whether it made them.

    They are made in a temporary folder that is then renamed, so that an interrupted run leaves nothing incomplete.
    """
    if is_current(target):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=target.name + "-"))
    try:
        fresh = scratch / target.name
        _write_all(fresh)
        (fresh / STAMP).write_text(json.dumps({"version": VERSION}), encoding="utf-8")
        return put_in_place(fresh, target, scratch / "old")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def put_in_place(fresh: Path, target: Path, old: Path) -> bool:
    """Renames `fresh` to `target`, and an outdated `target` to `old`. Returns whether it did.

    If another process, such as another test worker, was faster, its files stay, because they may be in use.
    """
    if is_current(target):
        return False
    if target.exists():
        target.replace(old)
    try:
        fresh.replace(target)
    except OSError:
        if not is_current(target):
            raise
        return False
    return True


def is_current(target: Path) -> bool:
    """Whether `target` contains stand-ins of this version."""
    try:
        return json.loads((target / STAMP).read_text(encoding="utf-8")) == {"version": VERSION}
    except (OSError, ValueError):
        return False


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="the models directory to make")
    parser.add_argument("--comfyui", type=Path, required=True, help="the ComfyUI folder")
    options = parser.parse_args()
    sys.argv = sys.argv[:1]  # ComfyUI would parse these arguments as its own
    sys.path.insert(0, str(options.comfyui.resolve()))
    from comfy.cli_args import args  # noqa: PLC0415

    args.cpu = True  # set before other modules of comfy are imported, because they look for a GPU
    ensure_standins(options.target.resolve())


if __name__ == "__main__":
    main()
