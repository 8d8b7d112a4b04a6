"""The benchmarks with tiny models: everything is compared, the results agree, and nothing is left behind."""

import argparse
import contextlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bench import conditioning, encoders, sampling
from bench.files import QUICK
from bench.report import Table
from bench.runner import Figures, Runner, conclude
from host.comfyui import HOST_DIR
from paths import COMFYUI, TOOLS

LIMIT = 1e-4  # relative difference of our fp32 from the published way's
# The kinds of file, and what reads each.
OTHERS = {"fp32 pickle": "torch.load, fp32", "fp32": "transformers, fp32", "bf16": "transformers, bf16"}
OURS = {
    "fp32 pickle": "ours, fp32",
    "fp32": "ours, fp32",
    "bf16": "ours, bf16",
    "fp16": "ours, fp16",
    "fp8": "ours, fp8",
    "GGUF Q8_0": "ours, GGUF",
    "GGUF Q4_K": "ours, GGUF",
}


def places():
    """Everything that a benchmark could write to, but the folder that it is given."""
    around = [path for path in TOOLS.rglob("*") if "__pycache__" not in path.parts]
    around += [*COMFYUI.iterdir(), *(HOST_DIR / "bench").glob("*")]
    around += [path for name in ("input", "output", "temp", "user") for path in (COMFYUI / name).rglob("*")]
    return set(around)


@pytest.fixture(scope="module")
def runs(host, tmp_path_factory):
    """All benchmarks, run at the same time as `tools/dev.py bench` runs them: what they printed, and left."""
    folder, before = tmp_path_factory.mktemp("bench"), places()
    started = {}
    for name in ("conditioning", "encoders", "sampling", "training"):
        for place in ("models", "temporary"):
            (folder / name / place).mkdir(parents=True)
        command = [sys.executable, "-m", f"bench.{name}", "--quick", "--rounds", "1", "--threads", "1"]
        command += ["--comfyui", str(host.comfyui), "--models", str(folder / name / "models")]
        temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder / name / "temporary"))
        with (folder / name / "log").open("wb") as log:
            started[name] = subprocess.Popen(
                command,
                cwd=TOOLS,
                env=host.environment() | temporary,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
            )
    printed = {name: process.communicate()[0] for name, process in started.items()}
    for name, process in started.items():
        assert process.returncode == 0, (folder / name / "log").read_text(encoding="utf-8")
    left = [path for name in started for place in (folder / name).iterdir() for path in place.glob("*")]
    return SimpleNamespace(**printed, left=left, written=places() - before)


def tables(text):
    """The tables of a Markdown text: the headings, and the rows below them."""
    blocks = [[line for line in part.splitlines() if line.startswith("|")] for part in text.split("\n\n")]
    cells = [
        [[cell.strip() for cell in line[1:-1].split("|")] for line in block] for block in blocks if block
    ]
    return [(headings, rows) for headings, _, *rows in cells]


def on_cpu(rows):
    """The rows of the CPU: the way of any other device has the device's name behind it."""
    return [row for row in rows if row[0].rpartition(", ")[2] not in ("cuda", "mps", "xpu")]


def test_the_conditioning_table_has_all_ways_loads_and_calls(runs):
    ((headings, rows),) = tables(runs.conditioning)
    assert headings == [
        *("way", "weights", "what", "seconds", "times faster", "peak memory, GB", "times the file"),
        *("largest difference", "relative difference"),
    ]
    calls = [f"{tokens} tokens, {call}" for tokens in (30, 77) for call in ("first call", "negative cached")]
    wanted = [("published, fp32", "fp32", f"{tokens} tokens, both prompts") for tokens in (30, 77)]
    for way, file in (("ours, fp32", "fp32"), ("ours, auto", "bf16"), ("ours, auto, fp32 weights", "fp32")):
        wanted += [(way, file, what) for what in ("load", *calls)]
    loads = (("ours, bf16", "fp32"), ("ours, fp32", "fp32 pickle"), ("ours, bf16", "fp32 pickle"))
    wanted += [(way, file, "load") for way, file in loads]
    found = [
        (way, file, "load" if what.startswith("load ") else what) for way, file, what, *_ in on_cpu(rows)
    ]
    assert found == wanted
    assert all(float(row[3]) > 0 for row in rows)


