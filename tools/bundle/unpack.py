"""The start of the file that `dev.py bundle` writes: unpacks what is in it and runs `on_device.py`, whose options it
takes. Standard library only.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ARCHIVE = "files.tar.xz"
WANTED = (3, 12)  # what the packages in the file were compiled for
STOP_SECONDS = 30  # given to what was started, so that it can end its own processes and write its results


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path())
    options, rest = parser.parse_known_args()
    if sys.version_info[:2] != WANTED or sys.platform != "linux":
        found = f"Python {sys.version_info[0]}.{sys.version_info[1]} on {sys.platform}"
        sys.exit(f"error: this is {found}; the packages in this file are for Python 3.12 on Linux.")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="llm4gen-gpu-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with (
            zipfile.ZipFile(sys.argv[0]) as file,
            file.open(ARCHIVE) as archive,
            tarfile.open(fileobj=archive, mode="r|xz") as tar,
        ):
            tar.extractall(folder, filter="data")
        places = ["--folder", str(folder), "--out", str(options.out.resolve())]
        command = [sys.executable, "-m", "bundle.on_device", *places, *rest]
        process = subprocess.Popen(command, cwd=folder / "llm4gen" / "tools")
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(STOP_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
