"""Reads the command lines of all processes of this machine, again and again, and looks for what must not be there."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType


class Watch:
    """Use with ``with``. ``commands``: all command lines seen; ``leaks``: those that hold one of ``secrets``."""

    def __init__(self, secrets: Sequence[str], *, every: float = 0.03) -> None:
        self._secrets = [s.encode() for s in secrets]
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._seen: set[bytes] = set()

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._every):
            self._look()

    def _look(self) -> None:
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    command = (folder / "cmdline").read_bytes()
                except OSError:
                    continue  # it has ended
                if b"\0tests." not in command:  # another test's client, which is told everything by its arguments
                    self._seen.add(command)

    @property
    def commands(self) -> list[str]:
        """With spaces between the arguments."""
        return [c.replace(b"\0", b" ").decode("utf-8", "replace") for c in set(self._seen)]

    @property
    def leaks(self) -> list[str]:
        """What no command line may be."""
        texts = set(self._seen)
        return [c.replace(b"\0", b" ").decode("utf-8", "replace") for c in texts if any(s in c for s in self._secrets)]
