"""tools/fetch_weights.py downloads every file from the hub to the folder that ComfyUI looks in."""

import re
import shlex
import subprocess
import sys

import pytest
import torch

import fetch_weights
import tiny
from fetch import failures
from fetch import hub as fetch_hub
from fetch import plan as fetch_plan
from fetch.installed import find_installed, why_unusable
from fetch.items import DEFAULT_DTYPE, ITEMS
from fetch.task import SIZE_RATIOS, Task
from fetching import FREE_SPACE, LLM4GEN, RANKGEN, UNET, error_line
from hub_server import Hub
from llm4gen.models.checkpoints.adapter import load_cross_adapter
from llm4gen.models.files.formats import DTYPE_NAMES
from paths import ROOT, TOOLS
from tiny import load_encoder

FOLDERS = {"adapter": "llm4gen", "encoder": "text_encoders", "unet": "diffusion_models"}
ADAPTER, ENCODER, TUNED = (
    "llm4gen/projector.safetensors",
    "text_encoders/rankgen-t5-xl-all-bf16.safetensors",
    "diffusion_models/llm4gen_sd15_unet.safetensors",
)


@pytest.mark.floor
def test_every_file_is_downloaded_once_and_to_its_folder(fetching):
    fetching.publish_models()
    done = fetching.run()
    assert done.returncode == 0, done.stderr
    assert fetching.files() == {ADAPTER, ENCODER, TUNED}
    assert not list(fetching.models.rglob(".*")), "no scratch folder is left"
    assert (fetching.models / TUNED).read_bytes() == fetching.unet
    for name, licence in ((LLM4GEN, "not stated"), (RANKGEN, "apache-2.0")):
        assert f"{name}: commit {'c' * 40}, licence: {licence}" in done.stdout
    for repository in fetching.hub.repositories.values():
        for path in repository.files.keys() - {"README.md"}:
            assert f"{path}, {len(repository.files[path]):,} bytes" in done.stdout
    adapter, _ = load_cross_adapter(fetching.models / ADAPTER)
    assert torch.equal(adapter.llm_proj.bias, tiny.adapter_tensors()["CrossFusionModule.0.llm_proj.bias"])
    encoder = load_encoder(fetching.models / ENCODER, dtype=torch.bfloat16)
    published = tiny.rankgen_tensors(tiny.t5_encoder())["t5_encoder.shared.weight"]
    assert torch.equal(encoder.embedding.weight, published.bfloat16())
    sent, requests = len(fetching.hub.sent), len(fetching.hub.api_requests)
    again = fetching.run()
    assert again.returncode == 0 and again.stdout.count("already installed") == 3
    assert (len(fetching.hub.sent), len(fetching.hub.api_requests)) == (sent, requests)


def test_only_the_chosen_files_are_downloaded(fetching):
    fetching.publish_models()
    done = fetching.run("--only", "unet")
    assert done.returncode == 0 and fetching.files() == {TUNED}
    assert {name for name, _ in fetching.hub.api_requests} == {LLM4GEN}
    assert fetching.run("--only", "encoder", "encoder", "--dtype", "fp8").returncode == 0
    assert fetching.files() == {TUNED, ENCODER.replace("bf16", "fp8")}
    sent = len(fetching.hub.sent)
    assert "already installed" in fetching.run("--only", "encoder").stdout, (
        "without --dtype, an encoder of any dtype counts"
    )
    assert len(fetching.hub.sent) == sent


@pytest.mark.parametrize("name", [LLM4GEN, "LLM4GEN-models"])
def test_a_commit_can_be_chosen(name, fetching):
    fetching.hub.older[LLM4GEN] = type(fetching.hub.repositories[LLM4GEN])({UNET: b"older"}, commit="a" * 40)
    assert fetching.run("--only", "unet", "--revision", f"{name}={'a' * 40}").returncode == 0
    assert (fetching.models / TUNED).read_bytes() == b"older"
    assert fetching.run("--revision", "other=1").returncode == failures.USAGE


