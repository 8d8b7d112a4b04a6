"""Unpacking what comes from the package index."""

import io
import tarfile

import pytest
from host import HostError
from install import _unpack

INSIDE = "comfy-1.0/vendor/ComfyUI/"


def archive(path, *members):
    with tarfile.open(path, "w:gz") as tar:
        for name, link in members:
            info = tarfile.TarInfo(name)
            info.size = 0 if link else 4
            if link:
                info.type, info.linkname = tarfile.SYMTYPE, link
            tar.addfile(info, None if link else io.BytesIO(b"text"))
    return path


def test_only_comfyui_is_unpacked(tmp_path):
    members = [(INSIDE + "main.py", None), (INSIDE + "comfy/ops.py", None), ("comfy-1.0/setup.py", None)]
    _unpack(archive(tmp_path / "a.tar.gz", *members), tmp_path / "out")
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.glob("out/**/*.py"))
    assert found == ["comfy/ops.py", "main.py"]
    assert (tmp_path / "out" / "main.py").read_text(encoding="utf-8") == "text"


@pytest.mark.parametrize(
    "member",
    [(INSIDE + "../../../escaped", None), (INSIDE + "link", "/etc"), (INSIDE + "C:\\escaped", None)],
    ids=["climbing", "link", "drive"],
)
def test_what_would_leave_the_folder_is_refused(member, tmp_path):
    with pytest.raises(HostError, match="no plain file inside its folder"):
        _unpack(archive(tmp_path / "a.tar.gz", member), tmp_path / "inner" / "out")
    assert not list(tmp_path.rglob("*escaped*"))
