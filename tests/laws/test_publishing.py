"""What the Comfy registry would publish: small, whole, and the same pack in a real server."""

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

MOST_BYTES = 5_000_000
DEVELOPERS = (
    ".ci/",
    ".github/",
    "tests/",
    "tools/bench/",
    "tools/dev.py",
    "tools/pictures/",
    "tools/sandbox/",
)
COMMANDS = ("convert.py", "doctor.py", "fetch_weights.py")  # what users run, as far as it is there
TIMEOUT = 60


def git(*arguments):
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
    ).stdout.splitlines()


@pytest.fixture(scope="module")
def files():
    """The files of the package, as the registry's tool chooses them: git's, less those that .comfyignore names."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("NO GIT: what is published is not known without it.")
    listed = ("-c", "core.quotePath=off", "ls-files", "--cached")
    ignored = git(*listed, "--ignored", f"--exclude-from={ROOT / '.comfyignore'}")
    return sorted(set(git(*listed)) - set(ignored))


@pytest.fixture(scope="module")
def package(files, tmp_path_factory):
    package = tmp_path_factory.mktemp("package")
    for name in files:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, package / name)
    return package


@pytest.fixture(scope="module")
def published(host, package, tmp_path_factory):
    """A server with the package in it and nothing else of ours."""
    with Server(host, tmp_path_factory.mktemp("published"), [make_standins(host)], pack=package) as server:
        yield server


def needed(names):
    """Tools and all tools that they import, by their paths in tools/."""
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
    """Our nodes, and of each the inputs in their order and the outputs."""
    ours = {name: node for name, node in info.items() if node["python_module"] == "custom_nodes.llm4gen"}
    return {name: (node["input_order"], node["output"]) for name, node in ours.items()}


def test_it_is_small_and_holds_nothing_of_developers(files, package):
    assert sum((package / name).stat().st_size for name in files) < MOST_BYTES
    assert [name for name in files if name.startswith(DEVELOPERS)] == []


def test_of_the_tools_it_holds_those_that_users_run_what_these_import_and_their_manual(files):
    held = {name.removeprefix("tools/") for name in files if name.startswith("tools/")}
    assert held == needed(COMMANDS) | {"README.md"}


@pytest.mark.parametrize("command", [name for name in COMMANDS if (TOOLS / name).is_file()])
def test_its_commands_start_where_it_is_installed(command, published):
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


def test_it_offers_the_nodes_of_the_repository(published, object_info):
    found = nodes(published.get("/object_info"))
    assert found
    assert found == nodes(object_info)


def test_it_serves_help_and_templates(published):
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


def test_its_example_makes_a_picture(published, workflow):
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


def test_the_registry_is_told_the_requirements_that_are_installed():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert project()["dependencies"] == [line for line in lines if line and not line.startswith("#")]
    assert "dynamic" not in project()


def test_the_version_is_the_changelogs_newest():
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert project()["version"] == heading[1]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project()["version"])