def test_the_plain_safetensors_file_of_a_folder_is_chosen():
    stem = "unet/diffusion_pytorch_model"
    names = [
        "unet/config.json",
        f"{stem}-00001-of-00002.safetensors",
        f"{stem}.bin",
        f"{stem}.fp16.safetensors",
        "vae/a.safetensors",
        f"{stem}.safetensors",
    ]

    def chosen(names):
        files = tuple(fetch_hub.RemoteFile(name, 1, None) for name in names)
        repository = fetch_hub.Repository(LLM4GEN, "c" * 40, "", files)
        return fetch_plan.plan_task(ITEMS["unet"], repository, ROOT, None)

    assert chosen(names).file.path == f"{stem}.safetensors"
    assert chosen(names[:3]).file.path == f"{stem}.bin"
    assert chosen(names[:3]).target.name == "llm4gen_sd15_unet.bin"
    with pytest.raises(failures.CannotFetch, match="--revision"):
        chosen(names[:2])


# The folders that ComfyUI looks in


def instructed_folders(done):
    """Item → the folder that the instructions of a run without a hub name for it."""
    assert done.returncode == failures.UNREACHABLE, done.stderr
    return dict(re.findall(r"^(\w+):\n.*\n.*\n  to +(.*)/[^/\n]+$", done.stdout, re.MULTILINE))


YAML = {
    "default": ("is_default: true", {"adapter", "encoder", "unet"}),
    # ComfyUI's own downloads do the same: without is_default, its own folders stay in front.
    "other": ("", {"adapter"}),
}


@pytest.mark.floor
@pytest.mark.parametrize("kind", YAML)
@pytest.mark.parametrize("old_names", [False, True])
def test_extra_model_paths_are_used_as_comfyui_uses_them(kind, old_names, fetching):
    line, moved = YAML[kind]
    keys = {"adapter": "llm4gen", "encoder": "clip", "unet": "unet"} if old_names else FOLDERS
    entries = "\n  ".join(f"{key}: mine/{key}" for key in keys.values())
    (fetching.comfyui / "extra_model_paths.yaml").write_text(f"a:\n  base_path: ..\n  {line}\n  {entries}\n")
    extra = {name: str(fetching.base / "mine" / key) for name, key in keys.items()}
    default = {name: str(fetching.models / key) for name, key in FOLDERS.items()}
    expected = default | {name: extra[name] for name in moved}
    assert instructed_folders(fetching.run("--offline")) == expected
    fetching.run("--only", "unet")
    (found,) = fetching.base.rglob("llm4gen_sd15_unet.safetensors")
    assert str(found.parent) == expected["unet"]


@pytest.mark.floor
def test_comfyuis_own_arguments_are_used_as_comfyui_uses_them(fetching):
    """They set the base directory, and a file outside of it that puts a folder in front of the others."""
    base, config = fetching.base / "base", fetching.base / "more.yaml"
    config.write_text("a:\n  base_path: mine\n  is_default: true\n  text_encoders: t5\n")
    given = ["--base-directory", str(base), "--extra-model-paths-config", str(config)]
    places = {name: str(base / "models" / key) for name, key in FOLDERS.items()}
    assert instructed_folders(fetching.run(*given[:2], "--offline")) == places
    places["encoder"] = str(fetching.base / "mine" / "t5")
    assert instructed_folders(fetching.run("--offline", *given)) == places
    assert fetching.run(*given, "--only", "unet").returncode == 0
    assert (base / "models" / TUNED).is_file() and fetching.files() == set()


@pytest.mark.parametrize("wrong", [["--offlien"], ["--base-directory"], ["adapter"]])
def test_an_unknown_argument_is_named_in_one_line(wrong, fetching):
    done = fetching.run("--offline", *wrong)
    assert done.returncode == failures.USAGE and wrong[0] in error_line(done)
    assert len(done.stderr.splitlines()) == 1, "ComfyUI's long usage would hide the error"


@pytest.mark.parametrize("config", ["absent.yaml", "bad.yaml"])
def test_an_unreadable_config_of_extra_model_paths_is_named_in_one_line(config, fetching):
    (fetching.base / "bad.yaml").write_text("a: [")
    done = fetching.run("--offline", "--extra-model-paths-config", str(fetching.base / config))
    assert done.returncode == failures.FAILED and config in error_line(done)


def test_a_file_in_any_of_comfyuis_folders_counts_as_installed(fetching):
    (fetching.models / "unet").mkdir(parents=True)
    (fetching.models / "unet" / "llm4gen_sd15_unet.bin").write_bytes(b"x")
    done = fetching.run("--only", "unet", "--offline")
    assert done.returncode == 0 and "already installed" in done.stdout


