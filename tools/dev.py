"""The developer's commands: `python tools/dev.py setup | demo | serve | check | test | bench | bundle | pictures`.

Runs on a bare Python 3.10 or newer. Whatever needs torch or ComfyUI runs in a child process under ComfyUI's Python.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bundle.make import NAME, make_bundle
from demo_model import models as demo_model
from host.comfyui import (
    HOST_DIR,
    ROOT,
    TOOLS,
    HostError,
    Installation,
    end_cleanly_when_terminated,
    given_installation,
)
from sandbox.code_checks import check_code
from sandbox.install import NEWEST, OLDEST, REQUIREMENTS_DEV, setup
from sandbox.model_choice import DEMO, make_standins, with_present_models
from sandbox.server import Server
from sandbox.smollm2 import SMOLLM2, fetch_smollm2
from sandbox.workflow import TEXT_TO_IMAGE, read_workflow

STOP_SECONDS = 30  # given to a child to stop its server before it is killed
PASSED, FAILED, NOTHING_SELECTED = 0, 1, 5  # pytest's exit codes
# Each worker runs whole files, with a server and a browser of its own. More would not fit into small machines.
WORKERS = 2
THREADS = str(max(1, (os.cpu_count() or 1) // WORKERS))  # for torch in each worker
# In the order that tests/conftest.py gives them, because xdist would sort the files by their number of tests.
IN_PARALLEL = ("-n", str(WORKERS), "--dist", "loadfile", "--no-loadscope-reorder")
# The oldest ComfyUI has a cache of its own, so that --lf means the newest's failures.
ON_OLDEST = ("-m", "floor", "-o", f"cache_dir={HOST_DIR / 'pytest-floor'}")
TEST_PACKAGES = ("pytest", "xdist", "diffusers", "gguf")
CHECK_PACKAGES = ("ruff", "mypy")


def main(arguments: Sequence[str] | None = None) -> int:
    options, extra = _parse(arguments)
    end_cleanly_when_terminated()
    try:
        # Children run in other folders, so a relative path is resolved here.
        models = [path.expanduser().resolve() for path in options.models]
        installation = _installation(options)
        if options.comfyui and not models and (installation.comfyui / "models").is_dir():
            models = [installation.comfyui / "models"]
        return COMMANDS[options.command](installation, models, options, extra)
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run_setup(host: Installation, models: list[Path], options: argparse.Namespace, extra: list[str]) -> int:
    print(f"ready: ComfyUI in {host.comfyui}, run by {host.python}")
    return 0


def run_demo(host: Installation, models: list[Path], options: argparse.Namespace, extra: list[str]) -> int:
    arguments = ["--comfyui", host.comfyui, *extra]
    return run_tool(host, "sandbox.demo", *arguments, *(["--models", *models] if models else []))


def run_check(host: Installation, models: list[Path], options: argparse.Namespace, extra: list[str]) -> int:
    _require(host, CHECK_PACKAGES)
    return PASSED if check_code(host) else FAILED


def run_test(host: Installation, models: list[Path], options: argparse.Namespace, extra: list[str]) -> int:
    _require(host, TEST_PACKAGES)
    if not extra and run_check(host, models, options, extra) != PASSED:
        return FAILED
    if options.no_host:
        command = [host.python, "-m", "pytest", *IN_PARALLEL, "-m", "not host", *extra]
        return run_child(host, command, OMP_NUM_THREADS=THREADS)
    # A selection of tests is soon done in one process, which shows each test as it runs.
    command = [host.python, "-m", "pytest", *(extra or IN_PARALLEL)]
    threads = {} if extra else {"OMP_NUM_THREADS": THREADS}
    if options.comfyui:
        print(f"test: on this ComfyUI alone, not on {OLDEST.version} as well: {host.comfyui}", flush=True)
        return run_child(host, command, **threads)
    print(f"test: on ComfyUI {NEWEST.version}", flush=True)
    newest = run_child(host, command, **threads)
    if newest not in (PASSED, FAILED):
        return newest
    print(f"test: marked floor, on ComfyUI {OLDEST.version}", flush=True)
    oldest = run_child(replace(host, comfyui=OLDEST.folder), [*command, *ON_OLDEST], **threads)
    if extra and oldest == NOTHING_SELECTED:
        oldest = PASSED
    return newest or oldest


def run_bench(host: Installation, models: list[Path], options: argparse.Namespace, extra: list[str]) -> int:
    name, rest = (extra[0], extra[1:]) if extra[:1] and extra[0] in BENCHMARKS else ("conditioning", extra)
    if name == "binding":
        rest = ["--comfyui", str(host.comfyui), *(["--models", *map(str, models)] if models else []), *rest]
    if name == SCENES:
        return run_tool(host, "demo_model.table", *places_of_the_demo_model(host), *rest)
    return run_tool(host, f"bench.{name}", *rest)


def run_bundle(host: Installation, models: list[Path], options: argparse.Namespace, extra: list[str]) -> int:
    made = make_bundle(host, options.out)
    print(
        f"{made}: {made.stat().st_size / 1e6:.1f} MB. On the machine with the GPU: python3 {made.name} --help"
    )
    return 0


def run_pictures(
    host: Installation, models: list[Path], options: argparse.Namespace, extra: list[str]
) -> int:
    for name in ("demo_prompts", "thumbnails", "screenshots"):
        if code := run_tool(host, f"pictures.{name}", "--comfyui", host.comfyui):
            return code
    return PASSED


def run_serve(host: Installation, models: list[Path], options: argparse.Namespace, extra: list[str]) -> int:
    places = [*models, make_standins(host), demo_model.demo_models(host)]
    print("starting ComfyUI ...", flush=True)
    with Server(host, HOST_DIR / "serve", places, port=options.port, listen=options.listen) as server:
        workflow, chosen = with_present_models(
            read_workflow(TEXT_TO_IMAGE), server.get("/object_info"), models
        )
        server.save_workflow(TEXT_TO_IMAGE.name, workflow)
        server.save_workflow(f"{DEMO}.json", read_workflow(demo_model.GRAPH))
        for choice in chosen:
            print(f"  {choice}")
        print(f"open {server.url}")
        print(f"What the demo draws, with its small model: sidebar, Workflows, {DEMO}.")
        print(f"The workflow with these weights: sidebar, Workflows, {TEXT_TO_IMAGE.stem}.")
        print("The workflow as published: Templates, llm4gen; or drag this file into the page:")
        print(f"  {TEXT_TO_IMAGE}")
        print(f"Pictures are saved in {server.output}. Press Ctrl-C to stop.", flush=True)
        code = server.wait()
        raise HostError(f"ComfyUI ended by itself with exit code {code}. Its log is {server.log}")


def run_train_demo(
    host: Installation, models: list[Path], options: argparse.Namespace, extra: list[str]
) -> int:
    return run_tool(host, "demo_model.training", *places_of_the_demo_model(host), *extra)


def places_of_the_demo_model(host: Installation) -> tuple[str | Path, ...]:
    """Raises: HostError if its LLM cannot be had."""
    fetch_smollm2(host.python)
    return ("--comfyui", host.comfyui, "--llm", SMOLLM2, "--folder", HOST_DIR / "demo_model")


SCENES = "scenes"
BENCHMARKS = ("conditioning", "encoders", "sampling", "training", "binding", SCENES)

COMMANDS = {
    "setup": run_setup,
    "demo": run_demo,
    "serve": run_serve,
    "check": run_check,
    "test": run_test,
    "bench": run_bench,
    "bundle": run_bundle,
    "pictures": run_pictures,
    "train-demo": run_train_demo,
}


def run_tool(host: Installation, module: str, *arguments: str | Path) -> int:
    """Runs a module of tools/ and returns its exit code."""
    return run_child(host, [host.python, "-m", module, *arguments], folder=TOOLS)


def run_child(
    host: Installation, command: Sequence[str | Path], folder: Path = ROOT, **variables: str
) -> int:
    """Runs a command in a folder and returns its exit code. When this process is ended, the command is ended too.

    variables: for the command's environment, beside our own.
    """
    environment = {**variables, **host.environment(), "LLM4GEN_COMFYUI": str(host.comfyui)}
    process = subprocess.Popen(list(map(str, command)), cwd=folder, env=environment)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # the terminal sent Ctrl-C to the child as well, which is stopping what it started
        raise
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
    return code if code >= 0 else 128 - code  # as shells report a child that was ended by a signal


def setup_for_tests() -> Installation:
    host = setup(OLDEST)
    try:
        fetch_smollm2(host.python)
    except HostError as error:
        print(f"setup: there is no real LLM, so its tests will be skipped. {error}", flush=True)
    return host


def _require(host: Installation, packages: Sequence[str]) -> None:
    """Raises: HostError if the installation's Python lacks a package."""
    for package in packages:
        # Only looked for, because importing it would take seconds.
        probe = f"import importlib.util, sys; sys.exit(not importlib.util.find_spec({package!r}))"
        command = [str(host.python), "-c", probe]
        if subprocess.run(command, capture_output=True, env=host.environment(), check=False).returncode:
            raise HostError(f"{host.python} lacks {package}. The tests need what {REQUIREMENTS_DEV} lists.")


