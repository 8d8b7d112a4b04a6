"""A conversion that is killed, stopped, or out of room leaves no half of a file; its memory is bounded."""

import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from llm4gen.models.errors import UnreadableFile
from llm4gen.models.weights import open_weights

from paths import TOOLS

sys.path.insert(0, str(TOOLS))
import convert
from safetensors_writer import UNFINISHED, Outline, in_one_step

KILLS = 20
# Forks a conversion for each target that it is told, so that each costs no start of Python.
FORKS = """
import os, sys
tools, source = sys.argv[1:]
sys.path.insert(0, tools)
import convert
from pathlib import Path
convert.make_importable()
from llm4gen.models.conversion import plan_conversion
plan_conversion(Path(source))
while target := sys.stdin.readline().strip():
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        os._exit(convert.main([source, target, "--dtype", "fp32"]))
    print("started", flush=True)
    if sys.stdin.readline().strip() == "kill":
        os.kill(child, 9)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""
PEAK = """
import sys
tools, source, target = sys.argv[1:]
sys.path.insert(0, tools)
import convert
from pathlib import Path
import torch
from torch import nn
convert.make_importable()
from llm4gen.models.conversion import check_range
from llm4gen.models.t5 import T5Config, T5Encoder
T5Encoder(T5Config(8, 8, 8, 1, 8, 1, 32), device="meta", dtype=torch.float32)  # what torch imports for it
check_range("", torch.zeros(1 << 24), torch.bfloat16), torch.zeros(1 << 24).bfloat16()  # the kernels' own memory

def memory(entry):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(entry)).split()[1]) * 1024

Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
before = memory("VmHWM")
assert convert.main([source, target]) == 0
print(memory("VmHWM") - before)
"""
# A disk that is found full only when it is written to: the first question about it is answered with a lie.
FULL = """
import shutil, sys
from pathlib import Path
tools, source, folder, lie = sys.argv[1:]
sys.path.insert(0, tools)
import convert
ask, asked = shutil.disk_usage, []
def answer(path):
    asked.append(path)
    return ask(path)._replace(free=1 << 40) if lie == "lie" and len(asked) == 1 else ask(path)
shutil.disk_usage = answer
code = convert.main([source, folder + "/t5.safetensors"])
assert list(Path(folder).iterdir()) == [], "nothing is left on the disk"
sys.exit(code)
"""


def unfinished(target):
    return [path for path in target.parent.iterdir() if path.suffix == UNFINISHED]


def wait_for(happened, process=None):
    """Waits for what another process does; fails if that ends before."""
    patience = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < patience and (process is None or process.poll() is None)
        time.sleep(0.002)


def wait_for_bytes(target, left, size):
    """Waits until a new unfinished file has so many, or the whole is there."""

    def reached():
        with suppress(FileNotFoundError):  # it has its name now
            return any(path.stat().st_size >= size for path in unfinished(target) if path not in left)

    wait_for(lambda: target.exists() or reached())


def command(*arguments):
    return [sys.executable, str(TOOLS / "convert.py"), *map(str, arguments)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An encoder of 0.1 GB."""
    path = tmp_path_factory.mktemp("source") / "t5.safetensors"
    sizes = {"d_model": 768, "d_ff": 2048, "d_kv": 64, "num_heads": 12, "num_layers": 2}
    save_file(tiny.rankgen_tensors(tiny.t5_encoder(**sizes)), path)
    return path


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.safetensors"
    save_file(tiny.rankgen_tensors(tiny.t5_encoder()), path)
    return path


def same_model(source, target):
    old, new = load_file(source), load_file(target)
    return len(new) == 21 and all(torch.equal(tensor, old[name]) for name, tensor in new.items())


