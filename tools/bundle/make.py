"""Writes the file: this repository, ComfyUI's code, and the packages that a machine with torch lacks.

It is a zip that Python can run. `unpack.py` is its `__main__.py`; everything else is in one archive inside it.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from bundle.packages import WHEELS, add_stand_ins, add_wheels
from bundle.unpack import ARCHIVE
from host.comfyui import ROOT, HostError, Installation
from sandbox.pinned import step
from sandbox.server import PACK

NAME = "llm4gen-gpu.pyz"
MAX_BYTES = 20_000_000
# Of ComfyUI, named one by one: the folder of an installation that is in use holds weights, pictures and settings too.
COMFYUI_FOLDERS = (
    "alembic_db", "api_server", "app", "comfy", "comfy_api", "comfy_config", "comfy_execution", "comfy_extras",
    "middleware", "utils",
)  # fmt: skip
COMFYUI_FILES = ("*.py", "alembic.ini", "requirements.txt")
# Where ComfyUI looks at its start, although nothing is needed there.
EMPTY_FOLDERS = ("blueprints", "comfy_api_nodes", "custom_nodes", "input", "models")
# Half of ComfyUI's bytes are the tokenizers of models other than SD1.5 and T5.
TOKENIZERS_LEFT_OUT = ("llama_tokenizer", "qwen25_tokenizer", "qwen35_tokenizer", "t5_pile_tokenizer")
# Pictures are for people, and no test that needs a GPU reads the golden outputs or the demo model's weights.
LEFT_OUT = ("__pycache__", "*.pyc", "*.jpg", "*.png", "golden", "weights", *TOKENIZERS_LEFT_OUT)


def make_bundle(host: Installation, target: Path, wheels: Sequence[str] = WHEELS) -> Path:
    """Returns the file.

    target: a folder, or the file's path.
    wheels: the packages that are downloaded for it.

    Raises: HostError if a package cannot be downloaded, or the file becomes too large.
    """
    target = target / NAME if target.is_dir() else target
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(ROOT, folder / "llm4gen", (*PACK, "tools", "tests"))
        copy_comfyui(host.comfyui, folder / "ComfyUI")
        add_stand_ins(folder / "packages")
        if wheels:
            add_wheels(host, folder / "packages", wheels)
        with step("packing", "bundle"):
            made = pack(folder, folder / NAME)
        check_size(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, target)
    return target


def check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise HostError(
            f"The bundle has {size / 1e6:.1f} MB, and {MAX_BYTES / 1e6:.0f} are allowed. Leave out more in "
            "tools/bundle/make.py or packages.py."
        )


def copy(source: Path, target: Path, names: tuple[str, ...]) -> None:
    """Copies the files and folders of these names."""
    for name in names:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        elif (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)


def copy_comfyui(source: Path, target: Path) -> None:
    files = [path.name for pattern in COMFYUI_FILES for path in source.glob(pattern)]
    copy(source, target, (*COMFYUI_FOLDERS, *files))
    for name in EMPTY_FOLDERS:
        (target / name).mkdir()


def pack(folder: Path, path: Path) -> Path:
    """Writes the folder's contents as one file, with nothing in it about who made it, where and when."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    archive = folder / ARCHIVE
    with tarfile.open(archive, "w:xz", preset=3) as tar:
        for part in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
            tar.add(part, part.name, filter=anonymous)
    start = (Path(__file__).parent / "unpack.py").read_text(encoding="utf-8")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(zipfile.ZipInfo("__main__.py"), start)
        file.write(archive, ARCHIVE)
    return path
