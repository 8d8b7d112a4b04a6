"""Which way knowledge flows: models ← nodes ← the entry point, and what each room must not know."""

import ast

import pytest

from paths import ROOT

MEMORY = ("comfy.model_management", "comfy.model_patcher", "comfy.ops")
HOST = ("comfy", "comfy_api", "comfy_execution", "folder_paths", "nodes", "server", "execution")
ROOMS = (".prompt", ".fused_clip", ".hosted", ".condition", ".load", ".folders")
FORBIDDEN = {
    "__init__.py": ("..models", ".models", "torch", *HOST),
    "models/*.py": (*HOST, "..nodes", "..tools"),
    "models/cross_adapter.py": (".weights", ".checkpoint", ".filling", ".recipe", "pathlib", "safetensors"),
    "models/t5.py": (
        ".cross_adapter",
        ".weights",
        ".checkpoint",
        ".filling",
        ".recipe",
        "pathlib",
        "safetensors",
    ),
    "models/recipe.py": ("torch", "safetensors"),
    "nodes/*.py": ("..tools", "tools", "..tests"),
    "models/formats.py": ("torch", "safetensors"),
    "nodes/sockets.py": ("..models", "torch", *ROOMS),
    "nodes/folders.py": (
        "torch",
        "safetensors",
        "..models.checkpoint",
        "..models.filling",
        "..models.weights",
    ),
    "tools/steps.py": ("torch", "safetensors", "pack"),
    "tools/fetch_*.py": ("torch", "safetensors", "transformers"),
    "tools/fetch_hub.py": ("llm4gen", "fetch_items", "fetch_task", "fetch_plan", "host"),
    "nodes/host.py": ("..models", "comfy_api", *ROOMS),
}
ONLY_HOST_MAY = [path for path in (ROOT / "nodes").glob("*.py") if path.name != "host.py"]


def imports(path):
    """Absolute module names as they are, relative ones with their dots; `from a import b` as a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module
            joint = "" if module.endswith(".") else "."
            yield from (f"{module}{joint}{alias.name}" for alias in node.names)


def knows(path, module):
    return [name for name in imports(path) if name == module or name.startswith(module + ".")]


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_no_room_knows_what_it_must_not(pattern):
    paths = list(ROOT.glob(pattern))
    assert paths
    assert {
        (path.name, name) for path in paths for module in FORBIDDEN[pattern] for name in knows(path, module)
    } == set()


@pytest.mark.parametrize("path", ONLY_HOST_MAY, ids=lambda path: path.name)
def test_only_host_py_knows_the_hosts_memory(path):
    assert [name for module in MEMORY for name in knows(path, module)] == []


def test_host_py_does():
    assert all(knows(ROOT / "nodes" / "host.py", module) for module in MEMORY)


def test_nothing_imports_tools():
    paths = [ROOT / "__init__.py", *(ROOT / "models").glob("*.py"), *(ROOT / "nodes").glob("*.py")]
    assert [path for path in paths if any("tools" in name.split(".") for name in imports(path))] == []
