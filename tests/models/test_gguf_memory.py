"""Encoding with a `.gguf` file needs the memory of the quantised file and of one dequantised matrix."""

import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from gguf_files import Kind, write_t5
from paths import ROOT

ENCODE = """
import sys, types
from pathlib import Path
root, path = sys.argv[1:]
pack = types.ModuleType("llm4gen"); pack.__path__ = [root]; sys.modules["llm4gen"] = pack
import torch
from llm4gen.models.encoders.rows import distinct_rows
from llm4gen.models.llm import open_llm

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

def warm_up(dtype):
    layer = torch.nn.Linear(512, 512, bias=False, dtype=dtype)
    layer(torch.zeros(64, 512).to_mkldnn() if dtype is torch.float32 else torch.zeros(64, 512, dtype=dtype))

import gguf
# What torch allocates for itself at the first use of these layers is not part of the growth.
warm_up(torch.float32), warm_up(torch.bfloat16), torch.nn.Embedding(8, 8, device="meta")
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = peak()
file = open_llm(Path(path))
states = file.load(2)(torch.arange(30), distinct_rows(30, 256), compute_dtype=torch.bfloat16)
assert states.isfinite().all()
print(peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
def test_loading_and_encoding_hold_the_quantised_file_and_one_matrix(tmp_path):
    """The bound is half the size of the weights in bf16. The quantised file has 0.28 of that size."""
    large = tiny.t5_encoder(d_model=2048, d_ff=5120, d_kv=64, num_heads=32, num_layers=2)
    size = 2 * sum(weight.numel() for weight in large.parameters())
    write_t5(tmp_path / "t5.gguf", large, Kind.Q4_0)
    command = [sys.executable, "-c", ENCODE, str(ROOT), str(tmp_path / "t5.gguf")]
    growth = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0.1 * size < growth < 0.5 * size
