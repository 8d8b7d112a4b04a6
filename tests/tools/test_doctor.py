"""tools/doctor.py says what is ready, and gives advice on everything that is missing, damaged or misplaced."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import doctor
import other_models
import tiny
from checks import findings, installed
from llm4gen.models.checkpoints.checkpoint_kind import KINDS, context_width
from llm4gen.models.checkpoints.same_llm import OTHER_FILE, OTHER_LLM, SENTENCES
from llm4gen.models.files.formats import GGUF, SUFFIXES
from paths import COMFYUI, ROOT
from sandbox.server import copy_pack


def save_adapter(folder, name="projector.safetensors", llm=32, clip=768, metadata=None):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tiny.adapter_tensors(clip=clip, llm=llm), folder / name, metadata)


def save_encoder(folder, name="t5.safetensors", **sizes):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tiny.rankgen_tensors(tiny.t5_encoder(**sizes)), folder / name)


def save_checkpoint(folder, name="sd15.safetensors", width=768, inside=""):
    """inside: what stands in the name of the weight."""
    folder.mkdir(parents=True, exist_ok=True)
    key = f"model.diffusion_model.input_blocks.1.1.{inside}transformer_blocks.0.attn2.to_k.weight"
    save_file({key: torch.zeros(320, width)}, folder / name)


def save_all(models):
    save_adapter(models / "llm4gen")
    save_encoder(models / "text_encoders")
    save_checkpoint(models / "checkpoints")


@pytest.fixture
def models(place, tmp_path):
    return tmp_path / "one"


@pytest.fixture
def report(tmp_path):
    """A function that returns the report on the models at hand, and those of its findings that give advice."""

    def report(pack=tmp_path / "pack"):
        sections = list(doctor.model_sections(pack))
        text, number = findings.format_report(sections)
        to_do = [finding for _, found in sections for finding in found if finding.advice is not None]
        assert number == len(to_do) and text.count("TO DO") == number
        assert text.splitlines()[-1] == (
            "Ready." if not to_do else f"{number} thing{'s' * (number > 1)} to do."
        )
        return text, to_do

    return report


def test_a_complete_installation_is_ready(models, report):
    save_all(models)
    (models / "text_encoders" / "notes.txt").write_text("x", encoding="utf-8")
    text, to_do = report()
    assert to_do == []
    assert "t5.safetensors: t5, 3 layers, width 32, fp32, tokenizer: ComfyUI's" in text
    assert "projector.safetensors: for SD1.5, from width 32 to 768, fp32; 'pre {text}', 256 tokens" in text
    assert "projector.safetensors with t5.safetensors" in text and "SD1.5: sd15.safetensors" in text
    assert str(models / "text_encoders") in text


def test_empty_folders_get_advice_on_each_missing_model(models, report):
    _, to_do = report()
    fetch = "or run this pack's tools/fetch_weights.py"
    assert [finding.advice for finding in to_do] == [
        f"Put the T5 encoder (rankgen-t5-xl-all) in {models / 'text_encoders'}, {fetch}.",
        f"Put LLM4GEN's projector.pth in {models / 'llm4gen'}, {fetch}.",
        f"Put any SD1.5 checkpoint in {models / 'checkpoints'}.",
    ]


def test_an_adapter_needs_a_checkpoint_of_its_kind(models, report):
    save_all(models)
    save_adapter(models / "llm4gen", "xl.safetensors", clip=2048)
    text, to_do = report()
    assert "xl.safetensors: for SDXL, from width 32 to 2048" in text
    assert [finding.advice for finding in to_do] == [f"Put any SDXL checkpoint in {models / 'checkpoints'}."]
    save_checkpoint(models / "checkpoints", "base.safetensors", width=2048)
    text, to_do = report()
    assert to_do == [] and "SDXL: base.safetensors" in text and "SD1.5: sd15.safetensors" in text


def test_without_an_adapter_a_checkpoint_of_any_kind_will_do_to_train_one(models, report):
    save_encoder(models / "text_encoders")
    (models / "llm4gen").mkdir(exist_ok=True)
    save_checkpoint(models / "checkpoints", "base.safetensors", width=2048)
    text, (finding,) = report()
    assert "SDXL: base.safetensors" in text and finding.text == "There is no Cross-Adapter."
    assert "projector.pth" in finding.advice
    assert "is for SD1.5; for SDXL, train one, as the workflow llm4gen_sdxl_train_an" in finding.advice


def test_a_checkpoint_that_a_cloud_drive_keeps_online_is_not_fetched(models, report, monkeypatch):
    save_all(models)
    checkpoint, opened = models / "checkpoints" / "sd15.safetensors", []
    stat, status = os.stat, os.stat(checkpoint)
    known = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
    online = SimpleNamespace(**known, st_flags=0x40000000)
    monkeypatch.setattr(
        os, "stat", lambda path, **how: online if Path(path) == checkpoint else stat(path, **how)
    )
    path_open = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *how, **more: opened.append(path) or path_open(path, *how, **more)
    )
    text, to_do = report()
    assert to_do == [] and "holds SD1.5. These others may: sd15.safetensors" in text
    assert opened and checkpoint not in opened


def test_numbers_that_are_packed_and_headers_that_would_take_seconds_tell_no_kind(tmp_path):
    file = tmp_path / "a.safetensors"

    def width(dtype, length):
        entry = {"dtype": dtype, "shape": [640, 1024], "data_offsets": [0, 655360]}
        name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
        file.write_bytes(struct.pack("<Q", length) + json.dumps({name: entry}).encode().ljust(length))
        return context_width(file)

    assert width("F16", 1000) == width("F8_E4M3", 9_999_999) == 1024
    assert width("U8", 1000) is None, "SDXL in nvfp4, not SD2"
    assert width("F16", 10_000_000) is None


@pytest.mark.parametrize("kind", other_models.KINDS.values(), ids=lambda kind: kind.name)
def test_every_kind_of_checkpoint_is_recognised_by_its_header(kind, started, tmp_path):
    assert KINDS[kind.width] == kind.name
    unet = other_models.make_model(kind).model.diffusion_model.state_dict()
    few = {f"model.diffusion_model.{name}": weight for name, weight in unet.items() if "attn2.to_k" in name}
    save_file(few, tmp_path / "a.safetensors")
    assert context_width(tmp_path / "a.safetensors") == kind.width
    save_checkpoint(tmp_path, "video.safetensors", kind.width, inside="time_stack.0.")
    assert context_width(tmp_path / "video.safetensors") is None


def test_an_adapter_without_an_encoder_is_not_ready(models, report):
    save_all(models)
    shutil.rmtree(models / "text_encoders")
    _, (finding,) = report()
    assert "no encoder" in finding.text and "rankgen-t5-xl-all" in finding.advice


def test_other_models_text_encoders_are_neither_errors_nor_encoders(models, report):
    save_all(models)
    save_file({"text_model.x.weight": torch.zeros(2, 2)}, models / "text_encoders" / "clip_l.safetensors")
    text, to_do = report()
    assert to_do == [] and "clip_l.safetensors: not for LLM4GEN" in text
    (models / "text_encoders" / "t5.safetensors").unlink()
    _, (finding,) = report()
    assert "no encoder" in finding.text


@pytest.mark.parametrize(
    "name",
    [
        "text_encoders/qwen/model.safetensors.part",
        "text_encoders/qwen/.cache/huggingface/download/08e4f2.incomplete",
        "llm4gen/projector.safetensors.aria2",
        "text_encoders/Unconfirmed 12345.crdownload",
    ],
)
def test_an_unfinished_download_is_named(name, models, report):
    save_all(models)
    (models / name).parent.mkdir(parents=True, exist_ok=True)
    (models / name).write_bytes(b"x")
    _, (finding, *others) = report()
    assert str(models / name) in finding.text and "not complete" in finding.text
    assert "Finish the download" in finding.advice
    assert bool(others) == ("aria2" in name), "the adapter is not listed, so there is none"


def test_an_adapter_without_an_encoder_of_its_width_is_not_ready(models, report):
    save_all(models)
    save_adapter(models / "llm4gen", llm=2048)
    text, (finding,) = report()
    assert "no encoder fits; it needs one of width 2048" in text
    assert "No encoder fits" in finding.text and "trained with" in finding.advice
    save_adapter(models / "llm4gen", "another.safetensors")
    text, to_do = report()
    assert to_do == [] and "width 2048" in text, "one fitting pair is enough"


def test_an_adapter_is_not_ready_with_another_llm_of_the_same_width(models, report):
    entry = {"name": "mine.gguf", "sha256_of_ends": "of mine", "layers": 3}
    save_all(models)
    save_adapter(models / "llm4gen", metadata={"llm4gen_training": json.dumps({"llm": entry})})
    words = {"adapter": "projector.safetensors", "llm": "mine.gguf", "encoder": "t5.safetensors"}
    text, to_do = report()
    assert to_do == [] and SENTENCES[OTHER_FILE].format(**words) in text
    save_encoder(models / "text_encoders", "other.safetensors", num_layers=2)
    text, to_do = report()
    assert to_do == [] and SENTENCES[OTHER_LLM].format(**words | {"encoder": "other.safetensors"}) in text
    (models / "text_encoders" / "t5.safetensors").unlink()
    text, (finding,) = report()
    assert "projector.safetensors with" not in text and "other.safetensors: load that LLM (mine.gguf)" in text
    assert "No encoder fits" in finding.text and "trained with" in finding.advice


def test_an_encoder_without_a_tokenizer_of_its_vocabulary_is_reported(models, report):
    save_all(models)
    save_encoder(models / "text_encoders", vocab_size=4000)
    _, (finding,) = report()
    assert "t5.safetensors" in finding.text
    assert (
        "32100 tokens, but the encoder has 4000" in finding.advice and "own tokenizer files" in finding.advice
    )


@pytest.mark.parametrize("folder", ["llm4gen", "text_encoders"])
@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
@pytest.mark.parametrize(
    "content", [b"", b"PK\3\4", b"\x80\x02}", b"\xff" * 100], ids=["0", "zip", "pickle", "noise"]
)
def test_a_damaged_file_is_named_once_with_advice(folder, name, content, models, report):
    save_all(models)
    (models / folder / name).write_bytes(content)
    (models / "checkpoints" / name).write_bytes(content)
    text, (finding,) = report()
    assert "Traceback" not in text
    assert finding.text.startswith(name) and (
        "ownload it again" in finding.advice or "refused" in finding.advice
    )


def test_without_the_package_gguf_a_gguf_file_gets_the_command_that_installs_it(models, report, monkeypatch):
    save_all(models)
    (models / "text_encoders" / "t5.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    _, (finding,) = report()
    assert "t5.gguf" in finding.text and finding.advice.endswith("-m pip install gguf")


@pytest.mark.parametrize("folder", ["checkpoints", "text_encoders", "loras", "pack"])
def test_an_adapter_in_the_wrong_folder_is_to_be_moved(folder, models, report, tmp_path):
    save_all(models)
    wrong = tmp_path / "pack" / "models" if folder == "pack" else models / folder
    wrong.mkdir(parents=True, exist_ok=True)
    shutil.move(models / "llm4gen" / "projector.safetensors", wrong / "projector.safetensors")
    _, (finding,) = report()
    assert str(wrong / "projector.safetensors") in finding.text
    assert finding.advice == f"Move it to {models / 'llm4gen'}."


@pytest.mark.parametrize("folder", ["checkpoints", "llm4gen", "pack"])
def test_an_encoder_in_the_wrong_folder_is_to_be_moved(folder, models, report, tmp_path):
    save_all(models)
    wrong = tmp_path / "pack" / "models" if folder == "pack" else models / folder
    wrong.mkdir(parents=True, exist_ok=True)
    shutil.move(models / "text_encoders" / "t5.safetensors", wrong / "t5.safetensors")
    _, (finding,) = report()
    assert str(wrong / "t5.safetensors") in finding.text
    assert finding.advice == f"Move it to {models / 'text_encoders'}."


def test_the_packs_own_models_folder_holds_no_weight_files():
    assert [path for path in (ROOT / "models").rglob("*") if path.suffix.lower() in (*SUFFIXES, GGUF)] == []


# ComfyUI, packages and graphics cards


@pytest.mark.parametrize(
    ("version", "is_supported"),
    [("0.30.0", True), ("0.24.1", True), ("1.0", True), ("0.24.0", False), ("0.3.75", False), (None, False)],
)
def test_a_comfyui_that_is_too_old_is_reported(version, is_supported, tmp_path):
    if version:
        (tmp_path / "comfyui_version.py").write_text(
            f'# a comment\n__version__ = "{version}"\n', encoding="utf-8"
        )
    (finding,) = installed.check_comfyui(tmp_path)
    assert (finding.advice is None) == is_supported
    assert is_supported or "0.24.1 or newer" in finding.advice


def test_packages_are_compared_with_the_required_versions(tmp_path, monkeypatch):
    required = installed.requirements()
    assert {"torch", "transformers", "safetensors", "einops"} == set(required)
    assert [finding for finding in installed.check_packages(tmp_path) if finding.advice] == []

    def version(name):
        if name == "einops":
            raise installed.PackageNotFoundError(name)
        return {"transformers": "4.50.2", "safetensors": "0.4.10"}.get(name, "9.0")

    monkeypatch.setattr(installed, "version", version)
    old, absent = (finding for finding in installed.check_packages(tmp_path) if finding.advice)
    assert old.text == "transformers 4.50.2" and "transformers>=4.50.3" in old.advice
    assert "lacks einops" in absent.text and "requirements.txt" in absent.advice


def test_a_check_that_raises_is_a_thing_to_do():
    def check():
        yield findings.Finding("found before")
        raise KeyError("x\ny")

    text, number = findings.format_report([("One", findings.run_check(check)), ("Two", [])])
    assert number == 1 and "KeyError" in text and "found before" in text and "Two" not in text


@pytest.mark.parametrize("kind", ["xpu", "none"])
def test_an_intel_gpu_is_listed(kind, monkeypatch):
    """torch's answers are replaced with those that it gives for such a card."""
    for backend in (torch.cuda, torch.xpu, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    if kind == "xpu":
        monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
        monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
        monkeypatch.setattr(torch.xpu, "get_device_name", lambda card: f"Arc {card}")
        properties = SimpleNamespace(total_memory=16 << 30)
        monkeypatch.setattr(torch.xpu, "get_device_properties", lambda card: properties)
    assert list(installed.gpus()) == (["Arc 0, 16.0 GB"] if kind == "xpu" else [])


# The command line


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory):
    """The parts of a real ComfyUI that the doctor uses, with their own models, custom nodes and version."""
    target = tmp_path_factory.mktemp("doctor") / "ComfyUI"
    for name in ("folder_paths.py", "main.py", "comfyui_version.py"):
        target.mkdir(exist_ok=True)
        shutil.copy(COMFYUI / name, target / name)
    for name in ("comfy", "utils", "comfy_api"):
        ignore = shutil.ignore_patterns("__pycache__", "ldm", "*.safetensors")
        shutil.copytree(COMFYUI / name, target / name, ignore=ignore)
    copy_pack(target / "custom_nodes")
    shutil.copytree(ROOT / "tools", target / "custom_nodes" / "llm4gen" / "tools")
    return target


