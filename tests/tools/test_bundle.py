"""The file for a machine with a GPU: what is in it, what its entry says, and what is made of the parts that it runs.

The whole file is not made here, because that would download 43 packages; everything else in it is real.
"""

import json
import subprocess
import sys
import tarfile
import zipfile

import pytest

from bundle import make, on_device
from bundle.make import make_bundle
from bundle.on_device import Part
from bundle.packages import PAGES, WHEELS, version_of
from bundle.unpack import ARCHIVE, WANTED
from host.comfyui import HOST_DIR, HostError
from paths import COMFYUI, ROOT

PLACES = (ROOT, COMFYUI, HOST_DIR, sys.prefix, sys.base_prefix)


@pytest.fixture(scope="module")
def bundle(host, module_path):
    """The file without the downloaded packages."""
    return make_bundle(host, module_path / "test.pyz", wheels=())


@pytest.fixture(scope="module")
def unpacked(bundle, module_path):
    folder = module_path / "unpacked"
    with zipfile.ZipFile(bundle) as file, file.open(ARCHIVE) as archive, tarfile.open(fileobj=archive) as tar:
        tar.extractall(folder)
    return folder


def test_without_packages_it_takes_a_quarter_of_what_is_allowed(bundle):
    assert bundle.stat().st_size < make.MAX_BYTES / 4


def test_a_file_that_became_too_large_is_refused(bundle, monkeypatch):
    monkeypatch.setattr(make, "MAX_BYTES", 1_000_000)
    with pytest.raises(HostError, match=r"has \d\.\d MB, and 1 are allowed"):
        make.check_size(bundle)


def test_it_holds_the_pack_its_tests_and_comfyuis_code_but_no_model_and_no_picture(unpacked):
    for name in ("llm4gen/tests/device/conftest.py", "llm4gen/tools/dev.py", "ComfyUI/main.py"):
        assert (unpacked / name).is_file()
    assert (unpacked / "ComfyUI/comfy/text_encoders/t5_tokenizer/tokenizer.json").is_file()
    assert [*(unpacked / "ComfyUI/models").iterdir(), *(unpacked / "ComfyUI/custom_nodes").iterdir()] == []
    assert [path for path in unpacked.rglob("*") if path.suffix in (".jpg", ".pyc")] == []


def test_nothing_in_it_tells_where_or_by_whom_it_was_made(bundle, unpacked):
    with zipfile.ZipFile(bundle) as file, file.open(ARCHIVE) as archive, tarfile.open(fileobj=archive) as tar:
        assert {(member.uid, member.gid, member.uname, member.mtime) for member in tar} == {(0, 0, "", 0)}
    places = {str(place).encode() for place in PLACES if len(str(place)) > 5}  # "/usr" may stand anywhere
    files = [path for path in unpacked.rglob("*") if path.is_file()]
    assert [path for path in files if any(place in path.read_bytes() for place in places)] == []


def test_the_packages_have_the_versions_of_set_up():
    for name in (*WHEELS, *PAGES, "av"):
        assert version_of(name.replace("_", "-").lower()), name


def test_pyav_is_replaced_by_a_module_whose_every_name_exists(unpacked):
    program = "import av, av.container; from av.error import A; av.b.c, issubclass(A, Exception); print(av.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=unpacked / "packages", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(unpacked / "packages" / "av" / "__init__.py")


@pytest.mark.skipif(sys.version_info[:2] == WANTED, reason="this is the Python that the bundle is for")
def test_another_python_is_refused(bundle):
    done = subprocess.run([sys.executable, bundle], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "packages in this file are for Python 3.12 on Linux" in done.stderr


def test_without_a_gpu_its_entry_says_so(unpacked, host):
    if host.has_accelerator:
        pytest.skip("there is a GPU here")
    places = ("--folder", str(unpacked), "--out", str(unpacked / "out"))
    done = subprocess.run(
        [sys.executable, "-m", "bundle.on_device", *places],
        cwd=unpacked / "llm4gen" / "tools",
        env=host.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "torch sees no GPU here" in done.stderr


def test_each_part_is_told_in_words_also_one_that_fails_or_whose_time_is_over(tmp_path, host, capsys):
    programs = {
        "good": "print('| a |')",
        "bad": "print('reason'); exit(3)",
        "slow": "import time; time.sleep(99)",
    }
    parts = [Part(name, ["-c", program], 0.9) for name, program in programs.items()]
    results = on_device.run_all(parts, tmp_path, 6, host)
    assert [result.outcome for result in results.values()] == [
        "exit code 0",
        "exit code 3",
        "its time was over",
    ]
    on_device.report(results, tmp_path)
    printed = capsys.readouterr().out
    assert "reason" in printed and printed.splitlines()[-3].startswith("| slow | its time was over |")
    assert set(json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))) == set(programs)


def test_the_tests_results_are_counted_and_failures_are_named(tmp_path):
    case = '<testcase classname="tests.a" name="test_{}">{}</testcase>'
    cases = case.format("one", "") + case.format("two", "<failure/>") + case.format("three", "<skipped/>")
    text = f'<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">{cases}</testsuite></testsuites>'
    (tmp_path / "tests.xml").write_text(text, encoding="utf-8")
    result = on_device.Result(1, 0.0, "exit code 1")
    on_device.add_numbers(result, Part("tests", []), tmp_path)
    assert result.outcome == "exit code 1, 1 passed, 1 failed, 1 skipped"
    assert result.failed == ["tests.a::test_two"]
