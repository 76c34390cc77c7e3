"""A scrape as a process that a test can kill, and whose memory it can see."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from jobs.specs import ScrapeSpec
from tests.conftest import stage_env


class Stage:
    """A scrape's process that a test can kill."""

    def __init__(self, spec: ScrapeSpec, env: dict[str, str], folder: Path, run: str = "kills") -> None:
        path = folder / "spec.json"
        path.write_text(spec.model_dump_json())
        self._log = (folder / "log.jsonl").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs.scrape", "--spec", str(path)],
            env=stage_env({}, run, env),
            stderr=self._log,
            cwd=folder,
        )

    def ends_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self) -> tuple[int, str, float]:
        """Exit code, log, and the most memory that it held (MiB), looked at every twentieth of a second.

        Not from ``wait4``: what that gives contains the memory of the test's own process at the fork.
        """
        most = 0.0
        while not self.ends_within(0.05):
            most = max(most, self.memory())
        return self.process.wait(), self.log(), most

    def memory(self) -> float:
        """The most memory so far (MiB); 0 when the process has just ended."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return 0.0

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()