@pytest.mark.parametrize("text", ["- a\n", "a: [", "a: 3\n", "a:\n  llm4gen: [1]\n"])
def test_an_unreadable_extra_model_paths_yaml_is_named_in_one_line(text, fetching):
    (fetching.comfyui / "extra_model_paths.yaml").write_text(text)
    done = fetching.run("--offline")
    assert done.returncode == failures.FAILED and "extra_model_paths.yaml" in error_line(done)


def test_the_comfyui_that_holds_the_pack_is_the_default(fetching):
    (fetching.comfyui / "custom_nodes").mkdir()
    pack = fetching.comfyui / "custom_nodes" / "LLM4GEN"
    pack.symlink_to(ROOT, target_is_directory=True)
    done = fetching.run(command=[sys.executable, str(pack / "tools" / "fetch_weights.py"), "--offline"])
    assert instructed_folders(done) == {name: str(fetching.models / key) for name, key in FOLDERS.items()}


@pytest.mark.parametrize("place", ["given", "empty", "enclosing"])
def test_a_missing_comfyui_is_reported_in_one_line(place, fetching):
    tool = TOOLS / "fetch_weights.py"
    given = {"given": fetching.base / "absent", "empty": fetching.base}
    if place == "enclosing":
        copy = fetching.base / "elsewhere" / "LLM4GEN"
        copy.parent.mkdir()
        copy.symlink_to(ROOT, target_is_directory=True)
        tool = copy / "tools" / "fetch_weights.py"
    options = ["--comfyui", str(given[place])] if place in given else []
    done = fetching.run(command=[sys.executable, str(tool), "--offline", *options])
    assert done.returncode == failures.FAILED and "--comfyui" in error_line(done)


@pytest.mark.parametrize("tool", ["fetch_weights.py", "convert.py", "doctor.py"])
def test_a_python_that_does_not_search_the_scripts_folder_runs_the_tool(tool):
    """ComfyUI's portable build for Windows comes with such a Python."""
    done = subprocess.run(
        [sys.executable, "-I", str(TOOLS / tool), "--help"], capture_output=True, check=False
    )
    assert done.returncode == 0 and f"usage: {tool}".encode() in done.stdout


def test_every_exit_code_is_in_the_help(fetching):
    text = fetching.run("--help").stdout
    codes = {failures.FAILED, failures.USAGE, failures.UNREACHABLE, failures.REFUSED}
    codes |= {failures.DISK_PROBLEM, failures.DAMAGED, failures.UNCONFIRMED, 0}
    assert {int(code) for code in re.findall(r"^  (\d)  ", text, re.MULTILINE)} == codes


# Before the download


def test_five_gigabytes_are_not_downloaded_without_confirmation(fetching):
    fetching.hub.repositories[LLM4GEN].stated[UNET] = {"size": 5_000_000_000}
    done = fetching.run(command=fetching.command_after(FREE_SPACE, "--only", "unet"))
    assert done.returncode == failures.UNCONFIRMED and "--yes" in error_line(done)
    assert fetching.hub.sent == [] and fetching.files() == set()


class Terminal:
    def isatty(self):
        return True


@pytest.mark.parametrize(("answer", "agreed"), [("y", True), (" YES ", True), ("", False), ("n", False)])
def test_on_a_terminal_five_gigabytes_must_be_confirmed(answer, agreed, monkeypatch):
    questions = []
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda text: questions.append(text) or answer)
    fetch_weights.confirm(4_999_999_999, False)
    fetch_weights.confirm(5_000_000_000, True)
    assert not questions
    if agreed:
        fetch_weights.confirm(5_000_000_000, False)
    else:
        with pytest.raises(failures.CannotFetch) as refused:
            fetch_weights.confirm(5_000_000_000, False)
        assert refused.value.code == failures.UNCONFIRMED
    assert len(questions) == 1


