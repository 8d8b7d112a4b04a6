"""Recognises SD1.5 checkpoints by the header of a safetensors file. Standard library only."""

from __future__ import annotations

import json
import struct
from pathlib import Path

# Only SD1.5's UNet has this weight in this shape. Its second size is the width of the cross-attention context.
SD15_KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
SD15_SHAPE = [320, 768]
HEADER_LIMIT = 100_000_000  # bytes; the limit that the library `safetensors` sets for a header


def is_sd15_checkpoint(path: Path) -> bool:
    """Whether a safetensors file holds an SD1.5 UNet. This pack works with no other checkpoint."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length < HEADER_LIMIT else {}
    except (OSError, ValueError, struct.error):
        return False
    return header.get(SD15_KEY, {}).get("shape") == SD15_SHAPE
