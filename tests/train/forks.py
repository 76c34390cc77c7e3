"""The train stage in processes that start at once: forked from a server that has the libraries loaded already.

Importing torch and transformers takes seconds, and a test that kills a training twenty times would spend them
twenty times. The forked process runs the stage's own ``main``, with real signals, exit codes and files.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, TextIO

from jobs.specs import TrainSpec
from tests.conftest import stage_env

context = multiprocessing.get_context("forkserver")
_MODULES = ["jobs.train.loop", "jobs.train.lora", "jobs.train.run", "peft", "transformers.models.gpt2"]
_server: int | None = None


def run_server() -> None:
    """Have the fork server that has the libraries.

    A process has one, with what the first to need it wanted loaded: in a process that has tested preprocessing's
    workers it would lack them, and each training would import them anew.
    """
    global _server  # noqa: PLW0603
    server: Any = vars(forkserver)["_forkserver"]
    if _server is None or server._forkserver_pid != _server:
        server._stop()
        server.set_forkserver_preload(_MODULES)
        server.ensure_running()
        _server = server._forkserver_pid


def _child(env: dict[str, str], folder: str, argv: list[str], pipe: str, hook: Any) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.setpgrp()
    os.chdir(folder)
    target = os.open(pipe, os.O_WRONLY)
    os.dup2(target, 2)
    if hook is not None:
        hook()
    import torch

    from jobs.stage import main
    from jobs.train.run import run

    torch.set_num_threads(1)
    main(TrainSpec, run, argv=argv)


class Fork:
    """One attempt at a training. ``hook`` (a function of a module) runs in the process before the stage begins."""

    def __init__(
        self,
        spec: TrainSpec,
        s3_env: dict[str, str],
        folder: Path,
        *,
        run: str = "test",
        env: dict[str, str] | None = None,
        hook: Any = None,
    ) -> None:
        name = uuid.uuid4().hex[:8]
        path, pipe = folder / f"spec-{name}.json", folder / f"log-{name}"
        path.write_text(spec.model_dump_json(), encoding="utf-8")
        os.mkfifo(pipe)
        self.lines: list[str] = []
        self._process = context.Process(
            target=_child,
            args=(
                stage_env(s3_env, run, {"OMP_NUM_THREADS": "1", **(env or {})}),
                str(folder),
                ["--spec", str(path), "--debug"],
                str(pipe),
                hook,
            ),
            daemon=True,
        )
        run_server()
        self._process.start()
        self._log: TextIO = pipe.open(encoding="utf-8")

    def read(self) -> Iterator[str]:
        """Log lines as they come."""
        for line in self._log:
            self.lines.append(line)
            yield line

    def wait_for(self, text: str) -> str:
        """Read on to the first line with ``text``."""
        for line in self.read():
            if text in line:
                return line
        raise AssertionError(f"{text!r} was never logged:\n{''.join(self.lines[-20:])}")

    def wait(self, seconds: float) -> bool:
        """Whether it ended by itself within so many seconds."""
        self._process.join(seconds)
        return self._process.exitcode is not None

    def end(self, number: int | None = None) -> int:
        """Send a signal, if one is given, and wait for the end; the exit code, negative for a signal's kill."""
        if number is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid or 0, number)
        for _ in self.read():
            pass
        self._process.join(120)
        self._log.close()
        code = self._process.exitcode
        assert code is not None
        return code

    @property
    def text(self) -> str:
        """All that was logged."""
        return "".join(self.lines)

    @property
    def last(self) -> str:
        """The last line."""
        return self.lines[-1] if self.lines else ""

    KILL = signal.SIGKILL
    TERM = signal.SIGTERM
