"""Bytes as somebody writes them who means ill, or whose disk does: seeded changes to what is right."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

SLOW = 3.0  # seconds of the processor for one case; most take a thousandth of that
#: What takes the place of a value.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**31, 2**63, -(2**63) - 1, 10**40, 1e308, 5e-324, "", "x", "\0", "\u202e", "a" * 10_000,
    "\ud800", "../../etc/passwd", "/etc/passwd", "..", "C:\\x", "posts/" + "0" * 20, "NaN", [], {}, [[]], [None],
    {"": None}, [0] * 1000, {"a": {"b": {"c": []}}}, "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
)  # fmt: skip
#: What is put somewhere between the bytes.
PIECES = (
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"-", b"1e999", b"NaN",
    b'"', b"\\", b"\\x41", b"\\ud800", b"}", b"]", b",", b":", b"\n", b"\r", b"=", b"[[", b"]]", b"'''", b" " * 70_000,
)  # fmt: skip


def bytes_like(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """``count`` changed copies: bits flipped, cut off, pieces doubled, left out, moved or put in."""
    draw = random.Random(seed)
    for _ in range(count):
        made = bytearray(data)
        for _ in range(draw.choice((1, 1, 1, 3))):
            at, other = sorted((draw.randrange(len(made) + 1), draw.randrange(len(made) + 1)))
            match draw.randrange(6):
                case 0 if made:
                    made[min(at, len(made) - 1)] ^= 1 << draw.randrange(8)
                case 1:
                    del made[at:]
                case 2:
                    del made[at:other]
                case 3:
                    made[at:at] = made[at : min(other, at + 2000)]
                case 4:
                    made[at:at] = draw.choice(PIECES)
                case _:
                    made[at : at + 8] = draw.randbytes(8)
        yield bytes(made)


def json_like(value: Any, seed: int, count: int) -> Iterator[bytes]:
    """``count`` texts of JSON whose form is right, and some value in it is not: replaced, left out, renamed."""
    draw = random.Random(seed)
    for _ in range(count):
        made = deepcopy(value)
        for _ in range(draw.choice((1, 1, 2, 4))):
            holder, key = draw.choice(_places(made))
            match draw.randrange(4):
                case 0 if isinstance(holder, dict):
                    del holder[key]
                case 1 if isinstance(holder, dict):
                    holder[draw.choice(("", "x", "__class__", "a" * 300, key + " "))] = holder[key]
                case 2 if isinstance(holder, list):
                    holder.insert(key, deepcopy(holder[key]))
                case _:
                    holder[key] = deepcopy(draw.choice(VALUES))
            if not _places(made):
                break
        yield json.dumps(made).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    todo = [value]
    while todo:
        one = todo.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        for key in keys:
            found.append((one, key))
            if len(found) < 5000:
                todo.append(one[key])
    return found


def each(cases: Iterator[bytes], read: Callable[[bytes], object]) -> tuple[int, int]:
    """Read all of them. Returns how many were taken and how many refused; every refusal is one of the documented ones.

    A refusal is a BugurtError with one sentence; whatever else comes up fails the test, with the bytes' beginning.
    """
    from jobs.specs import BugurtError

    taken = refused = 0
    for number, data in enumerate(cases):
        begun = time.process_time()
        try:
            read(data)
            taken += 1
        except BugurtError as error:
            refused += 1
            said = str(error)
            assert said and len(said) < 2000 and "\n" not in said, (number, said[:2500])
            assert int(error.exit_code) in (64, 65, 75, 78), (number, error.exit_code)
        except Exception as error:
            raise AssertionError(f"case {number} ({data[:300]!r} …) ends in {type(error).__name__}: {error}") from error
        took = time.process_time() - begun
        assert took < SLOW, f"case {number} ({data[:300]!r} …, {len(data)} bytes) took {took:.1f} s"
    return taken, refused
