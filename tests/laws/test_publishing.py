"""The package that the Comfy registry would publish is small and complete, and works in a real server."""

import ast
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from paths import ROOT, TOOLS
from sandbox.client import Client, image_paths
from sandbox.demo import check_picture
from sandbox.model_choice import make_standins, with_present_models
from sandbox.server import Server
from sandbox.workflow import example_workflows, to_prompt

try:
    import tomllib
except ImportError:  # before Python 3.11
    tomllib = None

MAX_BYTES = 5_000_000
FOR_DEVELOPERS = (
    ".ci/",
    ".github/",
    "tests/",
    "tools/bench/",
    "tools/bundle/",
    "tools/dev.py",
    "tools/pictures/",
    "tools/sandbox/",
)
COMMANDS = (
    "convert.py",
    "doctor.py",
    "fetch_weights.py",
    "train.py",
)  # for users; a missing one is not tested
TIMEOUT = 60


def git(*arguments):
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
    ).stdout.splitlines()


@pytest.fixture(scope="module")
def files():
    """The files of the package, as the registry's tool chooses them: git's files without those in .comfyignore."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("NO GIT: only git can list the files that would be published.")
    listed = ("-c", "core.quotePath=off", "ls-files", "--cached")
    ignored = git(*listed, "--ignored", f"--exclude-from={ROOT / '.comfyignore'}")
    return sorted(set(git(*listed)) - set(ignored))


@pytest.fixture(scope="module")
def package(files, tmp_path_factory):
    """A folder that holds the package."""
    package = tmp_path_factory.mktemp("package")
    for name in files:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, package / name)
    return package


@pytest.fixture(scope="module")
def published(host, package, tmp_path_factory):
    """A server that loads the pack from the package alone."""
    with Server(host, tmp_path_factory.mktemp("published"), [make_standins(host)], pack=package) as server:
        yield server


def with_imports(names):
    """The given tools and all tools that they import, as paths relative to tools/."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name in found or not (TOOLS / name).is_file():
            continue
        found.add(name)
        for node in ast.walk(ast.parse((TOOLS / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            paths = [module.replace(".", "/") for module in modules]
            waiting += [path for part in paths for path in (f"{part}.py", f"{part}/__init__.py")]
            waiting += [f"{Path(part).parent.as_posix()}/__init__.py" for part in paths if "/" in part]
    return found


def nodes(info):
    """id: (inputs in their order, outputs) of each of our nodes."""
    ours = {name: node for name, node in info.items() if node["python_module"] == "custom_nodes.llm4gen"}
    return {name: (node["input_order"], node["output"]) for name, node in ours.items()}


def test_the_package_is_small_and_has_no_files_for_developers(files, package):
    assert sum((package / name).stat().st_size for name in files) < MAX_BYTES
    assert [name for name in files if name.startswith(FOR_DEVELOPERS)] == []


def test_the_package_has_only_the_tools_for_users_with_their_imports_and_the_manual(files):
    tools = {name.removeprefix("tools/") for name in files if name.startswith("tools/")}
    assert tools == with_imports(COMMANDS) | {"README.md"}


@pytest.mark.parametrize("command", [name for name in COMMANDS if (TOOLS / name).is_file()])
def test_a_command_of_the_package_starts_in_its_installed_place(command, published):
    installed = published.base / "custom_nodes" / "llm4gen" / "tools" / command
    done = subprocess.run(
        [sys.executable, str(installed), "--help"],
        cwd=published.base,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: {command}" in done.stdout


def test_the_package_registers_the_same_nodes_as_the_repository(published, object_info):
    found = nodes(published.get("/object_info"))
    assert found
    assert found == nodes(object_info)


def test_the_package_serves_the_help_pages_and_the_workflow_templates(published):
    def served(path):
        with urllib.request.urlopen(f"{published.url}/{path}", timeout=TIMEOUT) as answer:
            return answer.read()

    for node in nodes(published.get("/object_info")):
        page = f"docs/{node}.md"
        assert served(f"extensions/llm4gen/{page}") == (ROOT / "web" / page).read_bytes()
    names = [path.stem for path in example_workflows()]
    assert sorted(published.get("/workflow_templates")["llm4gen"]) == sorted(names)
    for path in example_workflows():
        for file in (path, path.with_suffix(".jpg")):
            assert served(f"api/workflow_templates/llm4gen/{file.name}") == file.read_bytes()


def test_the_example_makes_a_picture_with_the_package(published, workflow):
    client = Client(published.url)
    info = client.object_info()
    prompt = to_prompt(with_present_models(workflow, info)[0], info)
    inputs = {entry["class_type"]: entry["inputs"] for entry in prompt.values()}
    inputs["EmptyLatentImage"].update(width=128, height=64)
    inputs["KSampler"].update(steps=2)
    (picture,) = image_paths(client.run(prompt), published.output)
    check_picture(picture, (128, 64))


def project():
    if tomllib is None:
        pytest.skip("NO TOMLLIB: Python 3.11 brings it.")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_registry_gets_the_same_requirements_that_pip_installs():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert project()["dependencies"] == [line for line in lines if line and not line.startswith("#")]
    assert "dynamic" not in project()


def test_the_version_is_the_newest_in_the_changelog():
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert project()["version"] == heading[1]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project()["version"])
