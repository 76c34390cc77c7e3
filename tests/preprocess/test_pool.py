"""Workers that are killed, and what starts them."""

from __future__ import annotations

import os
import signal
from multiprocessing import forkserver

import pytest

from jobs.preprocess.pool import Workers
from jobs.specs import TemporaryError


def test_what_starts_the_workers_is_killed_while_one_is_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with Workers(2, "math") as workers:
        forkserver.ensure_running()
        server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
        os.kill(server, signal.SIGSTOP)  # so that it cannot answer before it is killed
        answer = forkserver.read_signed  # type: ignore[attr-defined]

        def killed(descriptor: int) -> int:
            os.kill(server, signal.SIGKILL)
            return int(answer(descriptor))

        monkeypatch.setattr(forkserver, "read_signed", killed)
        with pytest.raises(TemporaryError, match="a worker process was killed"):
            list(workers.map(abs, [-1, -2]))
        monkeypatch.undo()
    os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)  # its files are closed a moment before
    with Workers(2, "math") as workers:
        assert list(workers.map(abs, [-1, -2])) == [1, 2], "the next ones start"


def test_a_worker_is_killed() -> None:
    with Workers(2, "os") as workers, pytest.raises(TemporaryError, match="a worker process was killed"):
        list(workers.map(os._exit, [3]))
