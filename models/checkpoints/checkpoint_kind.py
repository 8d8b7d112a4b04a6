"""Recognises the kinds of checkpoints that adapters are made for, by the header of a safetensors file.

Standard library only: tools/doctor.py and the demo read it where torch would only cost seconds.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

SD15 = 768
# Width of the context, which an adapter's output must have → the kind. tests/tools/test_doctor.py holds the names
# against those of ComfyUI.
KINDS = {SD15: "SD1.5", 1024: "SD2", 2048: "SDXL", 1280: "SDXL refiner"}
# A weight of a UNet that reads the context: its second size is the width of that.
READS_CONTEXT = re.compile(r"model\.diffusion_model\.input_blocks\..*\.attn2\.to_k\.weight")
VIDEO = "time_stack"  # in names of models of moving pictures, some of which have the widths of others
# Packed numbers, as in nvfp4, have a second size that is not the width.
NOT_PACKED = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
# Bytes. Checkpoints need a tenth of it, and parsing a longer one would hold up the server.
HEADER_LIMIT = 10_000_000


def context_width(path: Path) -> int | None:
    """The width of the context of the UNet in a safetensors file; None if it holds none of `KINDS`."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length < HEADER_LIMIT else {}
    except (OSError, ValueError, RecursionError, struct.error):
        return None
    if not isinstance(header, dict) or any(VIDEO in name for name in header):
        return None
    widths = [width_in(entry) for name, entry in header.items() if READS_CONTEXT.fullmatch(name)]
    return widths[0] if widths and widths[0] in KINDS and len(set(widths)) == 1 else None


def width_in(entry: object) -> int | None:
    """The second size of a weight, by its entry in a header, in which anything may stand; None if it is packed."""
    if not isinstance(entry, dict) or entry.get("dtype") not in NOT_PACKED:
        return None
    shape = entry.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or not isinstance(shape[1], int):
        return None
    return shape[1]
