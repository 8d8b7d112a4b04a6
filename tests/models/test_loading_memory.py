"""Loading holds the weights in memory once: they are memory-mapped, or converted one batch at a time."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tiny
from paths import ROOT

LOAD = """
import sys, types
from pathlib import Path
root, path, dtype = sys.argv[1:]
pack = types.ModuleType("llm4gen"); pack.__path__ = [root]; sys.modules["llm4gen"] = pack
import torch
from llm4gen.models.llm import open_llm

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

# What these kernels allocate for themselves at their first use is not part of the growth.
torch.aminmax(torch.zeros(1 << 24)), torch.zeros(1 << 24).bfloat16()
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = peak()
encoder = open_llm(Path(path)).load(dtype=getattr(torch, dtype, None))
print(peak() - before)
"""


@pytest.fixture(scope="module")
def files(module_path):
    """A folder with one encoder of 0.6 GB, as a safetensors file and as a pickle."""
    tensors = tiny.rankgen_tensors(
        tiny.t5_encoder(d_model=2048, d_ff=5120, d_kv=64, num_heads=32, num_layers=2)
    )
    save_file(tensors, module_path / "t5.safetensors")
    torch.save(tensors, module_path / "t5.bin")
    return module_path


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_loading_needs_at_most_a_fifth_more_memory_than_the_file_has_bytes(suffix, dtype, files):
    path = files / f"t5.{suffix}"
    command = [sys.executable, "-c", LOAD, str(ROOT), str(path), dtype]
    growth = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    size = path.stat().st_size
    assert 0.4 * size < growth <= 1.2 * size
