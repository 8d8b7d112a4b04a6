"""The encoders work with the oldest transformers that ComfyUI allows, too."""

import os
import re
import subprocess
import sys

import pytest

from paths import ROOT

OLDEST = ROOT / ".host" / "oldest"
ENCODER_TESTS = (
    *(f"models/test_{name}.py" for name in ("decoder", "gguf", "llm", "t5")),
    "laws/test_golden.py",
)
RUN = """
import sys, pytest, transformers
assert transformers.__version__ == sys.argv[1], transformers.__version__
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


@pytest.mark.skipif(not OLDEST.is_dir(), reason="NO OLD TRANSFORMERS: run `python tools/dev.py setup`.")
def test_the_tests_of_encoders_pass_with_the_oldest_transformers():
    pins = (ROOT / "tools" / "sandbox" / "requirements-oldest.txt").read_text(encoding="utf-8")
    version = re.search(r"^transformers==(.*)$", pins, re.MULTILINE)[1]
    command = [sys.executable, "-c", RUN, version, *(f"tests/{name}" for name in ENCODER_TESTS)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(OLDEST)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.search(r"\d\d passed", done.stdout)
