"""Which way knowledge flows: models ← nodes ← the entry point, and what each room must not know."""

import ast
import re

import pytest

from paths import ROOT

MEMORY = ("comfy.model_management", "comfy.model_patcher", "comfy.ops")
HOST = ("comfy", "comfy_api", "comfy_execution", "folder_paths", "nodes", "server", "execution")
ROOMS = (
    ".prompt",
    ".fused_clip",
    ".hosted",
    ".condition",
    ".load",
    ".folders",
    ".attention",
    ".tokens_shown",
)
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
    "nodes/attention_map.py": ("..models", "torch", ".host", *HOST, *ROOMS),
    "nodes/lettering.py": ("..models", "torch", ".host", ".attention_map", *HOST, *ROOMS),
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
    # HTTP alone.
    "nodes/routes.py": ("torch", "transformers", "comfy", "comfy_api", "folder_paths", *ROOMS),
    # tools/doctor.py reads them where no server is and no model could run.
    "nodes/re*.py": ("comfy", "comfy_api", "server", "aiohttp", ".host", ".fused_clip", ".hosted", ".routes"),
    "nodes/tokenizers.py": ("comfy", "comfy_api", "server", "aiohttp", ".host"),
}
WEB = ("server", "aiohttp")
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


def test_only_routes_py_knows_http():
    knowing = [path for path in (ROOT / "nodes").glob("*.py") if any(knows(path, module) for module in WEB)]
    assert [path.name for path in knowing] == ["routes.py"]


def test_web_knows_the_front_end_and_itself_alone():
    """The host imports every module of web/ by itself, so only llm4gen.js may do anything then."""
    paths = sorted((ROOT / "web").glob("*.js"))
    known = {f"./{path.name}" for path in paths} | {"../../scripts/app.js", "../../scripts/api.js"}
    texts = {path.name: path.read_text(encoding="utf-8") for path in paths}
    assert {name for text in texts.values() for name in re.findall(r'from "(.*)";', text)} <= known
    assert [name for name, text in texts.items() if "registerExtension" in text] == ["llm4gen.js"]


def test_nothing_imports_tools():
    paths = [ROOT / "__init__.py", *(ROOT / "models").glob("*.py"), *(ROOT / "nodes").glob("*.py")]
    assert [path for path in paths if any("tools" in name.split(".") for name in imports(path))] == []
