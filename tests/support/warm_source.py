"""Imports the packages that it is given, then forks a process for each request; see warm_start.py.

A request is a line of JSON on standard input, and the answer is the fork's process id. Standard library only.
"""

import atexit
import contextlib
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import traceback


def requested():
    """Forks for each request. Returns the request in the fork; this process ends with its input."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            return json.loads(line)
        print(pid, flush=True)
    os._exit(0)  # to take the packages down again takes seconds


def become(command, folder, environment, log):
    """Makes this fork what a new process of the command would be, and runs the command's script."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        opened = os.open(path, flags, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    os.dup2(1, 2)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # A shell's background job ignores it, and so would this server, whose end would take ten seconds.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    script, *arguments = command[1:]
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(script)
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        # As multiprocessing ends its forks: what libraries do at the end of a process may wait for threads that only
        # the parent has. Nobody is told the exit code.
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        # An older ComfyUI requires fewer packages. What they print is no answer.
        with contextlib.suppress(ImportError), contextlib.redirect_stdout(sys.stderr):
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks leave no zombies
    become(**requested())
