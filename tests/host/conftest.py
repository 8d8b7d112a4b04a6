"""The real server for the tests that talk to one: started once, with the stand-ins and a folder for bad files."""

import os
import sys
from pathlib import Path

import pytest

from paths import COMFYUI, TOOLS

# In front, once: `host`, `client` and the rest are imported from there by name.
sys.path.insert(0, str(TOOLS))

from client import Client
from comfy_server import Server
from host import Host
from model_choice import make_standins
from picture import find_browser, quiet_front_end


@pytest.fixture(scope="session")
def host():
    """The ComfyUI that the tests were told to use, run by the Python that runs them."""
    host = Host(COMFYUI, Path(sys.executable))
    if not host.main.is_file():
        pytest.fail(f"no ComfyUI in {COMFYUI}: run the tests with `python tools/dev.py test`.", pytrace=False)
    return host


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A models directory of the server's, empty at first, for files that a test makes."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def server(host, models, tmp_path_factory):
    base = tmp_path_factory.mktemp("server")
    quiet_front_end(base)
    with Server(host, base, [make_standins(host), models]) as server:
        yield server


@pytest.fixture(scope="session")
def client(server):
    return Client(server.url)


@pytest.fixture(scope="session")
def empty_server(host, tmp_path_factory):
    """A server without a single model."""
    with Server(host, tmp_path_factory.mktemp("empty-server")) as server:
        yield server


@pytest.fixture(scope="session")
def empty_client(empty_server):
    return Client(empty_server.url)


@pytest.fixture(scope="session")
def browser():
    """The path of an installed Chromium."""
    found = find_browser()
    if found is None:
        missing = pytest.fail if os.environ.get("LLM4GEN_NEED_BROWSER") else pytest.skip
        missing("NO BROWSER: install Chromium to run the front-end tests.")
    return found
