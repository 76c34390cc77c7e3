"""The kubelet of one machine: ``python -m cli.clusters.supervisor FOLDER LOCK`` runs one Job to its end.

It starts the Job's processes (one a shard), starts them again as the Job's policy says, and keeps
``FOLDER/state.json``. It holds the lock that ``LocalCluster.create`` took for it; when it dies, however it dies,
the lock is free and its children get SIGTERM. It imports the standard library only, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BACKOFF = 2.0  # seconds before the first restart, doubled for each further one
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
INTERRUPTED = 143  # 128 + SIGTERM, as shells count
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _in_child() -> None:
    """After fork: undo the blocked signals, and end when the supervisor does."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


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
        part.write_text(json.dumps(body), encoding="utf-8")
        part.replace(self.folder / "state.json")

    def start(self, shard: int) -> None:
        """Start the process of one shard."""
        tmp = self.folder / "tmp" / str(shard)
        shutil.rmtree(tmp, ignore_errors=True)  # of a process that was killed
        tmp.mkdir(parents=True)
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
                preexec_fn=_in_child,  # noqa: PLW1509  # this process has no threads
            )
        self.running[process.pid] = (shard, process)

    def reap(self) -> None:
        """Take note of the processes that ended."""
        for pid, (shard, process) in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[pid]
            code = 128 - code if code < 0 else code
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
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)
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
    (folder / "pid").write_text(str(os.getpid()))
    with contextlib.suppress(FileNotFoundError):  # the folder is taken away when a cancelled Job is deleted
        supervisor.run()


if __name__ == "__main__":
    main()
