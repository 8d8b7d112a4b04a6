"""A download that is interrupted is resumed, and one that fails is reported in one line."""

import shutil
import signal
import sys

import pytest
from huggingface_hub import file_download

from fetch import failures
from fetch import hub as fetch_hub
from fetching import FREE_SPACE, LLM4GEN, MEBIBYTE, OLDEST, UNET, error_line, wait_for
from hub_server import Repository

SIZE, FAULT = 24 * MEBIBYTE, 15 * MEBIBYTE  # the libraries write 10 MiB at a time
TUNED = "diffusion_models/llm4gen_sd15_unet.safetensors"
SCRATCH = "diffusion_models/.llm4gen-fetch-unet"
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


def part(fetching):
    return fetching.models / SCRATCH / "diffusion_pytorch_model.safetensors.part"


def stall(fetching):
    """Starts a run whose download stalls in the middle, when part of the file is on the disk."""
    fetching.publish_unet(SIZE)
    fetching.hub.stall_at = FAULT
    process = fetching.start("--only", "unet")
    assert fetching.hub.stalled.wait(60)
    wait_for(lambda: part(fetching).exists() and part(fetching).stat().st_size >= 10 * MEBIBYTE)
    return process


@pytest.mark.parametrize("library", ["newest", "oldest"])
def test_a_lost_connection_is_resumed(library, fetching):
    if library == "oldest" and not OLDEST.is_dir():
        pytest.skip("NO OLD LIBRARIES: run `python tools/dev.py setup`.")
    fetching.publish_unet(SIZE)
    fetching.hub.cut_at = FAULT
    fetching.hub.repositories[LLM4GEN].licence = "mit"
    done = fetching.run("--only", "unet", **({"PYTHONPATH": str(OLDEST)} if library == "oldest" else {}))
    assert done.returncode == 0 and (fetching.models / TUNED).read_bytes() == fetching.unet
    assert "licence: mit" in done.stdout
    assert SIZE <= fetching.hub.bytes_sent(UNET) <= SIZE + 6 * MEBIBYTE


@needs_signals
def test_a_killed_run_is_resumed_at_any_byte_with_the_same_commit(fetching):
    with stall(fetching) as process:
        process.kill()
    assert fetching.files() == {f"{SCRATCH}/manifest.json", f"{SCRATCH}/{part(fetching).name}"}
    wait_for(lambda: fetching.hub.sent)
    before, size, first = fetching.hub.bytes_sent(UNET), 1_234_567, fetching.unet
    with part(fetching).open("r+b") as file:
        file.truncate(size)
    fetching.hub.older[LLM4GEN] = fetching.hub.repositories[LLM4GEN]
    fetching.hub.repositories[LLM4GEN] = Repository({UNET: b"newer"}, commit="d" * 40)
    done = fetching.run("--only", "unet")
    assert done.returncode == 0 and f"{size:,} already downloaded" in done.stdout
    assert fetching.hub.bytes_sent(UNET) - before == SIZE - size
    assert fetching.files() == {TUNED} and (fetching.models / TUNED).read_bytes() == first


@needs_signals
def test_a_killed_run_is_resumed_when_its_commit_was_removed(fetching):
    with stall(fetching) as process:
        process.kill()
    size = part(fetching).stat().st_size
    # The history was rewritten, and still holds the same file.
    fetching.hub.repositories[LLM4GEN].commit = "d" * 40
    done = fetching.run("--only", "unet")
    assert done.returncode == 0 and f"commit {'d' * 40}" in done.stdout
    assert f"{size:,} already downloaded" in done.stdout
    assert (fetching.models / TUNED).read_bytes() == fetching.unet


def test_a_network_that_does_not_come_back_is_reported_with_advice_to_resume(fetching):
    fetching.hub.repositories[LLM4GEN].stated[UNET] = {"size": 100_001}  # one byte more than the server sends
    done = fetching.run("--only", "unet")
    assert done.returncode == failures.UNREACHABLE and "are kept: run this again" in error_line(done)
    assert part(fetching).stat().st_size == 100_000


@needs_signals
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_keeps_its_partial_download(number, code, fetching):
    with stall(fetching) as process:
        process.send_signal(number)
        stderr = process.communicate()[1]
    assert process.returncode == code and "interrupted" in stderr and "Traceback" not in stderr
    assert part(fetching).stat().st_size >= 10 * MEBIBYTE
    assert fetching.run("--only", "unet").returncode == 0
    assert fetching.files() == {TUNED} and (fetching.models / TUNED).read_bytes() == fetching.unet


