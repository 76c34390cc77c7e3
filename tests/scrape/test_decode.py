"""Pages that are read fast are what Telethon reads."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from telethon.errors import TypeNotFoundError
from telethon.extensions import BinaryReader
from telethon.tl import TLObject
from telethon.tl import types as t
from telethon.tl.alltlobjects import tlobjects

from jobs.scrape import decode
from jobs.scrape.convert import Converter
from tests.telegram.channel import MIX, Blob, Channel, make_channel

PEER = t.PeerChannel(1)


@pytest.fixture
def installed() -> Iterator[None]:
    before = dict(tlobjects)
    with decode.installed():
        yield
    assert tlobjects == before


def page(channel: Channel, kind: str) -> bytes:
    blobs = [Blob(channel.blob(i)) for i in reversed(channel.ids)]
    chats = [channel.as_chat()]
    if kind == "whole":
        return bytes(t.messages.Messages(blobs, [], chats, []))
    if kind == "slice":
        return bytes(t.messages.MessagesSlice(9999, blobs, [], chats, [], next_rate=7))
    return bytes(t.messages.ChannelMessages(channel.pts, len(channel), blobs, [], chats, []))


@pytest.mark.parametrize("kind", ["whole", "slice", "channel"])
def test_pages_are_what_telethon_reads(installed: None, kind: str) -> None:
    channel = make_channel(3, 300)
    channel.add_post("Ы" * 4000)  # a length of three bytes
    data = page(channel, kind)
    assert {channel.kinds[i] for i in channel.ids} >= set(MIX)
    wanted = tlobjects[int.from_bytes(data[:4], "little")].__mro__[1].from_reader(BinaryReader(data[4:]))
    reader = BinaryReader(data + b"what comes next")
    found = reader.tgread_object()
    assert reader.tell_position() == len(data)
    assert found.to_dict() == wanted.to_dict()
    assert any(type(m) is decode.Message for m in found.messages)
    assert not any(type(m) is decode.Message for m in wanted.messages)
    assert {type(c) for c in found.chats} == {t.Channel}


@pytest.mark.parametrize(
    "value",
    [
        t.Message(1, PEER, None, "", media=t.MessageMediaEmpty()),
        t.Message(2**31 - 1, PEER, None, "x", grouped_id=-(2**63), fwd_from=t.MessageFwdHeader(None), ttl_period=5),
        t.MessageMediaGeo(t.GeoPoint(-1.5, 2.25, -7)),
        t.MessageMediaPhoto(t.Photo(1, 2, b"\x00" * 254, None, [], 3, has_stickers=True)),
        t.InputMediaPhoto(t.InputPhoto(1, 2, bytes(range(253)))),
        t.UserStatusOnline(None),
        t.JsonBool(True),
    ],
)
def test_objects_at_the_edges(value: TLObject) -> None:
    data = bytes(value)
    plain = BinaryReader(data).tgread_object().to_dict()
    found = decode.Reader(data).tgread_object().to_dict()
    if isinstance(value, t.Message) and isinstance(found["media"], dict) and plain["media"] is None:
        assert found["media"] == {"_": "MessageMediaEmpty"}  # which the converter takes for no media
        found["media"] = None
    assert found == plain


def test_media_that_is_gone_is_none() -> None:
    data = bytes(t.Message(1, PEER, None, "ГДЕ ЧАЙНИК", media=t.MessageMediaEmpty()))
    post = Converter("@bugurt_test", 1, None).post(decode.Reader(data).tgread_object())
    assert post is not None
    assert (post.text, post.media, post.media_count) == ("ГДЕ ЧАЙНИК", None, 0)


def test_bytes_that_are_no_utf_8_are_replaced() -> None:
    data = bytes(t.Message(1, PEER, None, "ДЕД!")).replace(b"!", b"\xff")
    assert decode.Reader(data).tgread_object().message == BinaryReader(data).tgread_object().message == "ДЕД\ufffd"


def test_vectors_and_flags_are_read() -> None:
    assert decode.Reader(bytes.fromhex("15c4b51c02000000b5757299379779bc")).tgread_object() == [True, False]


def ends(data: bytes) -> Any:
    return decode.Reader(data).tgread_object()


def test_what_is_cut_off_or_unknown_raises() -> None:
    data = bytes(t.Message(1, PEER, None, "ЧАЙНИК УЖЕ ОСТЫЛ", post_author="Ёж"))
    for size in range(len(data)):
        with pytest.raises((BufferError, struct.error)):
            ends(data[:size])
    with pytest.raises(TypeNotFoundError):
        ends(b"\x01\x02\x03\x04" + data)
