"""The pack under an importable name, without ComfyUI: its root's `__init__.py` is the host's entry point."""

import contextlib
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
    """For large files that a module's tests share: pytest's own folders stay until the last test."""
    folder = tmp_path_factory.mktemp("module")
    yield folder
    # Not the folders: a host in this process that has listed one fails when it is gone.
    for path in filter(Path.is_file, folder.rglob("*")):
        with contextlib.suppress(OSError):  # Windows keeps a file that is still mapped
            path.unlink()


@pytest.fixture
def fetching(tmp_path):
    """tools/fetch_weights.py with a hub of its own and an empty ComfyUI."""
    # Not for every test: they bring torch and transformers.
    from fetching import Fetching  # noqa: PLC0415
    from hub_server import Hub  # noqa: PLC0415

    with Hub() as hub:
        yield Fetching(tmp_path, hub)
