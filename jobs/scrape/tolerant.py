"""Read JSON as Telegram Desktop wrote it in its worse days: mend what is known to be broken, stream the rest.

Versions of Telegram Desktop have written control characters as ``\\xNN``, which JSON does not know, and the
``document_id`` of a custom emoji without quotes. Both are mended in the bytes on their way to the parser, and so is
half a surrogate pair, which the parser does not take: it becomes U+FFFD. The same place bounds what a hostile file
can do: depth, and the size of one message; all of it takes time linear in the bytes.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import ijson

Opener = Callable[[], BinaryIO]


class OversizeError(Exception):
    """Deeper or larger than any real export."""


READ = 256 * 1024
FINE = 1024  # bytes of the pieces among which a broken byte is looked for
MAX_HELD = 1024 * 1024  # bytes without a comma or line break before a cut is made anyway
MAX_ITEM = 4 * 1024 * 1024  # bytes of one message; real ones stay far below 100 KiB
MAX_DEPTH = 64  # real exports stay below 12

#: A whole pair first, so that what is left is half of one.
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9A-Fa-f]{2}\\u[dD][c-fC-F][0-9A-Fa-f]{2}"
    rb"|\\(?:x([0-9A-Fa-f]{2})|(u[dD][89a-fA-F][0-9A-Fa-f]{2})|.)",
    re.DOTALL,
)
#: Where half of one seems to be: a quick look, so that a text of many pairs does not go through the above.
_HALF = re.compile(
    rb"\\u[dD][89abAB][0-9A-Fa-f]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9A-Fa-f]{2})\\u[dD][c-fC-F]"
)
#: Half of one in the bytes, which UTF-8 forbids.
_RAW_HALF = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")
_HIGH = re.compile(rb"\\u[dD][89abAB][0-9A-Fa-f]{2}")
_LONGEST = 12  # bytes of the longest thing that is mended: an escaped pair
_UNQUOTED = re.compile(rb'("document_id"\s*:\s*)([^"\s,}\]\[{][^"\n,}]*)')
_NOT_BRACKETS = bytes(b for b in range(256) if b not in b"[]{}")
#: Control characters, which JSON wants escaped; line breaks and tabs stay, they may stand between tokens.
_CONTROLS = bytes(32 if b < 32 and b not in b"\t\n\r" else b for b in range(256))


def _escape(match: re.Match[bytes]) -> bytes:
    if match[1]:
        return rb"\u00" + match[1]
    return rb"\uFFFD" if match[2] else match[0]


def _quote(match: re.Match[bytes]) -> bytes:
    value = match[2].strip().decode("utf-8", "replace")
    return match[1] + json.dumps(value, ensure_ascii=False).encode()


class Mender:
    """Mends a stream of bytes piece by piece; keeps back what a piece ends in the middle of."""

    def __init__(self) -> None:
        self._held = b""
        self._depth = 0
        self._in_string = False
        self._started = False

    def feed(self, data: bytes, *, last: bool = False) -> bytes:
        """The mended bytes that are ready. Raises OversizeError when the nesting is too deep."""
        data = self._held + data
        if not self._started and (len(data) >= 3 or last):
            self._started = True
            data = data.removeprefix(codecs.BOM_UTF8)
        cut = len(data)
        if not last:
            # A comma or a line break ends every token that is mended, and none of them holds one.
            cut = max(data.rfind(b","), data.rfind(b"\n")) + 1
            if not cut and len(data) > MAX_HELD:
                cut = _between_escapes(data)
        self._held = data[cut:]
        data = data[:cut].translate(_CONTROLS)
        pairs = b"\\ud" in data or b"\\uD" in data
        if b"\\x" in data or (pairs and _HALF.search(data.replace(b"\\\\", b"__"))):
            data = _ESCAPE.sub(_escape, data)
        if b"\xed" in data:
            data = _RAW_HALF.sub("\ufffd".encode(), data)
        if b'"document_id"' in data:
            data = _UNQUOTED.sub(_quote, data)
        self._measure(data)
        return data

    def _measure(self, data: bytes) -> None:
        # Without escaped quotes, every second piece between quotes is outside of strings.
        pieces = data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(pieces[1 if self._in_string else 0 :: 2])
        self._in_string ^= len(pieces) % 2 == 0
        for bracket in outside.translate(None, _NOT_BRACKETS):
            if bracket in b"[{":
                self._depth += 1
                if self._depth > MAX_DEPTH:
                    raise OversizeError(f"it is nested more than {MAX_DEPTH} deep; no Telegram export is")
            else:
                self._depth -= 1


def _between_escapes(data: bytes) -> int:
    """A place near the end of the data that is in the middle of nothing that is mended."""
    end = data.find(b"\xed", max(len(data) - 2, 0))
    end = len(data) if end < 0 else end
    start = data.find(b"\\", max(end - _LONGEST, 0), end)
    if start < 0:
        return end
    # A run of backslashes begins outside of an escape: two by two they are escapes, and an odd one begins another.
    run = len(data[: start + 1].rstrip(b"\\"))
    length = len(data) - run - len(data[run:].lstrip(b"\\"))
    if length == 1 and _HIGH.fullmatch(data, max(run - 6, 0), run):
        before = run - 6 - len(data[: run - 6].rstrip(b"\\"))
        return run - 6 if before % 2 == 0 else run
    return run + length // 2 * 2


class TolerantReader:
    """A mended stream for ijson. ``consumed``: raw bytes read so far, for the progress."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._mender = Mender()
        self._ended = False
        self._in_item = 0
        self.consumed = 0

    def item_done(self) -> None:
        """A whole message has come out; the bound on its size begins anew."""
        self._in_item = 0

    def read(self, size: int = -1) -> bytes:
        """About ``READ`` bytes whatever ``size`` says, b"" at the end; ``read(0)`` gives b"" as ijson expects."""
        if size == 0:
            return b""
        while not self._ended:
            data = self._raw.read(READ)
            self.consumed += len(data)
            self._in_item += len(data)
            if self._in_item > MAX_ITEM + READ:
                raise OversizeError(f"a message of more than {MAX_ITEM} bytes; no Telegram export has one")
            self._ended = not data
            mended = self._mender.feed(data, last=self._ended)
            if mended:
                return mended
        return b""


