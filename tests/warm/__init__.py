"""Processes of bugurt's own that start at once, forked from one that has the libraries loaded.

Importing torch and transformers takes five seconds of a processor, the other stages' libraries half a second each,
and a test that starts a pipeline pays for all of them. Within

    with warm.processes():
        ...

each ``subprocess`` of ``[sys.executable, "-m", MODULE, ...]`` is forked from a warm server, if MODULE is in ``OWN``
and the environment has the same variables for the libraries as the server (``LIBRARIES``: they are read when those
are loaded). The first one there starts the server; all tests of a session share it. What comes out is a process
like any other (see ``tests.warm.child``): a supervisor's children are really its own, signals and exit codes are
real, and /proc shows the command and the environment that it would. Everything else starts plainly, as it does with
a ``preexec_fn`` or with ``OMP_NUM_THREADS`` other than 1.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.warm import child

ROOT = Path(__file__).resolve().parents[2]
PLAIN = subprocess.Popen
SUPERVISOR = "cli.clusters.supervisor"
OWN = {
    SUPERVISOR, "cli.driver", "jobs.scrape", "jobs.preprocess", "jobs.train", "jobs.generate",
    "tests.sample_stage", "tests.telegram.clients", "tests.train.agreement", "tests.train.attempt",
}  # fmt: skip
#: Beginnings of the variables that the interpreter and the libraries read when they are loaded.
LIBRARIES = (
    "ACCELERATE", "ARROW", "CT2_", "CUDA", "HF_", "HOME", "HUGGINGFACE", "KMP", "LANG", "LC_", "LD_", "MALLOC",
    "MKL", "OMP", "OPENBLAS", "PYTHON", "RAYON", "SAFETENSORS", "TOKENIZERS", "TORCH", "TRANSFORMERS", "XDG",
)  # fmt: skip
#: Of those, what torch sets itself wherever it is imported, and reads whenever it compiles.
SET_BY_TORCH = "TORCHINDUCTOR_CACHE_DIR"
#: What the server has of these variables; whoever wants to be forked from it needs the same.
ENV = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "TOKENIZERS_PARALLELISM": "false",
}
#: The server's address in its own process and in those that were forked from it.
address = ""
#: Has the server begin, if it has not: asked before the first process of ``when_needed``.
_begin: Callable[[], object] | None = None


def libraries(env: Mapping[str, str]) -> dict[str, str]:
    """The variables of an environment that libraries read when they are loaded."""
    return {k: v for k, v in env.items() if k.startswith(LIBRARIES) and k != SET_BY_TORCH}


class Popen(subprocess.Popen[Any]):
    """A ``subprocess.Popen`` that forks where it can."""

    _line: socket.socket | None = None  # to the server, which tells on it how the process ended
    _ended: int | None = None

    def _execute_child(
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: bool, pass_fds: Sequence[int], cwd: Any, env: Any,
        startupinfo: Any, creationflags: Any, shell: bool, p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int,
        errread: int, errwrite: int, *rest: Any,
    ) -> None:  # fmt: skip
        restore_signals, gid, gids, uid, umask, new_session, group = rest
        env = dict(os.environ if env is None else env)
        usual = not shell and executable is None and restore_signals and close_fds and group == -1 and umask < 0
        usual = usual and gid is None and gids is None and uid is None
        command = list(map(str, args)) if usual and isinstance(args, list) else []
        # A supervisor has one thread and nothing but the standard library in use, so it forks by itself. Other
        # processes ask the server.
        here = child.own == SUPERVISOR
        if not _can_fork(command, env) or (preexec_fn is not None and not here):
            vars(PLAIN)["_execute_child"](
                self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
                p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *rest,
            )  # fmt: skip
            return
        given = (p2cread, c2pwrite, errwrite)
        files = {i: i if fd == -1 else fd for i, fd in enumerate(given)} | {fd: fd for fd in pass_fds}
        folder = None if cwd is None else os.fspath(cwd)
        if here:
            self.pid = child.start(command, env, folder, files, new_session=new_session, prepare=preexec_fn)
        else:
            self.pid, self._line = _ask(command, env, folder or str(Path.cwd()), files, new_session=new_session)
        self._child_created = True
        vars(PLAIN)["_close_pipe_fds"](self, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._line is None:
            found: tuple[int, int] = vars(PLAIN)["_try_wait"](self, wait_flags)
            return found
        if self._ended is None:
            self._line.setblocking(wait_flags == 0)
            try:
                words = self._line.recv(64)
            except BlockingIOError:
                return 0, 0
            # Nothing: the server was killed, and nobody knows how its children end.
            self._ended = int(words) if words else 255 << 8
            self._line.close()
        return self.pid, self._ended

    def _internal_poll(self, *arguments: Any, **options: Any) -> int | None:
        if self._line is None:
            code: int | None = vars(PLAIN)["_internal_poll"](self, *arguments, **options)
            return code
        lock = vars(self)["_waitpid_lock"]
        if self.returncode is None and lock.acquire(False):
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            finally:
                lock.release()
        return self.returncode


def _can_fork(command: list[str], env: Mapping[str, str]) -> bool:
    if not address or command[:2] != [sys.executable, "-m"] or len(command) < 3 or command[2] not in OWN:
        return False
    if child.own not in ("", SUPERVISOR) and command[2] != SUPERVISOR:
        return False  # the processes of a training: theirs is the parent that they die with
    theirs, ours = libraries(env), _server_has()
    if command[2] == "tests.telegram.clients":  # what it loads asks for a home only when it is at work
        theirs.pop("HOME", None)
        ours.pop("HOME", None)
    return theirs == ours


def _server_has() -> dict[str, str]:
    return libraries({**_begun_with, **ENV})


#: The environment in which this process, or the server that it was forked from, was started.
_begun_with = dict(os.environ)


def _ask(
    command: list[str], env: Mapping[str, str], cwd: str, files: Mapping[int, int], *, new_session: bool
) -> tuple[int, socket.socket]:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if _begin is not None:
        _begin()
    line.connect(address)
    body = {"command": command, "env": env, "cwd": cwd, "files": list(files), "new_session": new_session}
    socket.send_fds(line, [json.dumps(body).encode()], list(files.values()))
    answer = json.loads(line.recv(4096))
    if isinstance(answer, list):
        line.close()
        raise OSError(*answer)
    return answer, line


@functools.cache
def keep_descriptions() -> None:
    """From now on botocore reads its descriptions of services once in this process, not once for each client."""
    from botocore.loaders import JSONFileLoader, Loader

    load = functools.cache(functools.partial(JSONFileLoader.load_file, JSONFileLoader()))
    type.__setattr__(JSONFileLoader, "load_file", lambda self, path: load(path))
    look = Loader.list_available_services
    found: dict[tuple[str, ...], list[str]] = {}  # it looks into four hundred folders

    def services(self: Loader, type_name: str) -> list[str]:
        places = (type_name, *self.search_paths)
        if places not in found:
            found[places] = look(self, type_name)
        return found[places]

    type.__setattr__(Loader, "list_available_services", services)


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Fork what can be forked, here and in the processes that are started from here."""
    with running() as place, using(place):
        yield