def _installation(options: argparse.Namespace) -> Installation:
    if options.comfyui is None:
        if options.python is not None:
            raise HostError(
                "--python names the Python of a ComfyUI that you have: name its folder with --comfyui as well."
            )
        if options.command == "test" and options.no_host:
            return setup(with_packages=False)
        return setup_for_tests() if options.command in ("setup", "test") else setup()
    python = shutil.which(options.python.expanduser()) if options.python else sys.executable
    if python is None:
        raise HostError(
            f"{options.python} is not a program: --python must name the Python that runs ComfyUI."
        )
    # Not resolved: in a virtual environment, python is a link that leads out of it.
    return given_installation(options.comfyui, Path(os.path.abspath(python)))


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument(
        "--comfyui", type=Path, metavar="DIR", help="use the ComfyUI in DIR, and change nothing in it"
    )
    common.add_argument(
        "--python", type=Path, metavar="EXE", help="the Python that runs it (default: this one)"
    )
    common.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        action="append",
        default=[],
        help="a ComfyUI models folder with real weights (default, with --comfyui: DIR/models)",
    )
    parser = argparse.ArgumentParser(prog="dev.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, parents=[common], help=text, description=text, allow_abbrev=False)

    add("setup", "install two versions of ComfyUI, and what the tests need, into .host/")
    add(
        "demo",
        "run the text-to-image workflow in ComfyUI; further arguments, such as --steps 2, go to tools/sandbox/demo.py",
    )
    serve = add("serve", "run ComfyUI with the pack in it until Ctrl-C")
    serve.add_argument("--port", type=int, help="(default: a free one)")
    serve.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS", help="(default: 127.0.0.1)")
    add("check", "run ruff and mypy")
    test = add(
        "test",
        f"run ruff and mypy, then the tests on ComfyUI {NEWEST.version}, then those marked floor on "
        f"{OLDEST.version}; all must pass. Further arguments select tests: they go to pytest both times, and ruff and "
        "mypy do not run. With --comfyui: all tests, on that ComfyUI alone",
    )
    test.add_argument(
        "--no-host",
        action="store_true",
        help="only ruff, mypy and the tests that run without ComfyUI. Of ComfyUI only the files are needed, not its "
        "packages",
    )
    add(
        "bench",
        "measure speed and memory against the published way; `bench encoders` compares encoder files, `bench training` "
        "measures the trainer, `bench binding` draws prompts with your weights, with and without the LLM's half, "
        "`bench scenes` counts what the trained demo model gets right. Further arguments, such as --device cuda, go to "
        "the module of that name in tools/bench",
    )
    bundle = add(
        "bundle", "write one file that tests and measures the pack on a machine with a GPU and no network"
    )
    bundle.add_argument(
        "--out",
        type=Path,
        default=HOST_DIR,
        metavar="PATH",
        help=f"a folder or a file (default: .host/{NAME})",
    )
    add("pictures", "draw the pictures of the README, the help pages and the example workflows anew")
    add(
        "train-demo",
        "train the small text-to-image model of the demo, for an hour on a CPU; the same command goes on. Further "
        "arguments, such as steps=1000, go to tools/demo_model/training.py",
    )
    options, extra = parser.parse_known_args(arguments)
    if extra and options.command not in ("demo", "test", "bench", "train-demo"):
        parser.error(f"{options.command} does not know {' '.join(extra)}")
    return options, extra


if __name__ == "__main__":
    sys.exit(main())
