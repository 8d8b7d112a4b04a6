"""The README's command, or the instructions that it prints, lead from an empty models folder to a picture.

The downloaded files are real but small, with random weights. The encoder has T5's full vocabulary, and the adapter fits
its width. The workflow is changed only in the size of the picture and the number of steps: the files it names are used.
"""

import re
import shlex
import shutil
import subprocess
import sys

import pytest

from fetching import Fetching
from host.comfyui import Installation
from hub_server import Hub
from paths import ROOT
from sandbox.client import Client, image_paths
from sandbox.demo import check_picture
from sandbox.model_choice import make_standins
from sandbox.server import Server
from sandbox.standins import CHECKPOINT
from sandbox.workflow import TEXT_TO_IMAGE, model_files, read_workflow, to_prompt

VENV = "path/to/venv/bin/python"
# The README's row with the command that the user runs in the folder that the pack was cloned to.
ROW = re.compile(rf"^ *\| in a virtual environment \| `({VENV} [^`]+)`", re.MULTILINE)
# The printed instructions for one file that is to be downloaded by hand.
BY_HAND = re.compile(
    r"^\w+:\n  page +https://huggingface\.co/(?P<repository>[^/\n]+/[^/\n]+)/tree/main/?(?P<folder>.*)\n"
    r"  file +(?P<file>.*) \(.*\)\n"
    r"  to +(?P<target>.*)\n"
    r"(?P<make>  \(make the folder\)\n)?"
    r"(?:  then +run this, .*\n +(?P<command>.*)\n?)?",
    re.MULTILINE,
)
SIZE, STEPS = (64, 64), 2


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def fetching(hub, tmp_path_factory):
    fetching = Fetching(tmp_path_factory.mktemp("first-run"), hub)
    fetching.publish_models(clip=768)
    return fetching


@pytest.fixture(scope="module")
def server(host, fetching, tmp_path_factory):
    """A server of the new ComfyUI, with the whole repository in its custom_nodes."""
    clone = tmp_path_factory.mktemp("clone") / "LLM4GEN"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests"))
    with Server(Installation(fetching.comfyui, host.python), fetching.comfyui, pack=clone) as server:
        yield server


@pytest.fixture
def models(fetching, host):
    """The models folder, which holds only the checkpoint that the user already has."""
    shutil.rmtree(fetching.models, ignore_errors=True)
    (checkpoint,) = (name for name in model_files(read_workflow(TEXT_TO_IMAGE)) if "checkpoints/" in name)
    (fetching.models / checkpoint).parent.mkdir(parents=True)
    (fetching.models / checkpoint).symlink_to(make_standins(host) / "checkpoints" / CHECKPOINT)
    return fetching.models


@pytest.fixture
def run_readme_command(fetching, server):
    """A function that runs the README's command in the cloned folder."""
    pack = server.base / "custom_nodes" / "llm4gen"
    (command,) = ROW.findall((pack / "README.md").read_text(encoding="utf-8"))
    arguments = [sys.executable if part == VENV else part for part in shlex.split(command)]
    return lambda **environment: fetching.run(command=arguments, cwd=pack, **environment)


def make_picture(server):
    """Runs the example workflow with the files that it names, and checks its picture."""
    shutil.rmtree(server.output, ignore_errors=True)
    client = Client(server.url)
    prompt = to_prompt(read_workflow(TEXT_TO_IMAGE), client.object_info())
    for entry in prompt.values():
        if entry["class_type"] == "EmptyLatentImage":
            entry["inputs"].update(width=SIZE[0], height=SIZE[1])
        if entry["class_type"] == "KSampler":
            entry["inputs"]["steps"] = STEPS
    (picture,) = image_paths(client.run(prompt), server.output)
    check_picture(picture, SIZE)


@pytest.mark.usefixtures("models")
def test_after_the_readmes_command_the_example_workflow_makes_a_picture(run_readme_command, server):
    done = run_readme_command()
    assert done.returncode == 0, done.stderr
    make_picture(server)


@pytest.mark.usefixtures("models")
def test_without_a_network_the_printed_instructions_lead_to_a_picture(
    run_readme_command, fetching, hub, server
):
    with Hub() as closed:
        pass
    sent = len(hub.sent)
    done = run_readme_command(HF_ENDPOINT=closed.url)
    assert done.returncode != 0 and "cannot be reached" in done.stderr
    for item in download_by_hand(done.stdout, fetching, hub):
        if item["command"]:
            subprocess.run(shlex.split(item["command"]), check=True, capture_output=True, timeout=60)
    make_picture(server)
    assert len(hub.sent) == sent, "the hub was used, so the files were not brought by hand"


def download_by_hand(instructions, fetching, hub):
    """Puts each file where the instructions say, as a user with a browser does. Returns each file's instructions."""
    items = list(BY_HAND.finditer(instructions))
    for item in items:
        files = hub.repositories[item["repository"]].files
        if item["folder"]:
            assert item["file"].startswith("the .safetensors in it")
            (name,) = (name for name in files if re.fullmatch(rf"{item['folder']}[^/]+\.safetensors", name))
        else:
            name = item["file"]
        target = fetching.base / item["target"]
        if item["make"]:
            target.parent.mkdir(parents=True)
        target.write_bytes(files[name])
    assert len(items) == len([line for line in instructions.splitlines() if line.startswith("  to ")]) == 3
    return items
