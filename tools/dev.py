"""The project's commands: `python tools/dev.py setup | demo | serve | test | bench`.

Runs on a bare Python 3.10 or newer; what needs torch or ComfyUI runs as a child under the host's Python.
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

from comfy_server import Server
from host import HOST_DIR, ROOT, Host, HostError, end_cleanly_when_terminated, given_host
from install import NEWEST, OLDEST, setup
from model_choice import make_standins, with_present_models
from real_llm import fetch_real_llm
from workflow import TEXT_TO_IMAGE, read_workflow

TOOLS = ROOT / "tools"
STOP_SECONDS = 30  # that a child gets to stop its server before it is killed
PASSED, FAILED, NOTHING_CHOSEN = 0, 1, 5  # pytest's exit codes
# Each runs whole files and has a server and a browser of its own; more would not fit into small machines.
WORKERS = 2
SPREAD = ("-n", str(WORKERS), "--dist", "loadfile")
# A cache of its own: what fails or passes there must not change what --lf means on the newest.
ON_OLDEST = ("-m", "floor", "-o", f"cache_dir={HOST_DIR / 'pytest-floor'}")


def main(arguments: Sequence[str] | None = None) -> int:
    options, extra = _parse(arguments)
    end_cleanly_when_terminated()
    try:
        # A relative path is meant from where the command is given; children run elsewhere.
        models = [path.expanduser().resolve() for path in options.models]
        host = _host(options)
        if options.comfyui and not models and (host.comfyui / "models").is_dir():
            models = [host.comfyui / "models"]
        return COMMANDS[options.command](host, models, options, extra)
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run_setup(host: Host, models: list[Path], options: argparse.Namespace, extra: list[str]) -> int:
    print(f"ready: ComfyUI in {host.comfyui}, run by {host.python}")
    return 0


def run_demo(host: Host, models: list[Path], options: argparse.Namespace, extra: list[str]) -> int:
    command = [host.python, TOOLS / "demo.py", "--comfyui", host.comfyui]
    return run_child(host, [*command, "--models", *models] if models else command)


def run_test(host: Host, models: list[Path], options: argparse.Namespace, extra: list[str]) -> int:
    for module in ("pytest", "xdist", "diffusers", "gguf"):
        # Looked for, not imported: that takes seconds.
        probe = f"import importlib.util, sys; sys.exit(not importlib.util.find_spec({module!r}))"
        command = [str(host.python), "-c", probe]
        if subprocess.run(command, capture_output=True, env=host.environment(), check=False).returncode:
            raise HostError(
                f"{host.python} lacks {module}: the tests need {TOOLS / 'requirements-dev.txt'} in it."
            )
    # A choice of tests is soon done in one process, which shows them as they run.
    command = [host.python, "-m", "pytest", *(extra or SPREAD)]
    threads = {} if extra else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // WORKERS))}
    if options.comfyui:
        print(f"test: on this ComfyUI alone, not on {OLDEST.version} as well: {host.comfyui}", flush=True)
        return run_child(host, command, **threads)
    print(f"test: on ComfyUI {NEWEST.version}", flush=True)
    newest = run_child(host, command, **threads)
    if newest not in (PASSED, FAILED):
        return newest
    print(f"test: marked floor, on ComfyUI {OLDEST.version}", flush=True)
    oldest = run_child(replace(host, comfyui=OLDEST.folder), [*command, *ON_OLDEST], **threads)
    if extra and oldest == NOTHING_CHOSEN:
        oldest = PASSED
    return newest or oldest


def run_bench(host: Host, models: list[Path], options: argparse.Namespace, extra: list[str]) -> int:
    encoders = extra[:1] == ["encoders"]
    tool = TOOLS / ("bench_encoders.py" if encoders else "bench.py")
    return run_child(host, [host.python, tool, *extra[encoders:]])


def run_serve(host: Host, models: list[Path], options: argparse.Namespace, extra: list[str]) -> int:
    places = [*models, make_standins(host)]
    print("starting ComfyUI ...", flush=True)
    with Server(host, HOST_DIR / "serve", places, port=options.port, listen=options.listen) as server:
        workflow, chosen = with_present_models(
            read_workflow(TEXT_TO_IMAGE), server.get("/object_info"), models
        )
        server.save_workflow(TEXT_TO_IMAGE.name, workflow)
        for choice in chosen:
            print(f"  {choice}")
        print(f"open {server.url}")
        print(f"The workflow, with these weights: sidebar, Workflows, {TEXT_TO_IMAGE.stem}.")
        print("As published: Templates, llm4gen; or drag this file in:")
        print(f"  {TEXT_TO_IMAGE}")
        print(f"Pictures are saved to {server.output}. Ctrl-C ends it.", flush=True)
        code = server.wait()
        raise HostError(f"ComfyUI ended by itself with code {code}; its log: {server.log}")


COMMANDS = {"setup": run_setup, "demo": run_demo, "serve": run_serve, "test": run_test, "bench": run_bench}


def run_child(host: Host, command: Sequence[str | Path], **variables: str) -> int:
    """Runs a command from the repository's root and gives back its exit code; ends it when we are ended.

    variables: of its environment, beside our own.
    """
    environment = {**variables, **host.environment(), "LLM4GEN_COMFYUI": str(host.comfyui)}
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # the terminal gave Ctrl-C to the child too: it is stopping what it started
        raise
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
    return code if code >= 0 else 128 - code  # a child ended by a signal, as shells count it


def setup_for_tests() -> Host:
    host = setup(OLDEST)
    try:
        fetch_real_llm(host.python)
    except HostError as error:
        print(f"setup: no real LLM, whose tests will be skipped. {error}", flush=True)
    return host


def _host(options: argparse.Namespace) -> Host:
    if options.comfyui is None:
        if options.python is not None:
            raise HostError(
                "--python is the Python of an installation of yours: name its folder with --comfyui."
            )
        return setup_for_tests() if options.command in ("setup", "test") else setup()
    python = shutil.which(options.python.expanduser()) if options.python else sys.executable
    if python is None:
        raise HostError(f"{options.python} is no program: --python wants the Python that runs your ComfyUI.")
    # Not resolved: a virtual environment's python is a link, and leads out of it when followed.
    return given_host(options.comfyui, Path(os.path.abspath(python)))


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument(
        "--comfyui", type=Path, metavar="DIR", help="use the ComfyUI in DIR, and change nothing there"
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

    add("setup", "install ComfyUI, newest and oldest, and what the tests need into .host/")
    add("demo", "run the example workflow through ComfyUI, to a picture")
    serve = add("serve", "run ComfyUI with the pack in it until Ctrl-C")
    serve.add_argument("--port", type=int, help="(default: a free one)")
    serve.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS", help="(default: 127.0.0.1)")
    add(
        "test",
        f"run the test suite on ComfyUI {NEWEST.version}, then what is marked floor on {OLDEST.version}; both "
        "must pass. Further arguments go to pytest both times, and may choose nothing for the second. With "
        "--comfyui: all of it, on that ComfyUI alone",
    )
    add(
        "bench",
        "measure against the published way; `bench encoders`: kinds of encoder files. Further arguments go to "
        "tools/bench.py and tools/bench_encoders.py",
    )
    options, extra = parser.parse_known_args(arguments)
    if extra and options.command not in ("test", "bench"):
        parser.error(f"{options.command} does not know {' '.join(extra)}")
    return options, extra


if __name__ == "__main__":
    sys.exit(main())