@pytest.fixture
def forks(source):
    """Talks to `FORKS`: one word or name to it, one word back."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKS, str(TOOLS), str(source)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        bufsize=1,
    ) as process:

        def tell(word):
            print(word, file=process.stdin)
            return process.stdout.readline().strip()

        yield tell
        process.stdin.close()


def test_a_kill_at_any_moment_leaves_the_whole_file_or_none(source, forks, tmp_path):
    target, dice, landed = tmp_path / "new.safetensors", random.Random(0), 0
    began = time.monotonic()
    assert forks(target) == "started" and forks("wait") == "ended"
    ended = time.monotonic()
    assert same_model(source, target)
    whole = target.read_bytes()
    for index in range(KILLS):
        target.unlink(missing_ok=True)
        left = unfinished(target)
        assert forks(target) == "started"
        if index % 2:  # half of the kills surely fall into the writing, the others anywhere
            wait_for_bytes(target, left, dice.randrange(len(whole)))
        else:
            time.sleep(dice.uniform(0, min(ended - began, 2)))
        assert forks("kill") == "ended"
        landed += bool(unfinished(target))
        assert len(unfinished(target)) <= 1, "each run removes what the one before it left"
        assert not target.exists() or target.read_bytes() == whole
    assert landed >= KILLS // 4
    target.unlink(missing_ok=True)
    assert forks(target) == "started" and forks("wait") == "ended"
    assert list(tmp_path.iterdir()) == [target] and target.read_bytes() == whole


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_tidies_up(number, code, source, tmp_path):
    target = tmp_path / "new.safetensors"
    with subprocess.Popen(command(source, target), stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: unfinished(target), process)
        process.send_signal(number)
        assert "Traceback" not in process.communicate()[1]
    assert process.returncode == code
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_file_is_taken_for_no_model(small, tmp_path):
    folder = tmp_path / "t5"
    folder.mkdir()
    with in_one_step(folder / "model.safetensors", 0) as file:
        file.write(small.read_bytes())
        (left,) = unfinished(folder / "model.safetensors")
        with pytest.raises(UnreadableFile, match="holds 0 weights files"):
            open_weights(folder)
        with pytest.raises(UnreadableFile, match="no weights file"):
            open_weights(left)


def test_only_what_killed_runs_left_of_the_same_target_is_removed(small, tmp_path):
    kept = [
        "new.safetensors.part",
        "other.safetensors.0123abcd.unfinished",
        "new.safetensors.mine.unfinished",
    ]
    for name in (*kept, "new.safetensors.0123abcd.unfinished"):
        (tmp_path / name).write_bytes(b"x")
    assert convert.main([str(small), str(tmp_path / "new.safetensors")]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "new.safetensors", small.name}


def test_two_runs_do_not_write_the_same_target(small, tmp_path, capsys):
    target = tmp_path / "new.safetensors"
    with in_one_step(target, 0) as file:
        assert convert.main([str(small), str(target)]) == 1
        assert "another run" in capsys.readouterr().err
        file.write(b"mine")
    assert target.read_bytes() == b"mine"


def test_a_disk_without_room_is_noticed_before_writing(small, tmp_path, monkeypatch, capsys):
    free = shutil.disk_usage(tmp_path)._replace(free=1234)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    assert convert.main([str(small), str(tmp_path / "new.safetensors")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    monkeypatch.undo()
    assert convert.main([str(small), str(tmp_path / "new.safetensors")]) == 0
    size = (tmp_path / "new.safetensors").stat().st_size
    assert f"needs {size:,} bytes" in line and "1,234 are free" in line


@pytest.mark.parametrize("lie", ["lie", "truth"])
def test_a_disk_that_is_full_ends_in_one_line(lie, small, tmp_path):
    """On a real disk of 1 MiB; half of the runs believe at first that it has room."""
    inside = f'mount -t tmpfs -o size=1m none {tmp_path} && exec "$@"'
    unshared = ["unshare", "-rm", "sh", "-c", inside, "sh"]
    elsewhere = small.rename(small.parent.parent / f"{lie}.safetensors")
    if shutil.which("unshare") is None or subprocess.run([*unshared, "true"], check=False).returncode:
        pytest.skip("no disk can be mounted here")
    full = [sys.executable, "-c", FULL, str(TOOLS), str(elsewhere), str(tmp_path), lie]
    done = subprocess.run([*unshared, *full], capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("error: t5.safetensors needs 2,") and "1,048,576 are free" in line


def test_a_file_that_may_not_grow_ends_in_one_line(small, tmp_path):
    """As on a disk whose files have a largest size, or with a quota."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    run = command(small, tmp_path / "new.safetensors")
    done = subprocess.run(run, capture_output=True, text=True, preexec_fn=limit, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "one file may have fewer" in line
    assert list(tmp_path.iterdir()) == [small]


def save_large(path, rows):
    """An encoder of one layer whose embedding alone has so many rows of 8 KiB; all zeros."""
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
    grown = []
    for rows in (1 << 16, 1 << 17):  # 0.7 and 1.2 GB
        path = save_large(tmp_path / f"t5{suffix}", rows)
        run = [sys.executable, "-c", PEAK, str(TOOLS), str(path), str(tmp_path / f"{rows}.safetensors")]
        done = subprocess.run(run, check=True, capture_output=True, text=True)
        grown.append(int(done.stdout.splitlines()[-1]))
        assert grown[-1] < 0.55e9 < path.stat().st_size
    assert abs(grown[1] - grown[0]) < 0.1e9
