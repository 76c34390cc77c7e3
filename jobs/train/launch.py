"""Start torchrun for several training processes and speak with them.

The stage's own process stays the parent: it holds the lease, reports, gets the signals and commits. The workers
(``jobs.train.worker``) train. Each connects to the parent over a Unix socket: it sends its log, its progress, its
error or result; the parent sends word that a signal has arrived, and answers whether the lease is still ours. A
worker whose parent is gone ends at once.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from jobs import specs
from jobs.sockets import make_room
from jobs.specs import BugurtError, Interrupted, TemporaryError, TrainSpec
from jobs.train.topology import Topology

log = logging.getLogger(__name__)

SOCKET = "BUGURT_TRAIN_SOCKET"


class TooLarge(Exception):  # noqa: N818  # no error yet: it is tried again with less
    """A batch does not fit into memory; ``batch`` and ``accumulation`` are what to try next."""

    def __init__(self, batch: int, accumulation: int) -> None:
        super().__init__(f"the batch does not fit; next: {batch} x {accumulation}")
        self.batch, self.accumulation = batch, accumulation


@dataclass
class Told:
    """What the workers have said so far."""

    result: tuple[dict[str, Any], dict[str, Any]] | None = None
    errors: list[BugurtError | TooLarge] = field(default_factory=list)


class Parent:
    """The parent's end of the workers' sockets."""

    def __init__(
        self, report: Callable[..., None], stop: threading.Event, guard: Callable[[], None] | None = None
    ) -> None:
        self.told = Told()
        self._report, self._stop, self._guard = report, stop, guard
        make_room()
        self._listener = Listener(family="AF_UNIX")
        self._connections: list[Connection] = []
        self._lock = threading.Lock()
        self._sending = threading.Lock()  # a connection takes one message at a time
        self._ended = False
        self._readers: list[threading.Thread] = []
        self.address = str(self._listener.address)
        threading.Thread(target=self._accept, name="workers", daemon=True).start()
        threading.Thread(target=self._watch, name="stop", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except OSError:
                return  # closed: the workers have ended
            with self._lock:
                self._connections.append(connection)
                late = self._stop.is_set()
            if late:
                self._send_stop([connection])
            reader = threading.Thread(target=self._read, args=(connection,), name="worker", daemon=True)
            self._readers.append(reader)
            reader.start()

    def _watch(self) -> None:
        self._stop.wait()
        with self._lock:
            connections = list(self._connections)
        self._send_stop(connections)

    def _send_stop(self, connections: list[Connection]) -> None:
        for connection in connections:
            self._send(connection, "stop")

    def _send(self, connection: Connection, *message: Any) -> None:
        try:
            with self._sending:
                connection.send(message)
        except OSError:
            log.debug("a training process ended before it could be told: %s", message[0])

    def _ensured(self) -> tuple[str, str, float | None] | None:
        """What the guard has to say, as a worker gets it: None, or the error that ``rebuilt`` makes."""
        try:
            if self._guard is not None:
                self._guard()
        except BugurtError as error:
            return type(error).__name__, str(error), getattr(error, "retry_after", None)
        return None

    def _read(self, connection: Connection) -> None:
        while True:
            try:
                kind, *rest = connection.recv()
            except (EOFError, OSError):
                return
            if kind == "progress":
                self._report(**rest[0])
            elif kind == "log":
                logging.getLogger(rest[0]).log(rest[1], "%s", rest[2])
            elif kind == "result":
                self.told.result = (rest[0], rest[1])
            elif kind == "error":
                self.told.errors.append(rebuilt(*rest))
            elif kind == "ensure":
                self._send(connection, "ensured", self._ensured())
            elif kind == "too large":
                self.told.errors.append(TooLarge(*rest))

    def close(self) -> None:
        """Take in what the ended workers still had to say."""
        self._listener.close()
        for reader in list(self._readers):
            reader.join(timeout=10)


def rebuilt(kind: str, sentence: str, retry_after: float | None) -> BugurtError:
    """An error of a worker, in the parent."""
    known = getattr(specs, kind, BugurtError)
    if not (isinstance(known, type) and issubclass(known, BugurtError)):
        known = BugurtError
    return TemporaryError(sentence, retry_after=retry_after) if known is TemporaryError else known(sentence)


def launch(
    spec: TrainSpec,
    *,
    ref: str,
    run: str,
    topology: Topology,
    workdir: Path,
    report: Callable[..., None],
    stop: threading.Event,
    batch: tuple[int, int] | None,
    guard: Callable[[], None] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Train with ``topology.local_processes()`` workers here; returns rank 0's counts and info on the first node.

    ``guard`` is called when the worker that keeps checkpoints is about to write, and may raise. Raises what the
    workers raised, TooLarge among it; TemporaryError when they were killed.
    """
    processes = topology.local_processes()
    job = {
        "spec": spec.model_dump(mode="json"),
        "ref": ref,
        "run": run,
        "workdir": str(workdir),
        "batch": batch,
        "debug": logging.getLogger("jobs").isEnabledFor(logging.DEBUG),
    }
    path = workdir / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    meeting = (
        ["--standalone"]
        if topology.nodes == 1
        else [
            "--node-rank",
            str(topology.node),
            "--master-addr",
            topology.host,
            "--master-port",
            str(topology.port),
        ]
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *meeting,
        "--nnodes",
        str(topology.nodes),
        "--nproc-per-node",
        str(processes),
        "--max-restarts",
        "0",
        "--monitor-interval",
        "0.2",
        "-m",
        "jobs.train.worker",
        str(path),
    ]
    parent = Parent(report, stop, guard)
    cores = len(os.sched_getaffinity(0))
    env = {
        "OMP_NUM_THREADS": str(max(1, cores // processes)),
        **os.environ,
        SOCKET: parent.address,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])),
    }
    said = workdir / "torchrun.txt"
    log.info("starting %d training processes here, %d machines in all", processes, topology.nodes)
    with said.open("wb") as out:
        # A session of its own: Ctrl-C on a terminal goes to the parent alone, which tells the workers.
        process = subprocess.Popen(
            command, env=env, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            parent.close()
    told = parent.told
    if code == 0 and not told.errors:
        return told.result
    log.debug("torchrun ended with %d and said: %s", code, said.read_text(errors="replace")[-4000:])
    raise worst(told.errors, stopped=stop.is_set())


def worst(errors: list[BugurtError | TooLarge], *, stopped: bool) -> BugurtError | TooLarge:
    """The error that explains the others: a peer's sudden end makes all collectives fail, too."""
    for wanted in (TooLarge, Interrupted):
        for error in errors:
            if isinstance(error, wanted):
                return error
    fatal = [e for e in errors if isinstance(e, BugurtError) and not isinstance(e, TemporaryError)]
    if fatal:
        return fatal[0]
    if errors:
        return errors[0]
    if stopped:
        return Interrupted("interrupted; the training processes were ended before they could answer")
    return TemporaryError(
        "a training process was killed, perhaps for want of memory; give the stage more, or ask for smaller batches"
    )
