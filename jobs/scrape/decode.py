"""Reading pages of a history faster than Telethon does: the same objects, by the same generated code.

Most of a scrape's own time goes into reading what Telegram sends. A third of that (32 µs a message, then 22) goes when
the reader has its formats compiled, and when a message is its fields alone, without Telethon's conveniences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from struct import Struct
from typing import Any

from telethon.extensions import BinaryReader
from telethon.tl import TLObject
from telethon.tl import types as t
from telethon.tl.alltlobjects import tlobjects

_int = Struct("<i").unpack_from
_uint = Struct("<I").unpack_from
_long = Struct("<q").unpack_from
_ulong = Struct("<Q").unpack_from
_LONG_BYTES = 254  # in place of a length: three bytes with the length follow


class Message(t.Message):  # type: ignore[misc]
    """A message that is nothing but the fields that it was read with."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__ = fields


class Reader(BinaryReader):  # type: ignore[misc]
    """Telethon's reader, with compiled formats and without its notes for error messages."""

    position: int

    def read_int(self, signed: bool = True) -> int:
        """Four bytes."""
        position = self.position
        self.position = position + 4
        value: int = (_int if signed else _uint)(self.stream, position)[0]
        return value

    def read_long(self, signed: bool = True) -> int:
        """Eight bytes."""
        position = self.position
        self.position = position + 8
        value: int = (_long if signed else _ulong)(self.stream, position)[0]
        return value

    def tgread_bytes(self) -> bytes:
        """A string of bytes with its length before it, up to the next multiple of four. Raises BufferError."""
        stream, start = self.stream, self.position
        try:
            length = stream[start]
        except IndexError:
            raise BufferError("the answer ends where a string should begin") from None
        if length == _LONG_BYTES:
            length = int.from_bytes(stream[start + 1 : start + 4], "little")
            start += 4
            end = start + length
            self.position = end + (-length & 3)
        else:
            start += 1
            end = start + length
            self.position = end + (-(length + 1) & 3)
        if self.position > len(stream):
            raise BufferError("the answer ends within a string")
        data: bytes = stream[start:end]
        return data

    def tgread_string(self) -> str:
        """Text; what is no UTF-8 in it is replaced."""
        return str(self.tgread_bytes(), "utf-8", "replace")

    def tgread_date(self) -> datetime:
        """A moment, in UTC."""
        return datetime.fromtimestamp(self.read_int(), UTC)

    def tgread_object(self) -> Any:
        """An object of any type. Raises TypeNotFoundError for one that Telethon does not know."""
        position = self.position
        try:
            read = _READ[_uint(self.stream, position)[0]]
        except KeyError:  # a vector, or a flag
            return super().tgread_object()
        self.position = position + 4
        return read(self)


_READ: dict[int, Callable[[BinaryReader], Any]] = {n: kind.from_reader for n, kind in tlobjects.items()}
_READ[Message.CONSTRUCTOR_ID] = Message.from_reader


def _faster(kind: type[TLObject]) -> type[TLObject]:
    class Page(kind):  # type: ignore[misc]
        @classmethod
        def from_reader(cls, reader: BinaryReader) -> Any:
            fast = Reader(reader.get_bytes())
            fast.set_position(reader.tell_position())
            page = kind.from_reader(fast)
            reader.set_position(fast.tell_position())
            return page

    return Page


@contextmanager
def installed() -> Iterator[None]:
    """Have Telethon read pages of messages this way, by its own table of types, as ``telethon.tl.patched`` does.

    Only for a while: whoever else uses Telethon in this process wants its messages with all their conveniences.
    """
    kinds = (t.messages.Messages, t.messages.MessagesSlice, t.messages.ChannelMessages)
    before = {kind.CONSTRUCTOR_ID: tlobjects[kind.CONSTRUCTOR_ID] for kind in kinds}
    tlobjects.update({kind.CONSTRUCTOR_ID: _faster(kind) for kind in kinds})
    try:
        yield
    finally:
        tlobjects.update(before)
