"""A conversion checks the disk space that it needs, and its memory does not grow with the file."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import convert
import tiny
from files.safetensors_writer import Outline
from paths import TOOLS

PEAK = """
import sys
tools, source, target = sys.argv[1:]
sys.path.insert(0, tools)
import convert
from pathlib import Path
import torch
convert.make_importable()
from llm4gen.models.files.values import check_range
from llm4gen.models.encoders.t5 import T5Config, T5Encoder
# What torch imports and its kernels allocate at their first use is not part of the growth.
T5Encoder(T5Config(8, 8, 8, 1, 8, 1, 32), device="meta", dtype=torch.float32)
check_range("", torch.zeros(1 << 24), torch.bfloat16), torch.zeros(1 << 24).bfloat16()

def memory(entry):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(entry)).split()[1]) * 1024

Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = memory("VmHWM")
assert convert.main([source, target]) == 0
print(memory("VmHWM") - before)
"""
# Converts onto a small disk. With "wrong", the first answer about its free space is too large, so that the disk turns
# out to be full only during the writing.
FULL = """
import shutil, sys
from pathlib import Path
tools, source, folder, first_answer = sys.argv[1:]
sys.path.insert(0, tools)
import convert
true_usage, calls = shutil.disk_usage, []
def usage(path):
    calls.append(path)
    return true_usage(path)._replace(free=1 << 40) if first_answer == "wrong" and len(calls) == 1 else true_usage(path)
shutil.disk_usage = usage
code = convert.main([source, folder + "/t5.safetensors"])
assert list(Path(folder).iterdir()) == [], "nothing is left on the disk"
sys.exit(code)
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.safetensors"
    save_file(tiny.rankgen_tensors(tiny.t5_encoder()), path)
    return path


def test_too_little_disk_space_is_reported_before_writing(small, tmp_path, monkeypatch, capsys):
    free = shutil.disk_usage(tmp_path)._replace(free=1234)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    assert convert.main([str(small), str(tmp_path / "new.safetensors")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    monkeypatch.undo()
    assert convert.main([str(small), str(tmp_path / "new.safetensors")]) == 0
    size = (tmp_path / "new.safetensors").stat().st_size
    assert f"needs {size:,} bytes" in line and "1,234 are free" in line


@pytest.mark.parametrize("first_answer", ["wrong", "true"])
def test_a_full_disk_is_reported_in_one_line(first_answer, small, tmp_path):
    """The disk is a real one of 1 MiB. With "wrong", it seems to have enough space at first."""
    inside = f'mount -t tmpfs -o size=1m none {tmp_path} && exec "$@"'
    unshared = ["unshare", "-rm", "sh", "-c", inside, "sh"]
    elsewhere = small.rename(small.parent.parent / f"{first_answer}.safetensors")
    if shutil.which("unshare") is None or subprocess.run([*unshared, "true"], check=False).returncode:
        pytest.skip("no disk can be mounted here")
    full = [sys.executable, "-c", FULL, str(TOOLS), str(elsewhere), str(tmp_path), first_answer]
    done = subprocess.run([*unshared, *full], capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("error: t5.safetensors needs 2,") and "1,048,576 are free" in line


def test_a_limit_on_file_sizes_is_reported_in_one_line(small, tmp_path):
    """Some file systems and quotas have such a limit."""
    resource = pytest.importorskip("resource")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    run = [sys.executable, str(TOOLS / "convert.py"), str(small), str(tmp_path / "new.safetensors")]
    done = subprocess.run(run, capture_output=True, text=True, preexec_fn=limit, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "a single file may not be so large" in line
    assert list(tmp_path.iterdir()) == [small]


def save_large(path, rows):
    """Saves an encoder of one layer whose embedding has `rows` rows of 8 KiB. All its values are zero."""
    width, stem = 2048, "t5_encoder.encoder.block.0.layer"
    shapes = {
        "t5_encoder.shared.weight": (rows, width),
        "t5_encoder.encoder.final_layer_norm.weight": (width,),
        f"{stem}.0.SelfAttention.relative_attention_bias.weight": (32, 32),
        **{f"{stem}.0.SelfAttention.{name}.weight": (width, width) for name in "qkvo"},
        **{f"{stem}.1.DenseReluDense.{name}.weight": (width, width) for name in ("wi_0", "wi_1", "wo")},
        **{f"{stem}.{part}.layer_norm.weight": (width,) for part in (0, 1)},
    }
    if path.suffix == ".bin":
        torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
        return path
    outline = Outline({name: (torch.float32, shape) for name, shape in shapes.items()})
    with path.open("wb") as file:
        file.write(outline.header())
        file.truncate(outline.size())
    return path


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_memory_does_not_grow_with_the_file(suffix, tmp_path):
    growth = []
    for rows in (1 << 15, 1 << 16):  # 0.39 and 0.65 GB
        path = save_large(tmp_path / f"t5{suffix}", rows)
        run = [sys.executable, "-c", PEAK, str(TOOLS), str(path), str(tmp_path / f"{rows}.safetensors")]
        done = subprocess.run(run, check=True, capture_output=True, text=True)
        growth.append(int(done.stdout.splitlines()[-1]))
        assert growth[-1] < 0.35e9 < path.stat().st_size
    assert abs(growth[1] - growth[0]) < 0.12e9
