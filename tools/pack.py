"""The pack under an importable name, without ComfyUI: its root's `__init__.py` is the host's entry point."""

from __future__ import annotations

import sys
import types

from host.comfyui import ROOT


def make_importable(*rooms: str) -> None:
    """From here on `llm4gen.models` can be imported.

    rooms: whose files can be, without what their `__init__.py` would bring: a running ComfyUI, in that of nodes.
    """
    for name in ("llm4gen", *(f"llm4gen.{room}" for room in rooms)):
        package = types.ModuleType(name)
        package.__path__ = [str(ROOT.joinpath(*name.split(".")[1:]))]
        sys.modules.setdefault(name, package)
