"""One of several training processes, as torchrun starts them: ``python -m jobs.train.worker JOB``."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import sys
import threading
from datetime import timedelta
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from jobs.artifacts import ArtifactStore
from jobs.reporting import configure_logging
from jobs.specs import BugurtError, ExitCode, TemporaryError, TrainSpec
from jobs.stage import explain
from jobs.train.launch import SOCKET, TooLarge, rebuilt

PATIENCE = timedelta(minutes=15)  # that a process waits for another one in a collective


class Link:
    """The worker's end of the socket."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.stop = threading.Event()
        self._asking = threading.Lock()
        self._answers: queue.SimpleQueue[tuple[str, str, float | None] | None] = queue.SimpleQueue()
        self._done = False
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def send(self, *message: Any) -> None:
        """Send a message to the parent."""
        with self._lock:
            self._connection.send(message)

    def ensure(self) -> None:
        """Ask the parent, which holds the lease, whether it is still ours; raises what its ``ensure`` raised there."""
        with self._asking:
            self.send("ensure")
            answer = self._answers.get()  # a parent that is gone ends this process
        if answer is not None:
            raise rebuilt(*answer)

    def _listen(self) -> None:
        while True:
            try:
                kind, *rest = self._connection.recv()
            except (EOFError, OSError):
                os._exit(ExitCode.TRY_AGAIN)  # the parent is gone: nobody would commit what we make
            if kind == "stop":
                self.stop.set()
            else:
                self._answers.put(rest[0])


class _ToParent(logging.Handler):
    """Log records go to the parent, which prints and ships them."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._link.send("log", record.name, record.levelno, record.getMessage())
        except OSError:
            self.handleError(record)


def main(path: Path) -> ExitCode:
    """Train as the job file says; what goes wrong is told to the parent."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the parent gets the signals, and says so through the socket
    job = json.loads(path.read_text(encoding="utf-8"))
    rank, world, local = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    link = Link(Client(os.environ[SOCKET], family="AF_UNIX"))
    configure_logging(debug=job["debug"])
    root = logging.getLogger()
    root.handlers.clear()
    root.addHandler(_ToParent(link) if local == 0 else logging.NullHandler())
    try:
        result = _train(job, rank, world, local, link)
        if result is not None:
            link.send("result", result.counts, result.info)
        return ExitCode.OK
    except TooLarge as error:
        link.send("too large", error.batch, error.accumulation)
        return ExitCode.TRY_AGAIN
    except BaseException as error:
        if _lost_a_peer(error):
            error = TemporaryError("the training lost touch with one of its processes; it goes on from its checkpoint")
        sentence, code = explain(error)
        kind = type(error).__name__ if isinstance(error, BugurtError) else _class_for(code)
        link.send("error", kind, sentence, error.retry_after if isinstance(error, TemporaryError) else None)
        return code


def _train(job: dict[str, Any], rank: int, world: int, local: int, link: Link) -> Any:
    import torch
    import torch.distributed as dist

    from jobs.train.loop import Work, train

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    work = Work(
        spec=TrainSpec.model_validate(job["spec"]),
        ref=job["ref"],
        run=job["run"],
        store=ArtifactStore.from_env(),
        workdir=Path(job["workdir"]),
        report=lambda **fields: link.send("progress", fields),
        stopped=link.stop.is_set,
        rank=rank,
        world=world,
        local_rank=local,
        batch=None if job["batch"] is None else (job["batch"][0], job["batch"][1]),
        guard=link.ensure,
    )
    result = train(work)
    dist.barrier()
    dist.destroy_process_group()
    return result


def _lost_a_peer(error: BaseException) -> bool:
    import torch.distributed as dist

    text = str(error)
    return isinstance(error, dist.DistBackendError | dist.DistNetworkError) or (
        isinstance(error, RuntimeError) and ("gloo" in text or "Connection closed by peer" in text or "NCCL" in text)
    )


def _class_for(code: ExitCode) -> str:
    return {
        ExitCode.TRY_AGAIN: "TemporaryError",
        ExitCode.INTERRUPTED: "Interrupted",
    }.get(code, "BugurtError")


if __name__ == "__main__":
    end = main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(end)
