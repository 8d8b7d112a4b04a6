"""The Python packages in the file: wheels for Linux, and stand-ins for what ComfyUI imports but never uses here."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from host.comfyui import Installation
from sandbox.install import CONSTRAINTS
from sandbox.pinned import NETWORK_HINT, call, step

PYTHON = "3.12"
GLIBC = (39, 35, 34, 31, 28, 27, 24, 17)  # minor versions of glibc 2, which wheels are tagged with
# What a machine with torch, torchvision, torchaudio, transformers and scipy may lack. Their versions are those of
# set-up. A package and all that it requires stand in one line.
LINES = (
    ("comfy-aimdo", "comfy-kitchen", "torchsde", "trampoline", "einops", "psutil", "simpleeval", "blake3"),
    ("aiohttp", "aiohappyeyeballs", "aiosignal", "attrs", "frozenlist", "multidict", "propcache", "yarl"),
    ("requests", "charset-normalizer", "certifi", "idna", "urllib3"),
    ("alembic", "Mako", "MarkupSafe", "SQLAlchemy", "greenlet"),
    (
        "pydantic",
        "pydantic_core",
        "pydantic-settings",
        "annotated-types",
        "python-dotenv",
        "typing-inspection",
    ),
    ("gguf", "diffusers", "importlib_metadata", "zipp", "accelerate"),
    ("pytest", "pytest-xdist", "execnet", "iniconfig", "pluggy", "Pygments"),
)
WHEELS = tuple(name for line in LINES for name in line)
# Kernels that SD1.5 and this pack never call (170 MB), and the half of a library that is for another maker's cards.
LEFT_OUT = ("comfy_kitchen/backends/*.so", "comfy_aimdo/aimdo_rocm.*")
# Distribution → its module and the folder in it that ComfyUI serves. ComfyUI wants these distributions to be
# installed; nobody opens its page here.
PAGES = {
    "comfyui-frontend-package": ("comfyui_frontend_package", "static"),
    "comfyui-workflow-templates": ("comfyui_workflow_templates", "templates"),
    "comfyui-embedded-docs": ("comfyui_embedded_docs", "docs"),
}
STAND_IN = '''"""A stand-in without pages."""


def get_asset_path(*names):
    raise KeyError(names)


def iter_templates():
    return iter(())
'''


def add_wheels(host: Installation, target: Path, names: Sequence[str]) -> None:
    """Unpacks packages into a folder that can stand in PYTHONPATH. Raises: HostError if one cannot be downloaded."""
    # The platforms that pip accepts are exact, so each version of glibc is listed.
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC] + [
        "manylinux2014_x86_64",
        "manylinux1_x86_64",
    ]
    with tempfile.TemporaryDirectory() as folder:
        command = [host.python, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", PYTHON, "--implementation", "cp", "-c", CONSTRAINTS, "-d", folder]
        command += [option for platform in platforms for option in ("--platform", platform)]
        with step(f"{len(names)} packages", "bundle"):
            call([*command, *names], Path(folder), NETWORK_HINT)
        for wheel in sorted(Path(folder).glob("*.whl")):
            unpack(wheel, target)


def add_stand_ins(target: Path) -> None:
    for distribution, (module, pages) in PAGES.items():
        write_module(target, distribution, module, STAND_IN)
        (target / module / pages).mkdir()
        (target / module / pages / "index.html").write_text("<html></html>", encoding="utf-8")
    write_module(target, "av", "av", (Path(__file__).parent / "no_video.py").read_text(encoding="utf-8"))


def unpack(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        wanted = [name for name in file.namelist() if not any(fnmatch(name, pattern) for pattern in LEFT_OUT)]
        file.extractall(target, wanted)


def write_module(target: Path, distribution: str, module: str, text: str) -> None:
    """Writes a module, and the metadata by which Python knows the distribution's version."""
    (target / module).mkdir(parents=True)
    (target / module / "__init__.py").write_text(text, encoding="utf-8")
    version = version_of(distribution)
    about = target / f"{distribution.replace('-', '_')}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n", encoding="utf-8"
    )


def version_of(distribution: str) -> str:
    """The version that set-up installs."""
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition(";")[0].strip().partition("==")
        if name.replace("_", "-").lower() == distribution:
            return version
    raise AssertionError(f"{CONSTRAINTS} does not name {distribution}")
