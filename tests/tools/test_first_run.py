"""From an empty models folder to a picture, word for word as the README and the printed instructions say.

Real files, small and random: the encoder has T5's whole vocabulary, the adapter its width. Only the picture is made
smaller than the workflow wants it, in fewer steps; no file is chosen.
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
# What the README has the user run, in the folder that the pack was cloned to.
ROW = re.compile(rf"^ *\| in a virtual environment \| `({VENV} [^`]+)`", re.MULTILINE)
# What is printed for one file that is to be brought by hand.
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
    """In the fresh ComfyUI, with the whole repository in its custom_nodes."""
    clone = tmp_path_factory.mktemp("clone") / "LLM4GEN"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests"))
    with Server(Installation(fetching.comfyui, host.python), fetching.comfyui, pack=clone) as server:
        yield server


@pytest.fixture
def models(fetching, host):
    """Empty, but for the checkpoint that the user has."""
    shutil.rmtree(fetching.models, ignore_errors=True)
    (checkpoint,) = (name for name in model_files(read_workflow(TEXT_TO_IMAGE)) if "checkpoints/" in name)
    (fetching.models / checkpoint).parent.mkdir(parents=True)
    (fetching.models / checkpoint).symlink_to(make_standins(host) / "checkpoints" / CHECKPOINT)
    return fetching.models


@pytest.fixture
def follow_the_readme(fetching, server):
    pack = server.base / "custom_nodes" / "llm4gen"
    (command,) = ROW.findall((pack / "README.md").read_text(encoding="utf-8"))
    words = [sys.executable if word == VENV else word for word in shlex.split(command)]
    return lambda **environment: fetching.run(command=words, cwd=pack, **environment)


def make_the_picture(server):
    """The example as it is, with the files that it names."""
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
def test_the_readmes_command_leads_to_a_picture(follow_the_readme, server):
    done = follow_the_readme()
    assert done.returncode == 0, done.stderr
    make_the_picture(server)


@pytest.mark.usefixtures("models")
def test_without_a_network_what_it_says_leads_to_a_picture(follow_the_readme, fetching, hub, server):
    with Hub() as closed:
        pass
    sent = len(hub.sent)
    done = follow_the_readme(HF_ENDPOINT=closed.url)
    assert done.returncode != 0 and "cannot be reached" in done.stderr
    for told in bring_by_hand(done.stdout, fetching, hub):
        if told["command"]:
            subprocess.run(shlex.split(told["command"]), check=True, capture_output=True, timeout=60)
    make_the_picture(server)
    assert len(hub.sent) == sent, "it was not done by hand"


def bring_by_hand(instructions, fetching, hub):
    """Puts each file where it says, as somebody with a browser does; what it says of each."""
    found = list(BY_HAND.finditer(instructions))
    for told in found:
        files = hub.repositories[told["repository"]].files
        if told["folder"]:
            assert told["file"].startswith("the .safetensors in it")
            (name,) = (name for name in files if re.fullmatch(rf"{told['folder']}[^/]+\.safetensors", name))
        else:
            name = told["file"]
        target = fetching.base / told["target"]
        if told["make"]:
            target.parent.mkdir(parents=True)
        target.write_bytes(files[name])
    assert len(found) == len([line for line in instructions.splitlines() if line.startswith("  to ")]) == 3
    return found