def run(comfyui, *arguments, **environment):
    command = [sys.executable, comfyui / "custom_nodes" / "llm4gen" / "tools" / "doctor.py", *arguments]
    done = subprocess.run(
        list(map(str, command)),
        # Python's own caches would be files that the command has written.
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.stderr == ""
    return done.stdout, done.returncode


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.floor
def test_the_command_finds_models_in_extra_model_paths_yaml(comfyui, tmp_path):
    save_all(tmp_path / "elsewhere")
    keys = {"text_encoders": "text_encoders", "llm4gen": "llm4gen", "checkpoints": "checkpoints"}
    config = {"elsewhere": {"base_path": str(tmp_path / "elsewhere"), **keys}}
    config_file = comfyui / "extra_model_paths.yaml"
    config_file.write_text(json.dumps(config), encoding="utf-8")
    (comfyui / "input").mkdir(exist_ok=True)  # ComfyUI makes this folder when it is imported
    before = snapshot(comfyui)
    text, code = run(comfyui)
    assert (text.splitlines()[-1], code) == ("Ready.", 0), text
    assert str(config_file) in text and str(tmp_path / "elsewhere" / "llm4gen") in text
    assert snapshot(comfyui) == before
    config_file.unlink()

    text, code = run(comfyui, "--base-directory", str(tmp_path / "nothing"))
    assert (text.splitlines()[-1], code) == ("3 things to do.", 1), text


def test_the_command_names_an_unknown_argument_in_one_line(comfyui):
    tool = comfyui / "custom_nodes" / "llm4gen" / "tools" / "doctor.py"
    done = subprocess.run([sys.executable, tool, "--comfyuii"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: unrecognized arguments: --comfyuii")


def test_the_command_reports_an_old_comfyui_and_a_broken_configuration(comfyui):
    version, config_file = comfyui / "comfyui_version.py", comfyui / "extra_model_paths.yaml"
    before = version.read_text(encoding="utf-8")
    version.write_text('__version__ = "0.3.75"\n', encoding="utf-8")
    config_file.write_text("a: [", encoding="utf-8")
    save_all(comfyui / "models")
    text, code = run(comfyui)
    version.write_text(before, encoding="utf-8")
    config_file.unlink()
    assert (text.splitlines()[-1], code) == ("2 things to do.", 1), text
    assert "LLM4GEN needs 0.24.1 or newer" in text and "extra_model_paths.yaml.example" in text


@pytest.mark.parametrize("name", ["einops", "yaml"])
def test_the_command_reports_a_package_that_cannot_be_imported(name, comfyui, tmp_path):
    (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is half installed')", encoding="utf-8")
    text, code = run(comfyui, PYTHONPATH=str(tmp_path))
    assert (text.splitlines()[-1], code) == ("1 thing to do.", 1), text
    assert f"ImportError: {name} is half installed" in text


def test_a_folder_without_comfyui_is_reported(tmp_path):
    text, number = doctor.examine(tmp_path)
    assert number == 1 and "no main.py" in text and "--comfyui" in text
    assert doctor.parse([])[0].comfyui == Path(doctor.__file__).absolute().parents[3]
