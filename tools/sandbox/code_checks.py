"""Runs ruff's linter and formatter on the repository, and mypy on `models/` and `nodes/`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from host.comfyui import HOST_DIR, ROOT, Installation

CHECKED = ("models", "nodes")
TYPES_DIR = HOST_DIR / "types"


def check_code(installation: Installation) -> bool:
    """Runs all checks and prints what they find. Returns whether they found nothing."""
    ruff = [str(installation.python), "-m", "ruff"]
    results = [
        run("ruff check", [*ruff, "check", "."], ROOT, installation),
        run("ruff format", [*ruff, "format", "--check", "."], ROOT, installation),
        check_types(installation),
    ]
    return all(results)


def check_types(installation: Installation) -> bool:
    """Runs mypy on a copy in a folder named `llm4gen`: the clone's own folder may not have a package's name."""
    package = TYPES_DIR / "llm4gen"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for folder in CHECKED:
        shutil.copytree(ROOT / folder, package / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [str(installation.python), "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(TYPES_DIR / "cache"), "--no-error-summary"]
    command += [argument for folder in CHECKED for argument in ("-p", f"llm4gen.{folder}")]
    return run("mypy", command, TYPES_DIR, installation)


def run(name: str, command: list[str], folder: Path, installation: Installation) -> bool:
    """Runs a check in a folder, and shows its output only if it fails. Returns whether it passed."""
    print(f"test: {name} ...", end="", flush=True)
    done = subprocess.run(
        command,
        cwd=folder,
        env=installation.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    # mypy's paths are made relative to the repository, so that an editor can open them.
    print(" clean" if done.returncode == 0 else f"\n{done.stdout.replace('llm4gen/', '')}", flush=True)
    return done.returncode == 0
