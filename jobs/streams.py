"""File objects over object storage: reading by ranges, and writing while the upload is under way.

They know nothing of S3: ``jobs.storage`` hands in how to get a range and how to upload a file object.
"""

from __future__ import annotations

import contextlib
import io
import queue
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, cast

MIB = 1024 * 1024
READ_SIZE = 8 * MIB  # of one ranged request


def open_ranged(get_range: Callable[[int, int], bytes], size: int) -> BinaryIO:
    """A reader of ``size`` bytes; ``get_range(start, length)`` returns exactly so many bytes or raises."""
    return cast(BinaryIO, io.BufferedReader(_RangedReader(get_range, size), READ_SIZE))


class _RangedReader(io.RawIOBase):
    def __init__(self, get_range: Callable[[int, int], bytes], size: int) -> None:
        self._get_range, self._size, self._at = get_range, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:  # that of RawIOBase asks for 8 KiB at a time
        return b"".join(iter(lambda: self._next(READ_SIZE), b""))

    def _next(self, most: int) -> bytes:
        wanted = min(most, READ_SIZE, self._size - self._at)
        if wanted <= 0:
            return b""
        data = self._get_range(self._at, wanted)
        self._at += len(data)
        return data


class UploadStream(io.RawIOBase):
    """A file object whose bytes are uploaded while they are written, in bounded memory.

    The object exists once ``close`` has returned. ``abort``, a ``with`` block left by an error, and a stream that
    nobody finished leave nothing.
    """

    def __init__(self, upload: Callable[[BinaryIO], None]) -> None:
        self._pending = bytearray()
        # The thread knows the pipe alone: a stream that nobody holds any more can then be collected.
        self._pipe = _Pipe()
        self._thread = threading.Thread(target=self._pipe.feed, args=(upload,), name="upload stream", daemon=True)
        self._thread.start()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), MIB):
            self._pending += view[start : start + MIB]
            if len(self._pending) >= MIB:
                self._send(bytes(self._pending))
                self._pending.clear()
        return len(view)

    def _send(self, chunk: bytes | None) -> None:
        while self._thread.is_alive():
            try:
                self._pipe.chunks.put(chunk, timeout=0.5)
                return
            except queue.Full:
                continue
        self._pipe.check()

    def close(self) -> None:
        """Finish the upload and wait for it."""
        if self.closed:
            return
        try:
            if self._pending:
                self._send(bytes(self._pending))
                self._pending.clear()
            self._send(None)
            self._thread.join()
            self._pipe.check()
        finally:
            super().close()

    def abort(self) -> None:
        """Throw away what was written: the object does not come to exist."""
        if self.closed:
            return
        self._pipe.cancel()
        self._pending.clear()
        try:
            self._thread.join()
        finally:
            super().close()

    def __del__(self) -> None:
        # IOBase would close, and so commit, what nobody finished. No waiting: this may be any thread, that of
        # the upload too.
        if not self.closed and hasattr(self, "_thread"):
            self._pipe.cancel()
            super().close()

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class _Pipe:
    """What a stream and its thread share: chunks on one end, a file object for the uploader on the other."""

    def __init__(self) -> None:
        self.chunks: queue.Queue[bytes | None] = queue.Queue(maxsize=4)
        self._error: BaseException | None = None
        self._cancelled = False
        self._rest = b""
        self._ended = False

    def feed(self, upload: Callable[[BinaryIO], None]) -> None:
        """Upload until the end; what is raised is kept for ``check``."""
        try:
            upload(cast(BinaryIO, self))
        except BaseException as error:  # the writer's thread raises it
            self._error = error

    def check(self) -> None:
        """Raise what the upload ended in."""
        if self._error is not None and not self._cancelled:
            raise self._error

    def cancel(self) -> None:
        """Make the reading end fail, which makes the uploader throw its parts away."""
        self._cancelled = True
        with contextlib.suppress(queue.Full):  # a reader that has a chunk to take wakes up by itself
            self.chunks.put_nowait(None)

    def read(self, size: int = -1) -> bytes:
        parts = [self._rest]
        have = len(self._rest)
        while not self._ended and (size < 0 or have < size):
            chunk = self.chunks.get()
            if self._cancelled:
                raise OSError("the writer gave up")
            if chunk is None:
                self._ended = True
            else:
                parts.append(chunk)
                have += len(chunk)
        data = b"".join(parts)
        if size < 0:
            size = len(data)
        self._rest = data[size:]
        return data[:size]
