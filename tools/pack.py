"""Makes the pack importable as `llm4gen` without ComfyUI, whose entry point the root's `__init__.py` is."""

from __future__ import annotations

import sys
import types

from host.comfyui import ROOT


def make_importable(*folders: str) -> None:
    """After this call, `llm4gen.models` can be imported. Modules that are imported already stay as they are.

    folders: folders of the pack whose modules can be imported without running the folder's `__init__.py`, such as
             "nodes", whose own would need a running ComfyUI.
    """
    for name in ("llm4gen", *(f"llm4gen.{folder}" for folder in folders)):
        package = types.ModuleType(name)
        package.__path__ = [str(ROOT.joinpath(*name.split(".")[1:]))]
        sys.modules.setdefault(name, package)
