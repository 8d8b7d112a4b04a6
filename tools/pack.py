"""The pack under an importable name, without ComfyUI: its root's `__init__.py` is the host's entry point."""

from __future__ import annotations

import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make_importable() -> None:
    """From here on `llm4gen.models` can be imported."""
    pack = types.ModuleType("llm4gen")
    pack.__path__ = [str(ROOT)]
    sys.modules.setdefault("llm4gen", pack)
