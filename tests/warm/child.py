"""A process that is forked, and from then on is what ``python -m MODULE`` would be.

Not a worker and no thread: it has its own number, parent, session, folder, environment, open files and command line
(also in /proc, where others look for it), the signals' default actions, and it runs the module as ``__main__`` to
its exit code. Only the libraries need not be loaded again.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import os
import pickle
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

#: The module that this process was made to run, "" in one that was started plainly.
own = ""


def start(
    command: Sequence[str],
    env: Mapping[str, str],
    cwd: str | None,
    files: Mapping[int, int],
    *,
    new_session: bool = False,
    prepare: Callable[[], object] | None = None,
) -> int:
    """Fork a process that runs ``command`` (python, -m, MODULE, …); returns its number.

    ``files``: descriptors of the child, and which of ours they are; all others are closed in it. ``prepare`` runs in
    it as Popen's ``preexec_fn`` does. Raises OSError for a folder that is not there, and SubprocessError when
    ``prepare`` fails.
    """
    failure, told = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(told)
        with os.fdopen(failure, "rb") as file:
            words = file.read()
        if words:
            os.waitpid(pid, 0)
            raise pickle.loads(words)
        return pid
    code = 70
    try:
        told = _files(files, told)
        try:
            if cwd is not None:
                os.chdir(cwd)
            if new_session:
                os.setsid()
        except OSError as error:
            error.filename = cwd
            _fail(told, error)
        _forget(command, env)
        try:
            if prepare is not None:
                prepare()
        except BaseException:  # as Popen does it
            _fail(told, subprocess.SubprocessError("Exception occurred in preexec_fn."))
        _title(command, env)
        os.close(told)
        code = _run(command)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _fail(told: int, error: BaseException) -> NoReturn:
    os.write(told, pickle.dumps(error))
    os._exit(255)


def _files(files: Mapping[int, int], told: int) -> int:
    """Have exactly these descriptors, and ``told`` under the number that is returned."""
    above = max(2, *files) + 1
    told = fcntl.fcntl(told, fcntl.F_DUPFD_CLOEXEC, above)
    safe = {target: fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, above) for target, source in files.items()}
    for target, source in safe.items():
        os.dup2(source, target)
    kept = {0, 1, 2, told, *files}
    for file in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if file not in kept:
            with contextlib.suppress(OSError):  # the listing's own is closed already
                os.close(file)
    return told


def _forget(command: Sequence[str], env: Mapping[str, str]) -> None:
    """Undo what this process has of the one that it was forked from."""
    global own  # noqa: PLW0603
    own = command[2]
    vars(weakref.finalize)["_registry"].clear()  # what libraries would do at the end of the one before
    gc.freeze()  # what is of before the fork is never collected: its files are closed, their numbers are others'
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # Python's own beginning
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    tempfile.tempdir = None
    sys.path[0] = str(Path.cwd())
    sys.argv = ["-m", *command[3:]]
    sys.orig_argv = list(command)
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.modules.pop(own, None)  # it may be imported as well as run, as in a process that begins anew


def _title(command: Sequence[str], env: Mapping[str, str]) -> None:
    """Show the command and the environment in /proc, within the room that the first process had for its own."""
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    # proc(5) counts from 1 and has the name, which is cut off here, as the second: arg_start is the 48th.
    places = [int(field) for field in fields[48 - 3 : 52 - 3]]
    for begin, end, words in (
        (places[0], places[1], command),
        (places[2], places[3], [f"{k}={v}" for k, v in env.items()]),
    ):
        text = b"".join(os.fsencode(word) + b"\0" for word in words)
        ctypes.memmove(begin, text.ljust(end - begin, b"\0")[: end - begin - 1] + b"\0", end - begin)


def _run(command: Sequence[str]) -> int:
    """The module as ``__main__``; its exit code, as the interpreter would have it."""
    code = 0
    try:
        # What `python -m` itself calls: run_module would leave a half of it to us.
        vars(runpy)["_run_module_as_main"](command[2])
    except SystemExit as error:
        if isinstance(error.code, int):
            code = error.code
        elif error.code is not None:
            print(error.code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    vars(threading)["_shutdown"]()
    vars(atexit)["_run_exitfuncs"]()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return code & 0xFF
