"""Finds the export inside a zip archive. Nothing is extracted: the one member is read as a stream.

So names that climb out of a folder and links have nothing to act on; what is left to refuse is an archive that is
broken, encrypted, or swells to something no export is.
"""

from __future__ import annotations

import errno
import io
import lzma
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from jobs.scrape.tolerant import READ, Opener
from jobs.specs import DataError

MAX_MEMBERS = 200_000  # an export with all its photos has some tens of thousands
MAX_SIZE = 64 * 1024**3  # bytes of the unpacked member
MAX_RATIO = 200  # unpacked to packed; JSON of real exports stays below 40
RATIO_FREE = 64 * 1024**2  # bytes below which the ratio does not matter
#: What zipfile and its unpackers raise for bytes that are no archive of theirs.
_BROKEN = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError,
    OverflowError, struct.error,
)  # fmt: skip
READABLE = (".json", ".jsonl", ".ndjson", ".txt")


def open_archive(path: Path, where: str) -> tuple[str, Opener]:
    """The name and the opener of the export in an archive: result.json, else the only readable file.

    ``where``: the archive's name in errors. Raises DataError when there is none or the archive cannot be trusted.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:
        if not _is_damage(error):
            raise
        raise DataError(f"{where} is a broken zip archive: {_short(error)}") from error
    if len(members) > MAX_MEMBERS:
        raise DataError(f"{where} has {len(members)} members; no export has more than {MAX_MEMBERS}")
    member = _choose(members, where)
    inside = f"{where}, {member.filename}"
    if stat.S_ISLNK(member.external_attr >> 16):
        raise DataError(f"{inside} is a link and not a file; pack the export itself")
    if member.flag_bits & 1:
        raise DataError(f"{inside} is encrypted; pack it without a password")
    if member.file_size > MAX_SIZE:
        raise DataError(f"{inside} would be {member.file_size} bytes unpacked; at most {MAX_SIZE} are read")
    if member.file_size > RATIO_FREE and member.file_size > MAX_RATIO * max(member.compress_size, 1):
        raise DataError(f"{inside} would swell from {member.compress_size} to {member.file_size} bytes; no export does")
    return inside, lambda: io.BufferedReader(_Member(path, member, inside), READ)


def _choose(members: list[zipfile.ZipInfo], where: str) -> zipfile.ZipInfo:
    files = [m for m in members if m.filename and not m.is_dir() and "__MACOSX" not in m.filename]
    named = [m for m in files if PurePosixPath(m.filename).name == "result.json"]
    if len(named) == 1:
        return named[0]
    if len(named) > 1:
        names = ", ".join(m.filename[:80] for m in named[:5])
        raise DataError(f"{where} holds {len(named)} exports ({names}); hand in one of them")
    readable = [m for m in files if m.filename.lower().endswith(READABLE)]
    if len(readable) == 1:
        return readable[0]
    if any(PurePosixPath(m.filename).name == "messages.html" for m in files):
        raise DataError(f"{where} is an export in HTML; export again with the format 'Machine-readable JSON'")
    raise DataError(f"{where} holds no result.json; pack the folder that Telegram Desktop's export made")


def _is_damage(error: BaseException) -> bool:
    """Whether this is what zipfile makes of a wrong archive; places before its beginning end in EINVAL."""
    return isinstance(error, _BROKEN) or (isinstance(error, OSError) and error.errno in (None, errno.EINVAL))


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


class _Member(io.RawIOBase):
    """A member as a stream, whose errors are sentences; closing it closes the archive."""

    def __init__(self, path: Path, member: zipfile.ZipInfo, inside: str) -> None:
        self._inside = inside
        self._archive = zipfile.ZipFile(path)
        try:
            self._stream: Any = self._archive.open(member)
        except BaseException as error:
            self._archive.close()
            raise self._translated(error) from error

    def _translated(self, error: BaseException) -> BaseException:
        if _is_damage(error):
            return DataError(f"{self._inside}: the archive is damaged: {_short(error)}")
        return error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except Exception as error:
            raise self._translated(error) from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._archive.close()
        super().close()
