"""Which way knowledge flows: models ← nodes ← the entry point, and what each folder must not know."""

import ast
import re

import pytest

from paths import ROOT

HOST = ("comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "execution")
# Folder → what it may import of the pack beside itself. An entry ending in `.` is a folder, others are modules.
# What is not listed here may import anything that this table does not forbid.
MAY_IMPORT = {
    "models/files": ("models.errors",),
    "models/encoders": ("models.errors",),
    "models/checkpoints": (
        *("models.files.", "models.encoders."),
        *("models.cross_adapter", "models.recipe", "models.errors", "models.progress"),
    ),
    "models/features": ("models.files.", "models.encoders."),
    "models/conversion": (
        *("models.files.", "models.encoders.", "models.checkpoints."),
        *("models.recipe", "models.tokens", "models.errors"),
    ),
    "models/training": (
        *("models.files.", "models.encoders.", "models.checkpoints.", "models.features."),
        *("models.cross_adapter", "models.recipe", "models.errors"),
    ),
    "models": ("models.",),
    "nodes/training": ("models.", "nodes."),
    "nodes/drawing": ("models.recipe", "models.tokens", "nodes.prompt"),
    "nodes": ("models.", "nodes."),
}
# The only files of `nodes/` that may import a part of ComfyUI or of its web server.
ONLY = {
    "comfy.model_management": "nodes/host.py",
    "comfy.model_patcher": "nodes/host.py",
    "comfy.ops": "nodes/host.py",
    "aiohttp": "nodes/pages/routes.py",
    "server": None,  # it would bring half of ComfyUI; nodes/pages/routes.py looks whether it is there
}
# Read by tools/doctor.py, by drop-downs, by saved settings and by the demo, where torch would only cost seconds.
WITHOUT_TORCH = (
    "__init__.py",
    "models/checkpoints/checkpoint_kind.py",
    "models/files/formats.py",
    "models/files/listing.py",
    "models/recipe.py",
    "models/errors.py",
    "nodes/folders.py",
)


def modules(folder):
    return sorted(path for path in (ROOT / folder).rglob("*.py"))


def name_of(path):
    """`models/files/fp8.py` → `models.files.fp8`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    """The modules that a file imports: the pack's own by their names from its root, others as they are."""
    package = name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:  # a module, or a name in one
                inner = f"{module}.{alias.name}" if module else alias.name
                yield inner if is_module(inner) else module or alias.name


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def is_own(name):
    return name.split(".")[0] in ("models", "nodes", "tools", "tests")


def is_of(name, module):
    return name == module or name.startswith(module + ".")


OWN = [path for folder in ("models", "nodes") for path in modules(folder)]


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_from_below(folder):
    allowed = (*MAY_IMPORT[folder], folder.replace("/", ".") + ".")
    files = [path for path in modules(folder) if str(path.parent.relative_to(ROOT).as_posix()) == folder]
    assert files
    wrong = [
        (path.name, name)
        for path in files
        for name in filter(is_own, imports(path))
        if not any(
            f"{name}.".startswith(entry) if entry.endswith(".") else name == entry for entry in allowed
        )
    ]
    assert wrong == []


def test_models_know_nothing_of_comfyui():
    wrong = [
        (path.name, name)
        for path in modules("models")
        for name in imports(path)
        for host in HOST
        if is_of(name, host)
    ]
    assert wrong == []


@pytest.mark.parametrize("module", ONLY)
def test_only_one_file_of_the_nodes_knows_it(module):
    users = [path for path in modules("nodes") if any(is_of(name, module) for name in imports(path))]
    assert [path.relative_to(ROOT).as_posix() for path in users] == ([ONLY[module]] if ONLY[module] else [])


@pytest.mark.parametrize("file", WITHOUT_TORCH)
def test_some_files_need_no_torch(file):
    heavy = ("torch", "safetensors", "transformers")
    seen, waiting = set(), [ROOT / file]
    while waiting:
        path = waiting.pop()
        seen.add(path)
        names = list(imports(path))
        assert [name for name in names for library in heavy if is_of(name, library)] == [], path
        if file == "__init__.py":
            break  # what the nodes need is theirs
        found = [ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in names if is_own(name)]
        waiting += [other for other in found if other.is_file() and other not in seen]


def test_no_imports_run_in_a_circle():
    arrows = {name_of(path): {name for name in imports(path) if is_own(name)} for path in OWN}
    done = set()

    def visit(name, trail):
        assert name not in trail, " → ".join([*trail, name])
        if name not in done:
            for other in arrows.get(name, ()):
                visit(other, [*trail, name])
            done.add(name)

    for name in arrows:
        visit(name, [])


def test_nothing_imports_tools():
    wrong = [
        path for path in (ROOT / "__init__.py", *OWN) if any(is_of(name, "tools") for name in imports(path))
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", ["models", "tools"])
def test_a_stranger_sees_few_files_at_the_top(folder):
    assert len(list((ROOT / folder).glob("*.py"))) <= 7


def test_web_knows_the_front_end_and_itself_alone():
    """ComfyUI's page imports every module of web/ by itself, so only llm4gen.js may do anything when imported."""
    paths = sorted((ROOT / "web").glob("*.js"))
    known = {f"./{path.name}" for path in paths} | {"../../scripts/app.js", "../../scripts/api.js"}
    texts = {path.name: path.read_text(encoding="utf-8") for path in paths}
    assert {name for text in texts.values() for name in re.findall(r'from "(.*)";', text)} <= known
    assert [name for name, text in texts.items() if "registerExtension" in text] == ["llm4gen.js"]
