"""A conversion that is killed or stopped leaves no partial file under the target's name."""

import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file

import convert
import tiny
from files.safetensors_writer import UNFINISHED, atomic_file
from llm4gen.models.errors import UnreadableFile
from llm4gen.models.files.weights import open_weights
from paths import TOOLS

KILLS = 20
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork and no such signals")
# Reads targets from stdin and forks a process for each conversion, because starting Python anew takes seconds.
FORKS = """
import os, sys
tools, source = sys.argv[1:]
sys.path.insert(0, tools)
import convert
from pathlib import Path
convert.make_importable()
from llm4gen.models.conversion.plans import plan_conversion
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
# Converts as the command does, but says when one chunk has been written, and waits there for a line.
HOLDS = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import convert
from files import safetensors_writer as writer
write_tensors = writer.write_tensors
def held(write, outline, chunks):
    def one_by_one():
        for number, chunk in enumerate(chunks):
            if number == 1:
                print("held", flush=True)
                sys.stdin.readline()
            yield chunk
    write_tensors(write, outline, one_by_one())
writer.write_tensors = held
sys.exit(convert.main(sys.argv[1:]))
"""


def unfinished(target):
    return [path for path in target.parent.iterdir() if path.suffix == UNFINISHED]


def wait_for(condition):
    """Waits until a condition is true. Fails after two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def wait_for_bytes(target, earlier, size):
    """Waits until an unfinished file that is not in `earlier` has `size` bytes, or until the target exists."""

    def reached():
        with suppress(FileNotFoundError):  # it was renamed to the target in the meantime
            return any(path.stat().st_size >= size for path in unfinished(target) if path not in earlier)

    wait_for(lambda: target.exists() or reached())


@pytest.fixture(scope="module")
def source(module_path):
    """An encoder of 0.1 GB, so that writing it takes a while."""
    path = module_path / "t5.safetensors"
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
    """A function that sends a line to a process that runs `FORKS`, and returns the line that it answers."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKS, str(TOOLS), str(source)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        bufsize=1,
    ) as process:

        def send(line):
            print(line, file=process.stdin)
            return process.stdout.readline().strip()

        yield send
        process.stdin.close()


@needs_signals
def test_a_kill_at_any_moment_leaves_either_the_whole_file_or_no_file(source, forks, tmp_path):
    target, random_numbers, interrupted = tmp_path / "new.safetensors", random.Random(0), 0
    began = time.monotonic()
    assert forks(target) == "started" and forks("wait") == "ended"
    ended = time.monotonic()
    assert same_model(source, target)
    whole = target.read_bytes()
    for index in range(KILLS):
        target.unlink(missing_ok=True)
        earlier = unfinished(target)
        assert forks(target) == "started"
        if index % 2:  # every second run is killed while it writes, the others at any time
            wait_for_bytes(target, earlier, random_numbers.randrange(len(whole)))
        else:
            time.sleep(random_numbers.uniform(0, min(ended - began, 2)))
        assert forks("kill") == "ended"
        interrupted += bool(unfinished(target))
        assert len(unfinished(target)) <= 1, "each run removes the unfinished file of the run before"
        assert not target.exists() or target.read_bytes() == whole
    assert interrupted >= KILLS // 4
    target.unlink(missing_ok=True)
    assert forks(target) == "started" and forks("wait") == "ended"
    assert list(tmp_path.iterdir()) == [target] and target.read_bytes() == whole


@needs_signals
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_leaves_no_file(number, code, source, tmp_path):
    """The signal comes while the weights are written: a few moments later, it would come too late to be heeded."""
    target = tmp_path / "new.safetensors"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDS, TOOLS, source, target], **pipes) as process:
        assert "held\n" in iter(process.stdout.readline, "")
        assert unfinished(target)
        process.send_signal(number)
        assert "Traceback" not in process.communicate("go on\n")[1]
    assert process.returncode == code
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_file_is_not_a_model(small, tmp_path):
    folder = tmp_path / "t5"
    folder.mkdir()
    with atomic_file(folder / "model.safetensors", 0) as file:
        file.write(small.read_bytes())
        (partial,) = unfinished(folder / "model.safetensors")
        with pytest.raises(UnreadableFile, match="The folder t5 holds no weights"):
            open_weights(folder)
        with pytest.raises(UnreadableFile, match="is not a weight file"):
            open_weights(partial)


def test_only_unfinished_files_of_the_same_target_are_removed(small, tmp_path):
    others = [
        "new.safetensors.part",
        "other.safetensors.0123abcd.unfinished",
        "new.safetensors.mine.unfinished",
    ]
    for name in (*others, "new.safetensors.0123abcd.unfinished"):
        (tmp_path / name).write_bytes(b"x")
    assert convert.main([str(small), str(tmp_path / "new.safetensors")]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {*others, "new.safetensors", small.name}


def test_two_runs_do_not_write_the_same_target(small, tmp_path, capsys):
    target = tmp_path / "new.safetensors"
    with atomic_file(target, 0) as file:
        assert convert.main([str(small), str(target)]) == 1
        assert "Another run" in capsys.readouterr().err
        file.write(b"mine")
    assert target.read_bytes() == b"mine"