@contextlib.contextmanager
def when_needed() -> Iterator[None]:
    """As ``processes``, but the server begins with the first process that can be forked from it."""
    global _begin  # noqa: PLW0603
    with contextlib.ExitStack() as kept:

        def begin() -> None:
            global _begin  # noqa: PLW0603
            kept.enter_context(running())
            _begin = None

        _begin = begin
        try:
            with using(_place()):
                yield
        finally:
            _begin = None


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Within ``when_needed`` or ``processes``: all processes start as they do for everybody."""
    vars(subprocess)["Popen"] = PLAIN
    try:
        yield
    finally:
        vars(subprocess)["Popen"] = Popen


@contextlib.contextmanager
def using(place: str) -> Iterator[None]:
    """As ``processes``, with a server that somebody else keeps (``running``)."""
    global address  # noqa: PLW0603
    before, address = address, place
    vars(subprocess)["Popen"] = Popen
    try:
        yield
    finally:
        address = before
        if not before:
            vars(subprocess)["Popen"] = PLAIN


@contextlib.contextmanager
def running(session: str = "") -> Iterator[str]:
    """The address of the session's server, which runs at least until the end of the block.

    All processes of a test session have the same one; without a session each process has its own.
    """
    place = _place(session)
    with line_to(place) as line:
        line.send(b"{}")
        if not line.recv(1):
            raise RuntimeError(f"the warm server did not start; see {place}.log")
        yield place  # the last one that leaves ends the server


def _place(session: str = "") -> str:
    session = session or os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
    return f"{tempfile.gettempdir()}/bugurt-warm-{os.getuid()}-{session[:40]}"


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One at a time: those who look for a server, start one, or end."""
    with Path(f"{tempfile.gettempdir()}/bugurt-warm-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def line_to(place: str) -> socket.socket:
    """A line to the server of this address, which is started if it is not there."""
    with alone():
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            line.connect(place)
        except OSError:
            Path(place).unlink(missing_ok=True)
            _start_server(place)
            line.connect(place)
    return line


def _start_server(place: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, Path(f"{place}.log").open("w") as log:
        listener.bind(place)
        listener.listen(128)
        # Whoever is forked may show a command and an environment as long as these are.
        room = {f"WARM_ROOM_{i}": "-" * 100_000 for i in range(4)}
        PLAIN(
            [sys.executable, "-m", "tests.warm.server", str(listener.fileno()), place, "-" * 4000],
            env={**_begun_with, **ENV, **room},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            pass_fds=(listener.fileno(),),
            start_new_session=True,
        )
