"""`dev.py test` runs all tests on the newest ComfyUI, and those marked `floor` on the oldest too. Both must pass."""

import subprocess
import sys
from pathlib import Path

import pytest

import dev
from host.comfyui import COMFYUI_DIR, PACKAGES, Installation
from paths import ROOT
from sandbox.install import OLDEST

# What a child of an installation can import of a folder's packages.
IMPORT = "import importlib.util, sys; sys.exit(not importlib.util.find_spec('one_more'))"
NEWEST_FOLDER, OLDEST_FOLDER = COMFYUI_DIR.name, OLDEST.folder.name
SMALL = """
import os, pathlib, pytest

def run_under():
    folder = pathlib.Path(os.environ["LLM4GEN_COMFYUI"]).name
    with open({ran!r}, "a") as ran:
        print(folder, file=ran)
    assert folder not in {failing!r}

{mark}
def test_small():
    run_under()
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command on one small test. Returns its exit code and the ComfyUI folders that the test ran on."""
    ran = tmp_path / "ran"
    monkeypatch.setattr(
        dev, "setup", lambda *also, **options: Installation(COMFYUI_DIR, Path(sys.executable))
    )
    monkeypatch.setattr(dev, "fetch_smollm2", lambda python: None)
    monkeypatch.setattr(dev, "end_cleanly_when_terminated", lambda: None)  # pytest handles signals itself

    def run(*arguments, failing=(), mark="@pytest.mark.floor"):
        small = tmp_path / "test_small.py"
        small.write_text(SMALL.format(ran=str(ran), failing=failing, mark=mark), encoding="utf-8")
        config = ["-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
        code = dev.main(["test", *arguments, *config, str(small)])
        return code, ran.read_text(encoding="utf-8").split() if ran.exists() else []

    return run


@pytest.mark.parametrize(
    ("failing", "code"),
    [((), 0), ((OLDEST_FOLDER,), 1), ((NEWEST_FOLDER,), 1)],
    ids=["none", "oldest", "newest"],
)
def test_a_marked_test_must_pass_on_both_comfyuis(failing, code, run):
    assert run(failing=failing) == (code, [NEWEST_FOLDER, OLDEST_FOLDER])


def test_an_unmarked_test_runs_only_on_the_newest_comfyui(run):
    assert run(mark="", failing=(OLDEST_FOLDER,)) == (0, [NEWEST_FOLDER])


def test_without_comfyui_a_test_that_needs_it_is_left_out(run):
    assert run("--no-host", mark="") == (0, [NEWEST_FOLDER])
    assert run("--no-host", mark="@pytest.mark.host") == (5, [NEWEST_FOLDER])


def test_arguments_that_select_no_tests_fail_and_run_nothing(run):
    assert run("-k", "another") == (5, [])


def test_on_a_given_comfyui_tests_run_once_and_the_output_says_so(run, tmp_path, capfd):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "main.py").touch()
    given = ["--comfyui", str(tmp_path / "given"), "--python", sys.executable]
    assert run(*given) == (0, ["given"])
    assert f"not on {OLDEST.version}" in capfd.readouterr().out


@pytest.mark.parametrize(("variable", "code"), [(PACKAGES, 0), ("PYTHONPATH", 1)])
def test_children_import_packages_of_folders_that_are_named_for_them_and_no_others(
    variable, code, tmp_path, monkeypatch
):
    (tmp_path / "one_more.py").touch()
    monkeypatch.setenv(variable, str(tmp_path))
    environment = Installation(COMFYUI_DIR, Path(sys.executable)).environment()
    done = subprocess.run([sys.executable, "-c", IMPORT], env=environment, cwd=ROOT, check=False)
    assert done.returncode == code