@needs_signals
def test_after_a_kill_during_the_conversion_nothing_is_downloaded_again(fetching):
    fetching.publish_models()
    kill = "import os, fetch.task; fetch.task.convert = lambda *_: os.kill(os.getpid(), 9)"
    assert (
        fetching.run(command=fetching.command_after(kill, "--only", "adapter")).returncode == -signal.SIGKILL
    )
    sent = list(fetching.hub.sent)
    assert fetching.run("--only", "adapter").returncode == 0
    assert fetching.hub.sent == sent and fetching.files() == {"llm4gen/projector.safetensors"}


@needs_signals
def test_two_runs_do_not_download_the_same_file(fetching):
    with stall(fetching) as process:
        done = fetching.run("--only", "unet")
        assert done.returncode == failures.FAILED and "Another run" in error_line(done)
        process.kill()


def test_a_partial_download_of_another_file_is_not_resumed(fetching):
    part(fetching).parent.mkdir(parents=True)
    part(fetching).write_bytes(b"half of something else")
    assert fetching.run("--only", "unet").returncode == 0
    assert (fetching.models / TUNED).read_bytes() == fetching.unet


def test_a_library_that_cannot_resume_downloads_the_whole_file(fetching):
    change = "import fetch.hub; fetch.hub.resumable_http_get = lambda: None"
    done = fetching.run(command=fetching.command_after(change, "--only", "unet"))
    assert done.returncode == 0 and (fetching.models / TUNED).read_bytes() == fetching.unet
    assert fetching.files() == {TUNED}


def test_a_library_that_cannot_resume_is_recognised_by_its_functions(monkeypatch):
    assert fetch_hub.resumable_http_get() is file_download.http_get
    monkeypatch.setattr(file_download, "http_get", lambda url, temp_file, *, headers=None: None)
    assert fetch_hub.resumable_http_get() is None
    monkeypatch.delattr(file_download, "http_get")
    assert fetch_hub.resumable_http_get() is None


def test_a_file_whose_checksum_differs_from_the_hubs_is_deleted(fetching):
    fetching.hub.repositories[LLM4GEN].stated[UNET] = {"sha256": "0" * 64}
    done = fetching.run("--only", "unet")
    assert (
        done.returncode == failures.DAMAGED and "deleted" in error_line(done) and "0" * 64 in error_line(done)
    )
    assert fetching.files() == set() and not (fetching.models / SCRATCH).exists()
    fetching.hub.repositories[LLM4GEN].stated.clear()
    assert fetching.run("--only", "unet").returncode == 0


@pytest.mark.parametrize(("status", "advice"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "--revision")])
def test_a_refusal_of_the_hub_is_reported_in_one_line(status, advice, fetching):
    fetching.hub.repositories[LLM4GEN].status = status
    done = fetching.run("--only", "unet")
    line = error_line(done)
    assert done.returncode == failures.REFUSED and str(status) in line and advice in line and LLM4GEN in line
    assert fetching.files() == set()


def test_a_token_gives_access_to_a_repository_that_needs_one(fetching):
    fetching.hub.repositories[LLM4GEN].token = "hf_secret"
    assert fetching.run("--only", "unet", HF_TOKEN="hf_wrong").returncode == failures.REFUSED
    done = fetching.run("--only", "unet", HF_TOKEN="hf_secret")
    assert done.returncode == 0 and "hf_secret" not in done.stdout + done.stderr


def test_if_a_file_is_not_published_the_published_files_are_named(fetching):
    del fetching.hub.repositories[LLM4GEN].files[UNET]
    done = fetching.run("--only", "unet")
    assert done.returncode == failures.REFUSED and "projector.pth" in error_line(done)


def test_a_full_disk_is_reported_in_one_line_and_the_partial_download_is_kept(fetching):
    """The run downloads onto a real disk of 12 MiB, which reports much more free space than it has."""
    fetching.publish_unet(SIZE)
    folder = fetching.models / "diffusion_models"
    folder.mkdir(parents=True)
    show = f'du -b "{part(fetching)}" && ls "{folder}"'
    inside = f'mount -t tmpfs -o size=12m none "{folder}" && {{ "$@"; code=$?; {show}; exit $code; }}'
    unshared = ["unshare", "-rm", "sh", "-c", inside, "sh"]
    if shutil.which("unshare") is None or fetching.run(command=[*unshared, "true"]).stderr.startswith(
        "unshare"
    ):
        pytest.skip("no disk can be mounted here")
    done = fetching.run(command=[*unshared, *fetching.command_after(FREE_SPACE, "--only", "unet")])
    assert done.returncode == failures.DISK_PROBLEM and "No space left" in error_line(done)
    downloaded = int(done.stdout.splitlines()[-1].split()[0])
    assert downloaded >= 10 * MEBIBYTE
