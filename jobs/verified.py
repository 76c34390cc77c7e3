"""Bytes from the bucket that are the manifest's, or an error that says where they were damaged: there or on the way."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import TypeVar

from jobs.manifest import FileEntry
from jobs.specs import BugurtError, DataError, NotFoundError, TemporaryError
from jobs.streams import Ranges

log = logging.getLogger(__name__)

T = TypeVar("T")


class Damaged(DataError):  # noqa: N818  # as DataError reads to a user
    """Bytes that are not the manifest's; ``sha256`` tells which they were."""

    def __init__(self, message: str, sha256: str) -> None:
        super().__init__(message)
        self.sha256 = sha256


def verify(sha256: str, size: int, entry: FileEntry, where: str) -> None:
    """Raise Damaged unless so many bytes with this digest are the entry's; ``where``: their address, to be told."""
    if (sha256, size) != (entry.sha256, entry.size):
        raise Damaged(f"{where} is damaged: its {size} bytes are not the {entry.size} that the manifest names", sha256)


def twice(fetch: Callable[[], T]) -> T:
    """Bytes that do not verify may have been damaged on the way: that deserves a second try, and only one."""
    try:
        return fetch()
    except NotFoundError:
        raise
    except DataError as error:
        log.warning("%s; reading it once more", error)
        first = error
    try:
        return fetch()
    except Damaged as error:
        raise judge(first, error) from None


def judge(first: DataError, second: Damaged) -> BugurtError:
    """What two damaged readings mean: bytes that differ were damaged on the way, and another try may succeed."""
    if isinstance(first, Damaged) and first.sha256 != second.sha256:
        return TemporaryError(f"{second}; it was read twice, and the bytes differ: they are damaged on the way")
    return second


class Verified:
    """Ranges that are hashed as they come; the last one is given out only if all of them are the manifest's bytes."""

    def __init__(
        self, ranges: Ranges, entry: FileEntry, where: str, look_again: Callable[[], None] | None = None
    ) -> None:
        """``look_again`` reads everything once more and raises if that is damaged, too."""
        self._ranges, self._entry, self._where, self._look_again = ranges, entry, where, look_again
        self._digest = hashlib.sha256()
        self._size = 0

    def next(self) -> bytes:
        data = self._ranges.next()
        self._digest.update(data)
        self._size += len(data)
        if self._size >= self._entry.size:
            try:
                verify(self._digest.hexdigest(), self._size, self._entry, self._where)
            except Damaged as error:
                if self._look_again is None:
                    raise
                raise self._told(error, self._look_again) from None
        return data

    @staticmethod
    def _told(first: Damaged, look_again: Callable[[], None]) -> BugurtError:
        """What was given out cannot be taken back; but whether another try is of use can be told."""
        try:
            look_again()
        except Damaged as second:
            return judge(first, second)
        return TemporaryError(f"{first}; read once more they are right: they were damaged on the way")

    def close(self) -> None:
        self._ranges.close()
