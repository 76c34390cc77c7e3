"""Attempts at a training: processes that a test reads, signals and kills."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from jobs.specs import TrainSpec
from tests.conftest import stage_env


class Fork:
    """One attempt at a training. ``hook`` (of ``tests.train.hooks``) runs in the process before the stage begins."""

    def __init__(
        self,
        spec: TrainSpec,
        s3_env: dict[str, str],
        folder: Path,
        *,
        run: str = "test",
        env: dict[str, str] | None = None,
        hook: Callable[[], None] | None = None,
    ) -> None:
        path = folder / f"spec-{uuid.uuid4().hex[:8]}.json"
        path.write_text(spec.model_dump_json(), encoding="utf-8")
        name = "-" if hook is None else hook.__name__
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.train.attempt", name, "--spec", str(path), "--debug"],
            env=stage_env(s3_env, run, env),
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            start_new_session=True,
        )
        weakref.finalize(self, self._process.kill)  # a failed test leaves none behind
        assert self._process.stderr is not None
        self._log = self._process.stderr

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
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode is not None

    def end(self, number: int | None = None) -> int:
        """Send a signal, if one is given, and wait for the end; the exit code, negative for a signal's kill."""
        if number is not None:
            self._process.send_signal(number)
        for _ in self.read():
            pass
        self._log.close()
        return self._process.wait(120)

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
