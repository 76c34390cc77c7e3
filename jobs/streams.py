"""File objects over object storage: reading by ranges, and writing while the upload is under way.

They know nothing of S3: ``jobs.storage`` hands in how to get a range and how to upload a file object.
"""

from __future__ import annotations

import contextlib
import io
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, Protocol, cast

MIB = 1024 * 1024
READ_SIZE = 8 * MIB  # of one ranged request


GetRange = Callable[[int, int], bytes]  # (start, length): exactly so many bytes, or it raises


class Source(Protocol):
    """What a reader is made of."""

    def next(self) -> bytes:
        """The next bytes, or none at the end."""

    def close(self) -> None:
        """No more are wanted."""


def open_source(source: Source) -> BinaryIO:
    """A file object to read from."""
    return cast(BinaryIO, io.BufferedReader(_Reader(source), MIB))


class Ranges:
    """The ranges of ``size`` bytes in their order, while up to ``ahead`` more are on their way.

    ``at_once``: ask for them with the first one; otherwise with the second, for many look at a beginning only.
    After an error the same range can be asked for again.
    """

    def __init__(self, get_range: GetRange, size: int, *, ahead: int, at_once: bool) -> None:
        self._get_range, self._size, self._ahead = get_range, size, ahead
        self._begun = at_once
        self._end = 0  # of what was given out
        self._coming: deque[Future[bytes]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    def next(self) -> bytes:
        """The next range, or nothing at the end."""
        if self._end >= self._size:
            return b""
        coming, begun, self._begun = self._coming, self._begun, True
        start = self._end + READ_SIZE * len(coming)
        if not begun or (not coming and start + READ_SIZE >= self._size):
            data = self._get_range(self._end, min(READ_SIZE, self._size - self._end))
        else:
            self._pool = self._pool or ThreadPoolExecutor(self._ahead + 1, thread_name_prefix="range")
            while len(coming) <= self._ahead and start < self._size:
                coming.append(self._pool.submit(self._get_range, start, min(READ_SIZE, self._size - start)))
                start += READ_SIZE
            try:
                data = coming.popleft().result()
            except BaseException:
                coming.clear()
                raise
        self._end += len(data)
        return data

    def close(self) -> None:
        """Ask for no more."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Ranges:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Reader(io.RawIOBase):
    def __init__(self, source: Source) -> None:
        self._source = source
        self._piece = b""
        self._used = 0  # bytes of it

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:  # that of RawIOBase asks for 8 KiB at a time
        return b"".join(iter(lambda: self._next(READ_SIZE), b""))

    def _next(self, most: int) -> bytes:
        if self._used == len(self._piece):
            self._piece, self._used = self._source.next(), 0
        data = self._piece[self._used : self._used + most]
        self._used += len(data)
        return data

    def close(self) -> None:
        self._source.close()
        super().close()


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
            piece = view[start : start + MIB]
            if len(piece) == MIB and not self._pending:
                self._send(bytes(piece))
                continue
            self._pending += piece
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
