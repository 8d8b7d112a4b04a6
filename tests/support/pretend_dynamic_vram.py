"""Dynamic VRAM on the pretend card: what ComfyUI asks of its library comfy-aimdo, which needs a real one.

A model has a range of addresses (`ModelVBAR`), and each of its layers a part of it. When a layer runs, its part either
gets memory ("fault") and keeps it until memory is short, or gets none and the layer's weights are copied for this once.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import types

import torch

from pretend_card import Card, OnCard

ALIGNMENT = 512


class ModelVBAR:
    def __init__(self, size, device):
        self.size, self.end, self.faults = size, 0, 0
        self.memory: dict[int, tuple[torch.Tensor, int]] = {}

    def alloc(self, size):
        start = -(-self.end // ALIGNMENT) * ALIGNMENT
        self.end = start + size
        assert self.end <= self.size
        return self, start, size

    def prioritize(self, *_):
        pass

    deprioritize = prioritize

    def loaded_size(self):
        return sum(tensor.nbytes for tensor, _ in self.memory.values())

    def free_memory(self, size):
        freed = self.loaded_size()
        self.memory.clear()
        return freed


def vbar_fault(part):
    """Gives a part its memory, if there is some. Returns a signature that changes when the contents are lost."""
    vbar, start, size = part
    if start not in vbar.memory:
        if Card.total - Card.used < size:
            return None
        vbar.faults += 1
        vbar.memory[start] = OnCard(torch.zeros(size, dtype=torch.uint8)), vbar.faults
    return vbar.memory[start][1]


def aimdo_to_tensor(part, device):
    vbar, start, _ = part
    return vbar.memory[start][0]


class VRAMBuffer:
    """Memory for weights that are copied for one use, while other layers compute."""

    def __init__(self, *_):
        pass

    def get(self, size, offset=0):
        memory = {offset: (OnCard(torch.zeros(size, dtype=torch.uint8)), 0)}
        return types.SimpleNamespace(memory=memory), offset, size


class ModelMMAP:
    """A file in memory, in pages of its own."""

    def __init__(self, path):
        self.file = open(path, "rb")  # noqa: SIM115 -- ComfyUI reads from it as long as this object lives
        self.pages = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_COPY)

    def get(self):
        return ctypes.addressof(ctypes.c_char.from_buffer(self.pages))

    def get_file_handle(self):
        return self.file.fileno()

    def bounce(self):
        return True


class HostBuffer:
    """Pinned memory, of which there is none: ComfyUI then copies from ordinary memory."""

    def __init__(self, size, *_, **__):
        self.size = size

    def extend(self, *_, **__):
        raise RuntimeError("the pretend card pins no memory")

    def truncate(self, *_, **__):
        pass


def read_file_to_device(file, offset, size, stream, address, *_, **__):
    """Core's own files go from the disk straight to a layer's memory."""
    ctypes.memmove(address, os.pread(file, size, offset), size)
    Card.uploads += size


def install() -> None:
    """Before ComfyUI is imported, which takes these by their modules."""
    import comfy_aimdo.host_buffer  # noqa: PLC0415
    import comfy_aimdo.torch  # noqa: PLC0415
    from comfy_aimdo import control, model_mmap, model_vbar, vram_buffer  # noqa: PLC0415

    control.init = control.init_devices = lambda *_, **__: True
    for name in dir(control):
        if name.startswith("set_log_"):
            setattr(control, name, lambda: None)
    model_vbar.ModelVBAR, model_vbar.vbar_fault = ModelVBAR, vbar_fault
    model_mmap.ModelMMAP = ModelMMAP
    model_vbar.vbar_unpin = lambda part: None
    model_vbar.vbar_signature_compare = lambda a, b: a is not None and a == b
    model_vbar.vbars_analyze = lambda *_: 0
    model_vbar.vbars_reset_watermark_limits = lambda *_: None
    comfy_aimdo.torch.aimdo_to_tensor = aimdo_to_tensor
    comfy_aimdo.host_buffer.read_file_to_device = read_file_to_device
    comfy_aimdo.host_buffer.HostBuffer, vram_buffer.VRAMBuffer = HostBuffer, VRAMBuffer
