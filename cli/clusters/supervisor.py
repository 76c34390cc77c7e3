"""The kubelet of one machine: ``python -m cli.clusters.supervisor FOLDER LOCK`` runs one Job to its end.

It starts the Job's processes (one a shard), starts them again as the Job's policy says, and keeps
``FOLDER/state.json``. It holds the lock that ``LocalCluster.create`` took for it; when it dies, however it dies,
the lock is free and its children get SIGTERM. It imports the standard library only, so that it starts at once.

Each process has a folder for temporary files, ``FOLDER/tmp/…``, and a lock in it that it holds while it lives. So a
supervisor that takes over sees which processes of the one before are still at work (one may be saving a checkpoint),
lets them end first, and removes what nobody holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BACKOFF = 2.0  # seconds before the first restart, doubled for each further one
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
TRY_AGAIN = 75  # sysexits.h EX_TEMPFAIL, as in jobs.specs
INTERRUPTED = 143  # 128 + SIGTERM, as shells count
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


#: A Job's ``pid`` before it has a supervisor: room for the number, which finds a place when the disk is full, too.
ROOM = " " * 20
HELD = ".held"  # the lock in a process's folder for temporary files; the process's number stands in it


def _in_child(supervisor: int, lock: int) -> Callable[[], None]:
    """What a child does after fork: undo the blocked signals, name itself, and end when the supervisor does."""

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.write(lock, str(os.getpid()).encode())
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != supervisor:  # it died before we asked for the signal
                os._exit(INTERRUPTED)

    return prepare


def left_behind(job: Path) -> Iterator[int | None]:
    """Remove the folders for temporary files that no process of a Job holds.

    Gives the numbers of the processes that hold the others; None for one that has not told its number yet.
    """
    for folder in sorted(job.glob("tmp/*")):
        try:
            lock = os.open(folder / HELD, os.O_RDWR)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)  # its lock was not made, or it is gone already
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            text = os.read(lock, 20)
            yield int(text) if text.isdigit() else None
        finally:
            os.close(lock)
    with contextlib.suppress(OSError):  # it is not empty, or not there
        (job / "tmp").rmdir()


class Supervisor:
    """Runs the processes of one Job; single-threaded, driven by SIGCHLD, SIGTERM and the clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        self.shards: int = job["shards"]
        self.command: list[str] = job["command"]
        self.env: dict[str, str] = job["env"]
        self.parallelism: int = job["parallelism"]
        self.cwd: str = job["cwd"]
        self.retries: int = job["retries"]
        self.grace: float = job["grace"]
        self.fatal: list[int] = job["fatal"]
        self.backoff = float(os.environ.get("BUGURT_LOCAL_BACKOFF") or BACKOFF)
        self.started = datetime.now(UTC)
        self.waiting: list[tuple[float, int]] = [(0.0, i) for i in range(self.shards)]
        self.running: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}
        self.failures: dict[int, int] = {}
        self.done: set[int] = set(self._earlier())
        self.failed: dict[int, int] = {}
        self.waiting = [(t, i) for t, i in self.waiting if i not in self.done]
        self.stopping = False

    def _earlier(self) -> list[int]:
        """Shards that a supervisor before this one saw through."""
        try:
            return list(json.loads((self.folder / "state.json").read_text(encoding="utf-8")).get("done", []))
        except (OSError, ValueError):
            return []

    def write(self, state: str, *, reason: str = "", exit_code: int | None = None, ended: bool = False) -> None:
        """Replace ``state.json``."""
        body: dict[str, Any] = {
            "state": state,
            "reason": reason,
            "exit_code": exit_code,
            "restarts": sum(self.failures.values()) - sum(1 for s in self.failed if s in self.failures),
            "done": sorted(self.done),
            "failed": sorted(self.failed),
            "active": len(self.running),
            "started": self.started.isoformat(),
            "finished": datetime.now(UTC).isoformat() if ended else None,
        }
        part = self.folder / ".state.json"
        try:
            part.write_text(json.dumps(body), encoding="utf-8")
            part.replace(self.folder / "state.json")
        except FileNotFoundError:
            raise
        except OSError as error:  # a full disk: the work may go on, and whoever asks finds the state before
            print(f"cannot write state.json: {error.strerror}", file=sys.stderr, flush=True)  # noqa: T201

    def start(self, shard: int) -> None:
        """Start the process of one shard; one that cannot be started has failed, and may be tried again."""
        try:
            self._start(shard)
        except FileNotFoundError:
            raise
        except (OSError, subprocess.SubprocessError) as error:
            print(f"cannot start a process: {error}", file=sys.stderr, flush=True)  # noqa: T201
            self.ended(shard, TRY_AGAIN)

    def _start(self, shard: int) -> None:
        (self.folder / "tmp").mkdir(exist_ok=True)
        tmp = Path(tempfile.mkdtemp(prefix=f"{shard}-", dir=self.folder / "tmp"))
        lock = os.open(tmp / HELD, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        env = {**os.environ, **self.env, "BUGURT_WORKDIR": str(tmp), "TMPDIR": str(tmp)}
        if self.shards > 1:
            env["JOB_COMPLETION_INDEX"] = str(shard)
        name = f"out-{shard:05d}.log" if self.shards > 1 else "out.log"
        with (self.folder / name).open("ab") as out:
            process = subprocess.Popen(
                self.command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.cwd,
                pass_fds=(lock,),
                preexec_fn=_in_child(os.getpid(), lock),  # noqa: PLW1509  # this process has no threads
            )
        os.close(lock)
        self.running[process.pid] = (shard, process)

    def reap(self) -> None:
        """Take note of the processes that ended."""
        for pid, (shard, process) in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[pid]
            self.ended(shard, 128 - code if code < 0 else code)

    def ended(self, shard: int, code: int) -> None:
        """Note how a process ended, and decide on another try."""
        if code == 0:
            self.done.add(shard)
        elif self.stopping:
            self.failed[shard] = code
        else:
            self.failures[shard] = self.failures.get(shard, 0) + 1
            if code in self.fatal or self.failures[shard] > self.retries:
                self.failed[shard] = code
            else:
                pause = self.backoff * 2 ** (self.failures[shard] - 1)
                heapq.heappush(self.waiting, (time.monotonic() + pause, shard))

    def run(self) -> int:
        """Run to the end; returns the Job's exit code."""
        self.write("running")
        self.see_out()
        while self.running or (self.waiting and not self.failed and not self.stopping):
            now = time.monotonic()
            free = self.parallelism - len(self.running)
            while self.waiting and free > 0 and self.waiting[0][0] <= now and not (self.failed or self.stopping):
                self.start(heapq.heappop(self.waiting)[1])
                free -= 1
            self.write("running")
            timeout = max(0.0, self.waiting[0][0] - now) if self.waiting and free > 0 else 3600.0
            arrived = signal.sigtimedwait(_SIGNALS, timeout)
            if arrived is not None and arrived.si_signo != signal.SIGCHLD:
                self.stop()
            self.reap()
            for _ in left_behind(self.folder):  # of those that have ended
                pass
        for _ in left_behind(self.folder):
            pass
        if self.stopping:
            self.write("failed", reason="cancelled", exit_code=INTERRUPTED, ended=True)
            return INTERRUPTED
        if self.failed:
            shard, code = sorted(self.failed.items())[0]
            where = f"shard {shard} of {self.shards}: " if self.shards > 1 else ""
            self.write("failed", reason=f"{where}{describe_exit(code)}", exit_code=code, ended=True)
            return code
        self.write("succeeded", exit_code=0, ended=True)
        return 0

    def see_out(self) -> None:
        """Wait until the processes of the supervisor before this one have ended; SIGKILL after the grace period."""
        deadline = time.monotonic() + self.grace
        while held := list(left_behind(self.folder)):
            if time.monotonic() > deadline:
                for pid in filter(None, held):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            arrived = signal.sigtimedwait(_SIGNALS, 0.1)  # they are no children: nothing else tells of their end
            if arrived is not None and arrived.si_signo != signal.SIGCHLD:
                self.stopping = True
                return

    def stop(self) -> None:
        """SIGTERM to all, and SIGKILL to those that are still there after the grace period."""
        self.stopping = True
        for _, process in self.running.values():
            process.terminate()
        deadline = time.monotonic() + self.grace
        while self.running and time.monotonic() < deadline:
            signal.sigtimedwait({signal.SIGCHLD}, min(1.0, max(0.0, deadline - time.monotonic())))
            self.reap()
        for _, process in self.running.values():
            process.kill()
        for _, process in list(self.running.values()):
            process.wait()
        self.reap()


def describe_exit(code: int) -> str:
    """A few words on an exit code."""
    words = {
        64: "the spec is wrong",
        65: "the input data is wrong",
        70: "internal error",
        75: "it gave up after several tries",
        78: "the configuration is wrong",
        137: "killed (SIGKILL; perhaps out of memory)",
        143: "interrupted",
    }
    return f"{words.get(code, 'failed')} (exit code {code})"


def main() -> None:
    """Run the Job of a folder; the second argument is the inherited lock's descriptor, which stays open."""
    folder = Path(sys.argv[1])
    os.set_inheritable(int(sys.argv[2]), False)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    supervisor = Supervisor(folder)
    told = os.open(folder / "pid", os.O_WRONLY | os.O_CREAT, 0o600)  # an older version's Jobs lack it
    os.write(told, str(os.getpid()).encode().ljust(len(ROOM)))
    os.close(told)
    with contextlib.suppress(FileNotFoundError):  # the folder is taken away when a cancelled Job is deleted
        supervisor.run()


if __name__ == "__main__":
    main()
