"""What can go wrong at Telegram, by script: which call, how often, and what happens to it.

A script is a list of `Fault`s. Each counts the calls that match its `method` by itself, so the same requests
meet the same faults in every run. `CONNECT` stands for a new TCP connection.

    Faults(flood(3, at=2), cut(after_bytes=900, at=(5, 9)), short_page(40, every=3))
"""

from __future__ import annotations

import concurrent.futures
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, Literal

CONNECT = "@connect"
HISTORY = "messages.GetHistory"

Kind = Literal["error", "cut", "close", "transport", "delay", "hold", "short"]


class Gate:
    """Holds an answer back until the test says so. Both ends may be used from any thread."""

    def __init__(self) -> None:
        self.reached: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.released: concurrent.futures.Future[None] = concurrent.futures.Future()

    def release(self) -> None:
        if not self.released.done():
            self.released.set_result(None)


@dataclass
class Fault:
    """One rule. With neither `at` nor `every` it meets every call from `start` on; `times` bounds it."""

    kind: Kind
    method: str = HISTORY  # as "messages.GetHistory"; wildcards as in file names
    at: tuple[int, ...] = ()  # the numbers of the calls, the first being 1
    every: int = 0
    start: int = 1
    times: int | None = None
    code: int = 0
    message: str = ""
    seconds: float = 0.0
    after_bytes: int = 0
    keep: int = 0
    gate: Gate | None = None
    seen: int = field(default=0, init=False)
    fired: int = field(default=0, init=False)

    def meets(self, method: str) -> bool:
        """Count the call, and say whether the fault is for it."""
        if not fnmatchcase(method, self.method):
            return False
        self.seen += 1
        if self.seen < self.start or (self.times is not None and self.fired >= self.times):
            return False
        if self.at and self.seen not in self.at:
            return False
        if self.every and (self.seen - self.start + 1) % self.every:
            return False
        self.fired += 1
        return True


class Faults:
    """The script that a server follows. It may be changed while the server runs."""

    def __init__(self, *faults: Fault) -> None:
        self._faults = list(faults)

    def add(self, *faults: Fault) -> None:
        self._faults.extend(faults)

    def clear(self) -> None:
        self._faults.clear()

    def meeting(self, method: str) -> list[Fault]:
        """The faults that meet this call; every rule counts it."""
        return [fault for fault in self._faults if fault.meets(method)]

    def fired(self) -> dict[str, int]:
        """How often each kind of fault struck."""
        count: Counter[str] = Counter()
        for fault in self._faults:
            count[f"at Telegram: {fault.message or fault.kind}"] += fault.fired
        return dict(count)

    @classmethod
    def from_json(cls, text: str) -> Faults:
        """A list of objects with the fields of `Fault`: the form for another process."""
        return cls(*(_from_dict(item) for item in json.loads(text)))


def _from_dict(item: dict[str, Any]) -> Fault:
    known = {x.name for x in fields(Fault) if x.init and x.name != "gate"}
    if unknown := set(item) - known:
        raise ValueError(f"a fault has no {', '.join(sorted(unknown))}")
    return Fault(**{**item, "at": numbers(item.get("at", ()))})


def numbers(at: int | Iterable[int]) -> tuple[int, ...]:
    return (at,) if isinstance(at, int) else tuple(at)


def _fault(kind: Kind, method: str, when: dict[str, Any], **what: Any) -> Fault:
    return Fault(kind, method, **{**when, "at": numbers(when.get("at", ()))}, **what)


def error(code: int, message: str, method: str = HISTORY, **when: Any) -> Fault:
    """Any RPC error: `error(400, "CHANNEL_PRIVATE")`, `error(406, "AUTH_KEY_DUPLICATED", "*")`."""
    return _fault("error", method, when, code=code, message=message)


def flood(seconds: int, method: str = HISTORY, **when: Any) -> Fault:
    return error(420, f"FLOOD_WAIT_{seconds}", method, **when)


def internal(method: str = HISTORY, **when: Any) -> Fault:
    return error(500, "INTERNAL", method, **when)


def migrate(dc: int, what: Literal["PHONE", "USER", "NETWORK"], method: str, **when: Any) -> Fault:
    return error(303, f"{what}_MIGRATE_{dc}", method, **when)


def cut(method: str = HISTORY, *, after_bytes: int = 0, **when: Any) -> Fault:
    """The connection breaks after so many bytes of the answer (or, for `CONNECT`, at once)."""
    return _fault("cut", method, when, after_bytes=after_bytes)


def close(method: str = HISTORY, **when: Any) -> Fault:
    """The connection breaks just after a whole answer."""
    return _fault("close", method, when)


def transport(code: int, method: str = HISTORY, **when: Any) -> Fault:
    """An error below RPC, as -404 (unknown auth key) or -429 (too many connections), instead of an answer."""
    return _fault("transport", method, when, code=code)


def delay(seconds: float, method: str = "*", **when: Any) -> Fault:
    return _fault("delay", method, when, seconds=seconds)


def short_page(keep: int, method: str = HISTORY, **when: Any) -> Fault:
    """A page holds at most so many messages, though more follow: as Telegram does when it hides some."""
    return _fault("short", method, when, keep=keep)


def hold(method: str = HISTORY, **when: Any) -> tuple[Fault, Gate]:
    """The answer waits for `gate.release()`; `gate.reached` is done when the call has come."""
    gate = Gate()
    when.setdefault("times", 1)
    return _fault("hold", method, when, gate=gate), gate
