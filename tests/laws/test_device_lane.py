"""The tests that need a GPU pass on a pretend one (tests/support/pretend_card.py), so that every run has them."""

import os
import re
import subprocess
import sys

import pytest
import torch

from host.comfyui import PACKAGES
from paths import ROOT

PRETEND = ROOT / "tests" / "support" / "pretend_everywhere"


LANES = {
    "in this process": (["tests/device", "tests/nodes/test_managed.py"], 114),
    # One mode beside the default, Dynamic VRAM, with which it is compared: each starts a server.
    "in a server": (["tests/laws/test_server_modes.py", "-k", "gpu-only"], 1),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, these tests run by themselves")
@pytest.mark.parametrize(("tests", "least"), LANES.values(), ids=LANES)
def test_the_tests_for_a_gpu_pass_on_a_pretend_one(tests, least, host, monkeypatch):
    monkeypatch.setenv(PACKAGES, str(PRETEND), prepend=os.pathsep)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *tests]
    environment = host.environment() | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= least
    assert "NO GPU HERE" not in done.stdout
