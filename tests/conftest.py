"""Import paths for the tests, the fixtures that they share, and which of them need a ComfyUI or a GPU."""

import contextlib
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUPPORT, TOOLS = ROOT / "tests" / "support", ROOT / "tools"

# `python -m pytest` puts the root on the path, where the pack's `nodes/` would hide ComfyUI's `nodes.py`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path[:0] = [str(SUPPORT), str(TOOLS)]

# The pack under an importable name, without ComfyUI: its root's `__init__.py` is ComfyUI's entry point.
pack = types.ModuleType("llm4gen")
pack.__path__ = [str(ROOT)]
sys.modules.setdefault("llm4gen", pack)

pytest_plugins = ["host_fixtures"]
# Marker → the fixtures that give it to each test which asks for one of them, directly or through another fixture.
# `host`: they start a ComfyUI, in a server or in this process. `gpu`: it skips tests where there is no GPU.
MARKERS = {"host": {"host", "started", "place"}, "gpu": {"gpu"}}
# The folders whose files take longest come first, so that the workers end at about the same time.
ORDER = ("device", "web", "laws", "tools", "nodes", "models")


def pytest_collection_modifyitems(items):
    for item in items:
        for marker, fixtures in MARKERS.items():
            if fixtures & set(item.fixturenames):
                item.add_marker(marker)
    items.sort(key=lambda item: ORDER.index(item.path.parent.name))


@pytest.fixture(scope="module")
def module_path(tmp_path_factory):
    """For large files that a module's tests share: pytest's own folders stay until the last test."""
    folder = tmp_path_factory.mktemp("module")
    yield folder
    # The folders stay: a ComfyUI in this process that has listed one fails when it is gone.
    for path in filter(Path.is_file, folder.rglob("*")):
        with contextlib.suppress(OSError):  # Windows keeps a file that is still mapped
            path.unlink()


@pytest.fixture
def fetching(tmp_path):
    """tools/fetch_weights.py with a hub of its own and an empty ComfyUI."""
    # Imported here, because these modules import torch and transformers.
    from fetching import Fetching  # noqa: PLC0415
    from hub_server import Hub  # noqa: PLC0415

    with Hub() as hub:
        yield Fetching(tmp_path, hub)
