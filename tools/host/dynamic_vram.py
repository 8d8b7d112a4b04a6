"""Starts ComfyUI's Dynamic VRAM in a process that has no server, where ComfyUI's main.py would start it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def start_dynamic_vram() -> bool:
    """Returns whether Dynamic VRAM is on: it needs an NVIDIA card and its own library.

    To be called when ComfyUI's arguments are set, and before any model is made.
    """
    import comfy.cli_args  # noqa: PLC0415
    import comfy.memory_management  # noqa: PLC0415
    import comfy.model_management as management  # noqa: PLC0415
    import comfy.model_patcher  # noqa: PLC0415

    if not comfy.cli_args.enables_dynamic_vram() or not management.is_nvidia() or management.is_wsl():
        return False
    if management.torch_version_numeric < (2, 8):
        return False
    import comfy_aimdo.control  # noqa: PLC0415

    comfy_aimdo.control.init()
    if not comfy_aimdo.control.init_devices(device.index for device in management.get_all_torch_devices()):
        return False
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
    return True


@contextmanager
def without_dynamic_vram() -> Iterator[None]:
    """For modules of ComfyUI's that no file is loaded into: under Dynamic VRAM its linear layers get their weights, and
    so their shapes, only from a file.
    """
    import comfy.memory_management  # noqa: PLC0415

    before = comfy.memory_management.aimdo_enabled
    comfy.memory_management.aimdo_enabled = False
    try:
        yield
    finally:
        comfy.memory_management.aimdo_enabled = before