def test_the_disk_space_needed_is_that_of_the_step_that_needs_most(tmp_path, monkeypatch):
    """Either converting the encoder needs most, or downloading the UNet beside the converted encoder."""

    def task(name, path, size, dtype=None):
        file = fetch_hub.RemoteFile(path, size, "0")
        return Task(
            ITEMS[name], fetch_hub.Repository("", "", "", (file,)), file, tmp_path / "a" / path, dtype
        )

    def bytes_needed(*tasks):
        usage = fetch_plan.shutil.disk_usage(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(fetch_plan.shutil, "disk_usage", lambda path: usage._replace(free=0))
            with pytest.raises(failures.CannotFetch) as refused:
                fetch_plan.check_disk_space(tasks)
            missing = int(re.search(r"lacks ([\d,]+) bytes", str(refused.value))[1].replace(",", ""))
            patch.setattr(fetch_plan.shutil, "disk_usage", lambda path: usage._replace(free=missing))
            fetch_plan.check_disk_space(tasks)
        return missing

    encoder = task("encoder", "pytorch_model.bin", 1000, "bf16")
    converted = int(1000 * SIZE_RATIOS["bf16"])
    assert bytes_needed(encoder) == 1000 + converted
    assert bytes_needed(encoder, task("unet", "a.bin", 700)) == 1000 + converted
    assert bytes_needed(encoder, task("unet", "a.bin", 1700)) == 1700 + converted
    assert bytes_needed(task("adapter", "p.pth", 100)) == 200


def test_a_disk_that_is_too_small_is_reported_before_the_download(fetching):
    fetching.hub.repositories[LLM4GEN].stated[UNET] = {"size": 1 << 60}
    done = fetching.run("--only", "unet", "--yes")
    assert done.returncode == failures.DISK_PROBLEM and f"{1 << 60:,}" in error_line(done)
    assert fetching.hub.sent == [] and fetching.files() == set()


def test_a_converted_file_fits_into_its_estimated_size():
    assert SIZE_RATIOS.keys() == set(DTYPE_NAMES) and DEFAULT_DTYPE in DTYPE_NAMES
    # The sizes in GB are those that tools/README.md states.
    assert SIZE_RATIOS["bf16"] * 4.91 > 2.45 and SIZE_RATIOS["fp8"] * 4.91 > 1.29


# Files that are brought by hand


def test_files_that_are_brought_by_hand_as_instructed_are_recognised(fetching):
    fetching.publish_models()
    done = fetching.run("--offline", "--only", "adapter")
    assert done.returncode == failures.UNREACHABLE and "offline" in error_line(done)
    assert fetching.hub.api_requests == []
    target = re.search(r"^  to +(.*)$", done.stdout, re.MULTILINE)[1]
    command = shlex.split(re.search(r"^  then  run this.*\n(.*)$", done.stdout, re.MULTILINE)[1])
    (fetching.models / "llm4gen").mkdir(parents=True)
    with open(target, "wb") as file:
        file.write(fetching.hub.repositories[LLM4GEN].files["projector.pth"])
    again = fetching.run("--only", "adapter")
    assert again.returncode == 0 and shlex.join(command) in again.stdout and fetching.hub.api_requests == []
    subprocess.run(command, check=True, capture_output=True)
    load_cross_adapter(fetching.models / ADAPTER)


def test_a_damaged_file_of_the_same_name_is_neither_used_nor_replaced(fetching):
    (fetching.models / "llm4gen").mkdir(parents=True)
    (fetching.models / ADAPTER).write_bytes(b"half")
    done = fetching.run("--only", "adapter")
    assert done.returncode == failures.FAILED and str(fetching.models / ADAPTER) in error_line(done)
    assert (fetching.models / ADAPTER).read_bytes() == b"half" and fetching.hub.sent == []


def test_another_model_of_the_same_name_is_not_used(tmp_path):
    torch.save(tiny.adapter_tensors(), tmp_path / "pytorch_model.bin")
    assert why_unusable(ITEMS["adapter"], tmp_path / "pytorch_model.bin") is None
    assert find_installed(ITEMS["encoder"], [tmp_path], None) is None, (
        "many models have this name, so a wrong one is not an error"
    )
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "rankgen-t5-xl-all.bin")
    with pytest.raises(failures.CannotFetch, match="another model"):
        find_installed(ITEMS["encoder"], [tmp_path], None)


@pytest.mark.parametrize("cause", ["closed", "HF_HUB_OFFLINE"])
def test_without_a_hub_instructions_are_printed(cause, fetching):
    with Hub() as closed:
        pass
    environment = {"HF_ENDPOINT": closed.url} if cause == "closed" else {cause: "1"}
    done = fetching.run(**environment)
    error_line(done)
    assert instructed_folders(done) == {name: str(fetching.models / key) for name, key in FOLDERS.items()}
    for text in (LLM4GEN, RANKGEN, "projector.pth", "pytorch_model.bin", "4,910,000,000"):
        assert text in done.stdout
    assert fetching.files() == set()