def test_each_encoder_table_has_all_kinds_of_file(runs):
    t5, llama = tables(runs.encoders)
    for headings, _ in (t5, llama):
        assert headings == [
            *("way", "file", "GB", "from file to first states, s", "times faster", "another text, s"),
            *("times faster", "the same text again, s", "peak, GB", "above idle, GB", "relative difference"),
        ]
    ways = [*((way, file) for file, way in OTHERS.items()), *((way, file) for file, way in OURS.items())]
    assert [tuple(row[:2]) for row in on_cpu(t5[1])] == ways
    assert [tuple(row[:2]) for row in on_cpu(llama[1])] == [way for way in ways if way[1] != "fp32 pickle"]
    assert [part for part in ("T5-XL", "Llama, 1.1 billion weights") if part not in runs.encoders] == []


def test_our_fp32_agrees_with_the_published_way(runs):
    differences = [
        row[-1]
        for _, rows in tables(runs.conditioning) + tables(runs.encoders)
        for row in on_cpu(rows)
        if row[0] == "ours, fp32" and not row[2].startswith("load ")
    ]
    assert len(differences) == 4 + 2 + 1  # two prompts with two calls; two kinds of T5's file; one of Llama's
    assert all(0 < float(difference) < LIMIT for difference in differences)


def test_the_kinds_of_file_differ_as_much_as_their_precision_allows(runs):
    """Every file is read as what it is called: fewer bits, larger differences."""
    for _, rows in tables(runs.encoders):
        found = {row[1]: float(row[-1]) for row in on_cpu(rows) if row[0].startswith("ours")}
        assert found["fp32"] < LIMIT < found["GGUF Q8_0"] < found["fp8"] < found["GGUF Q4_K"] < 0.5
        assert max(found["bf16"], found["fp16"]) < found["GGUF Q8_0"]


def test_the_training_table_has_a_row_for_each_part_that_learns(runs):
    ((headings, rows), features) = tables(runs.training)
    assert headings == ["way", "learns", "pictures a second", "times diffusers", "peak memory, GB"]
    wanted = [("diffusers", "whole"), ("ours", "whole"), ("ours", "LoRA"), ("ours", "frozen")]
    assert [tuple(row[:2]) for row in rows] == wanted
    assert all(float(row[2]) > 0 for row in rows)
    headings, rows = features
    assert headings == ["features", "pictures a second", "times in each step"]
    assert [row[0] for row in rows] == ["on the disk", "in each step"]
    assert all(float(row[1]) > 0 for row in rows)


def test_the_sampling_table_has_both_contexts_with_one_call_of_the_unet_a_step(runs):
    ((headings, rows),) = tables(runs.sampling)
    assert headings[:4] == ["context", "seconds a step", "times 77 tokens", "calls of the UNet a step"]
    assert [row[0] for row in rows] == ["77 tokens (core)", "333 tokens (LLM4GEN)"]
    assert all(float(row[1]) > 0 and row[3] == "1" for row in rows)


@pytest.mark.parametrize(
    ("device", "times", "met"), [("cuda", 1.04, [True]), ("cuda", 1.06, [False]), ("cpu", 1.3, [])]
)
def test_a_longer_context_may_cost_a_gpu_a_twentieth(device, times, met):
    assert [is_met for is_met, _ in sampling.checks_of(device, times)] == met


def test_a_quick_run_is_not_judged_and_says_where_it_ran(runs):
    for printed in (runs.conditioning, runs.encoders, runs.sampling, runs.training):
        assert "Machine: " in printed and "threads: 1;" in printed and "medians of 1 " in printed
        assert "Not judged" in printed and "Verdict" not in printed


