"""Signals to the processes of a round, and who of them is still there."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

from tests.chaos.plan import Plan

PROC = Path("/proc")


def of_folder(folder: Path) -> dict[int, str]:
    """All living processes whose environment or command line names ``folder``: number and command line."""
    needle = os.fsencode(folder)
    found = {}
    for entry in PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            if command and (needle in command or needle in (entry / "environ").read_bytes()):
                found[int(entry.name)] = command.replace(b"\0", b" ").decode("utf-8", "replace").strip()
        except OSError:  # it has ended meanwhile, or it is another user's
            continue
    return found


def name_of(command: str) -> str:
    """A few words for what a process is."""
    for word in command.split():
        if word.startswith(("jobs.", "cli.")):
            return word
    return command[:60]


class Killer(threading.Thread):
    """Sends signals to processes of ``folder`` until ``stop`` is set or the plan's kills are spent.

    Stages and drivers get SIGKILL, or SIGTERM as from a node that is drained; supervisors mostly SIGKILL, for
    SIGTERM is their word for a cancelled Job. A process group's members are as good targets as its leader.
    """

    def __init__(self, plan: Plan, folder: Path, spared: set[int]) -> None:
        super().__init__(name="killer", daemon=True)
        self._plan, self._folder, self._spared = plan, folder, spared
        self._random = random.Random(f"kills {plan.seed}")
        self.stop = threading.Event()
        self.sent: Counter[str] = Counter()

    def run(self) -> None:
        left = self._plan.kills
        while left and not self.stop.wait(self._random.expovariate(1 / self._plan.pause)):
            targets = {p: c for p, c in sorted(of_folder(self._folder).items()) if p not in self._spared}
            if not targets:
                continue
            # The kind first: there are as many supervisors as there are stages and drivers together.
            kind = self._random.choice(sorted({name_of(c) for c in targets.values()}))
            pid = self._random.choice([p for p, c in targets.items() if name_of(c) == kind])
            name = name_of(targets[pid])
            hard = self._random.random() < (0.9 if name.endswith("supervisor") else 0.65)
            try:
                os.kill(pid, signal.SIGKILL if hard else signal.SIGTERM)
            except ProcessLookupError:
                continue
            left -= 1
            self.sent[f"{'SIGKILL' if hard else 'SIGTERM'} {name}"] += 1


def wait_until_gone(folder: Path, spared: set[int], seconds: float) -> dict[int, str]:
    """Wait for the end of all processes of a folder; returns those that are still there then."""
    deadline = time.monotonic() + seconds
    while True:
        left = {p: c for p, c in of_folder(folder).items() if p not in spared}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)  # processes of others end without an event that one could wait for
