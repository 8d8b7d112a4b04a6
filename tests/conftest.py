"""The pack under an importable name, without ComfyUI: its root's `__init__.py` is the host's entry point."""

import shutil
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# `python -m pytest` puts the root on the path, where the pack's `nodes/` would hide ComfyUI's `nodes.py`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

pack = types.ModuleType("llm4gen")
pack.__path__ = [str(ROOT)]
sys.modules.setdefault("llm4gen", pack)


@pytest.fixture(scope="module")
def module_path(tmp_path_factory):
    """A folder for large files that a module's tests share. pytest's own would stay until the last test."""
    folder = tmp_path_factory.mktemp("module")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def fetching(tmp_path):
    """tools/fetch_weights.py with a hub of its own and an empty ComfyUI."""
    # Not for every test: they bring torch and transformers.
    from fetching import Fetching  # noqa: PLC0415
    from hub_server import Hub  # noqa: PLC0415

    with Hub() as hub:
        yield Fetching(tmp_path, hub)