def locate(opener: Opener) -> tuple[int, int] | None:
    """Where a file stops being JSON: (line, byte), both from 1, or None when it parses.

    Parses again: the parser's messages quote the text and do not say where it is.
    """
    mender, sink = Mender(), _Sink()
    parser = ijson.basic_parse_coro(sink, use_float=True)
    line, offset = 1, 0
    with opener() as raw:
        while True:
            data = raw.read(READ)
            try:
                if not data:
                    _finish(parser, mender)
                    return None
                if mended := mender.feed(data):
                    parser.send(mended)
            except (ijson.JSONError, OversizeError, ValueError):
                break
            line += data.count(b"\n")
            offset += len(data)
    return _narrow(opener, offset, line)


def _narrow(opener: Opener, good: int, line: int, step: int = FINE) -> tuple[int, int]:
    """Find the byte in the block after ``good`` bytes by sending it in smaller and smaller pieces."""
    mender = Mender()
    parser = ijson.basic_parse_coro(_Sink(), use_float=True)
    at = 0
    with opener() as raw:
        while at < good:
            data = raw.read(min(READ, good - at))
            at += len(data)
            if mended := mender.feed(data):
                parser.send(mended)
        block = raw.read(READ if step > 1 else FINE)
        for index in range(0, len(block), step):
            try:
                if mended := mender.feed(block[index : index + step]):
                    parser.send(mended)
            except (ijson.JSONError, OversizeError, ValueError):
                line += block[:index].count(b"\n")
                return _narrow(opener, at + index, line, 1) if step > 1 else (line, at + index + 1)
    return line + block.count(b"\n"), at + len(block)


def _finish(parser: Any, mender: Mender) -> None:
    rest = mender.feed(b"", last=True)
    if rest:
        parser.send(rest)
    with contextlib.suppress(StopIteration):  # its answer when all is well
        parser.send(b"")  # ijson's sign of the end


class _Sink:
    """Takes events and forgets them."""

    def send(self, event: object) -> None:
        """Forget it."""

    def close(self) -> None:
        """Nothing to close."""