def test_nothing_is_left_and_nothing_was_written_elsewhere(runs):
    assert runs.left == []
    assert runs.written == set()


@pytest.mark.parametrize(("checks", "code"), [([True, True], 0), ([True, False], 1)])
def test_a_missed_target_is_named_and_is_an_error_and_numbers_are_written(checks, code, tmp_path, capsys):
    about = {"torch": "2", "threads": 1, "products": [], "accelerator": None, "accelerator name": None}
    options = SimpleNamespace(quick=False, rounds=1, json=tmp_path / "numbers.json")
    runner = SimpleNamespace(options=options, about=about, busy_cores=0.0)
    tables = [Table((("way", ""), ("seconds", ".1f")), [("ours", 0.25)])]
    assert conclude(runner, tables, [(met, f"target {number}") for number, met in enumerate(checks)]) == code
    found = json.loads(options.json.read_text(encoding="utf-8"))
    assert found["tables"][0]["rows"] == [["ours", 0.25]]
    assert [target["met"] for target in found["targets"]] == checks
    printed = capsys.readouterr().out
    assert "| ours | 0.2 |" in printed
    assert f"Verdict: {sum(checks)} of 2 targets met." in printed
    assert ("MISSED: target 1" in printed) == (not checks[1])


@pytest.fixture
def runner(monkeypatch, tmp_path):
    """A runner on a machine with a GPU, whose worker only describes it."""

    def runner(device):
        about = {"torch": "2", "accelerator": "cuda"}
        monkeypatch.setattr(Runner, "process", lambda self, key: SimpleNamespace(call=lambda *_: about))
        options = argparse.Namespace(device=device, quick=False, rounds=1, models=tmp_path)
        return Runner(options, tmp_path)

    return runner


@pytest.mark.parametrize(
    ("device", "devices"), [(None, ["cpu", "cuda"]), ("cpu", ["cpu"]), ("cuda", ["cuda"])]
)
def test_a_device_that_is_named_is_the_only_one_and_its_own_reference(device, devices, runner, monkeypatch):
    found = runner(device)
    assert found.devices == devices
    ways = conditioning.other_loads(found, ["fp32", "fp32 pickle"])
    assert {way.device for way in ways} == {devices[0]}
    saved = []
    monkeypatch.setattr(found, "prepared", lambda ways: contextlib.nullcontext())
    for name in ("note", "take_turns", "rounds"):
        monkeypatch.setattr(found, name, lambda *_, **__: ())
    monkeypatch.setattr(found, "compare", lambda ways, steps, reference: saved.append(reference))
    for each in devices:
        conditioning.measure(found, conditioning.compared(found, each), {})
    assert {(way.method, way.device) for way in saved} == {("published", devices[0])}


def test_a_device_that_is_not_there_is_named_with_those_that_are(runner):
    with pytest.raises(SystemExit, match="--device mps: torch 2 offers cpu and cuda"):
        runner("mps")


@pytest.mark.parametrize(
    ("apart", "seconds", "met"), [(4e-3, 2.9, [True, True]), (6e-3, 3.1, [False, False])]
)
def test_on_a_gpu_the_states_and_the_time_of_a_new_text_are_judged(apart, seconds, met, runner):
    found, file = runner("cuda"), QUICK.models("models")["t5"].file
    for method, name, time in (("transformers", "transformers, bf16", 1.0), ("ours", "ours, bf16", seconds)):
        way = encoders.Way(name, method, "bf16", file("bf16"), "auto", "cuda")
        times = {step.name: [time] for step in encoders.STEPS}
        found.figures[way] = Figures(seconds=times, differences={"first": [(0.0, apart)]})
    assert [is_met for is_met, _ in encoders.checks_of(found, list(found.figures))] == met
