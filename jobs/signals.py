"""SIGTERM and SIGINT in a process that has an exit code to give for them."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

AGAIN = 0.05  # seconds until a signal that was swallowed comes once more


class Signalled(KeyboardInterrupt):
    """What a signal raises in the main thread, wherever it is.

    A KeyboardInterrupt and no Exception: logging, asyncio and many a library swallow every Exception that comes up
    in the middle of them, and the signal would be lost.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """SIGTERM and SIGINT, from a process's first moment to its last: none kills it without its exit code.

    ``handler`` decides what they do; without one, Signalled is raised. Once ``ignored`` is set nothing happens.
    ``raised``: what a signal has raised. Where that comes to nothing, for Python was in a weak reference's callback or
    in a finaliser, which print whatever is raised in them and go on, the signal comes once more.
    """

    def __init__(self) -> None:
        self.ignored = False
        self.raised: Signalled | None = None
        self.handler: Callable[[int], None] | None = None

    def install(self) -> None:
        """From now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._arrived)
        sys.unraisablehook = self._swallowed

    def _swallowed(self, swallowed: sys.UnraisableHookArgs) -> None:
        if isinstance(swallowed.exc_value, Signalled):
            self._once_more(swallowed.exc_value.number)
        else:
            sys.__unraisablehook__(swallowed)

    def _once_more(self, number: int) -> None:
        """Not at once, which would be where it comes to nothing; and to the main thread, which may be waiting."""
        again = threading.Timer(AGAIN, signal.pthread_kill, (threading.main_thread().ident, number))
        again.daemon = True
        again.start()

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self.ignored:
            return
        while frame is not None:
            if frame.f_code is Signals._swallowed.__code__:  # what is raised in there is swallowed, too
                self._once_more(number)
                return
            frame = frame.f_back
        try:
            if self.handler is None:
                raise Signalled(number)
            self.handler(number)
        except Signalled as signalled:
            self.raised = signalled
            raise
