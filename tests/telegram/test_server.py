"""The test server, proven with the real Telethon client: what a test of the scrape stage may rely on."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from telethon import TelegramClient, errors
from telethon.crypto import rsa
from telethon.network import authenticator
from telethon.sessions import StringSession
from telethon.tl import functions as f
from telethon.tl import types as t

from . import crypto
from . import faults as fault
from .api import Account, Api, RpcError
from .channel import MIX, Channel, make_channel
from .clients import new_client
from .crypto import PasswordCheck
from .faults import CONNECT, HISTORY, Faults
from .server import ServerThread, TelegramServer
from .texts import HEADER, Rich, utf16_len

ROOT = Path(__file__).resolve().parents[2]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a test's coroutine, with a limit: a client that reconnects for ever must fail, not hang."""

    async def limited() -> Any:
        return await asyncio.wait_for(work, 60)

    return asyncio.run(limited())


class Telegram:
    """A server and one client that is connected to it, for the length of a `with`."""

    def __init__(
        self, api: Api, *script: fault.Fault, ports: dict[int, int] | None = None, login: bool = True, **options: Any
    ) -> None:
        self.server = TelegramServer(api, Faults(*script), ports=ports)
        self._login = login
        self._options = options

    async def __aenter__(self) -> tuple[TelegramServer, TelegramClient]:
        await self.server.start()
        if not self._login:
            self.server.key.trust()
        session = self.server.session(authorised=self._login)
        self.client = new_client(session, account=self.server.api.account, **self._options)
        await self.client.connect()
        return self.server, self.client

    async def __aexit__(self, *error: Any) -> None:
        if self.client.session is not None:  # None after a logout
            await self.client.disconnect()
        await self.server.__aexit__(*error)


def entity(channel: Channel) -> t.InputPeerChannel:
    return t.InputPeerChannel(channel.id, channel.access_hash)


async def scrape(client: TelegramClient, channel: Channel, **options: Any) -> list[Any]:
    return [m async for m in client.iter_messages(entity(channel), wait_time=0, **options)]


def shown(channel: Channel) -> list[int]:
    """The ids that a client can see: Telethon passes over empty messages."""
    return [i for i in channel.ids if channel.kinds[i] != "empty"]


def sliced(text: str, offset: int, length: int) -> str:
    return text.encode("utf-16-le")[offset * 2 : (offset + length) * 2].decode("utf-16-le")


# Reading a channel


@pytest.mark.parametrize("reverse", [False, True])
def test_a_whole_channel_arrives_in_order_and_unchanged(reverse: bool) -> None:
    channel = make_channel(seed=1, n_posts=1234)

    async def work() -> None:
        async with Telegram(Api(channel)) as (server, client):
            got = await scrape(client, channel, reverse=reverse)
            expected = shown(channel) if reverse else shown(channel)[::-1]
            assert [m.id for m in got] == expected
            for message in got:
                assert bytes(message) == bytes(channel.message(message.id))
            assert {args["limit"] for args in server.histories()} == {100}
            assert {args["add_offset"] for args in server.histories()} == ({-100} if reverse else {0})

    run(work())


def test_32000_messages_take_one_call_for_each_hundred() -> None:
    channel = make_channel(seed=2, n_posts=32_000)

    async def work() -> None:
        async with Telegram(Api(channel)) as (server, client):
            count = 0
            for_sure = iter(shown(channel))
            async for message in client.iter_messages(entity(channel), reverse=True, wait_time=0):
                assert message.id == next(for_sure)
                count += 1
            assert count == len(shown(channel))
            assert server.count(HISTORY) <= 32_000 / 100 * 1.05
            assert server.connections == 1

    run(work())


def test_a_window_is_that_of_a_plain_list() -> None:
    channel = make_channel(seed=3, n_posts=250)
    newest_first = list(reversed(channel.ids))
    offsets = [0, 1, channel.ids[0], channel.ids[7], channel.ids[7] + 1, channel.ids[125], channel.top_id, 10**6]
    for offset_id in offsets:
        place = next((n for n, i in enumerate(newest_first) if i < offset_id), 250) if offset_id else 0
        for add_offset in (-250, -101, -100, -99, -1, 0, 1, 99, 100, 240, 300):
            for limit in (0, 1, 99, 100, 500):
                wanted = range(place + add_offset, place + add_offset + min(limit, 100))
                expected = [newest_first[n] for n in wanted if 0 <= n < 250]
                got = channel.window(offset_id=offset_id, offset_date=0, add_offset=add_offset, limit=limit)
                assert got == expected, (offset_id, add_offset, limit)


def test_the_newest_posts_are_not_lost_at_a_negative_offset() -> None:
    channel = make_channel(seed=4, n_posts=137)

    async def work() -> None:
        async with Telegram(Api(channel)) as (_server, client):
            request = f.messages.GetHistoryRequest(entity(channel), channel.ids[100], None, -100, 100, 0, 0, 0)
            page = await client(request)
            assert [m.id for m in page.messages] == list(reversed(channel.ids[100:]))
            assert page.count == 137

    run(work())


def test_windows_by_id_and_by_date() -> None:
    channel = make_channel(seed=5, n_posts=700)
    ids = shown(channel)
    dates = {i: channel.message(i).date for i in ids}
    middle = ids[350]

    async def work() -> None:
        async with Telegram(Api(channel)) as (_server, client):
            for reverse in (False, True):
                got = await scrape(client, channel, reverse=reverse, min_id=ids[100], max_id=ids[500])
                assert sorted(m.id for m in got) == ids[101:500]
            got = await scrape(client, channel, offset_date=dates[middle])
            assert [m.id for m in got] == [i for i in reversed(ids) if dates[i] < dates[middle]]
            got = await scrape(client, channel, offset_date=dates[middle], reverse=True)
            assert [m.id for m in got] == [i for i in ids if dates[i] >= dates[middle]]
            got = await scrape(client, channel, offset_id=middle, limit=130)
            assert [m.id for m in got] == [i for i in reversed(ids) if i < middle][:130]
            request = f.messages.GetHistoryRequest(entity(channel), 0, None, 0, 100, ids[-10], ids[-20], 0)
            bounded = [m.id for m in (await client(request)).messages]  # max_id, then min_id
            assert bounded == [i for i in reversed(channel.ids) if ids[-20] < i < ids[-10]]

    run(work())


def test_messages_by_id_and_what_is_missing() -> None:
    channel = make_channel(seed=6, n_posts=300)
    gone = channel.post_ids[50]
    channel.delete(gone)
    kept = channel.post_ids[51]

    async def work() -> None:
        async with Telegram(Api(channel)) as (server, client):
            got = await client.get_messages(entity(channel), ids=[kept, gone, 10**6])
            assert [m and m.id for m in got] == [kept, None, None]
            assert server.count("channels.GetMessages") == 1
            assert server.calls[-1].args["id"] == 3

    run(work())


# What a channel holds


def test_the_same_seed_gives_the_same_channel_and_another_seed_another() -> None:
    one, two, other = (make_channel(seed=s, n_posts=400) for s in (7, 7, 8))
    assert [one.blob(i) for i in one.ids] == [two.blob(i) for i in two.ids]
    assert [one.blob(i) for i in one.ids] != [other.blob(i) for i in other.ids]
    assert one.add_posts(30) == two.add_posts(30)
    assert [one.blob(i) for i in one.ids] == [two.blob(i) for i in two.ids]


def test_a_channel_has_exactly_its_posts_ends_at_its_date_and_leaves_gaps() -> None:
    end = datetime(2026, 5, 1, tzinfo=UTC)
    channel = make_channel(seed=9, n_posts=2000, end=end, step=3600)
    assert len(channel) == 2000
    assert abs(channel.clock - end.timestamp()) < 2000 * 3600 * 0.15
    assert channel.top_id > 2000
    assert list(channel.ids) == sorted(set(channel.ids))
    for count in (0, 1, 2):
        assert len(make_channel(seed=9, n_posts=count)) == count


def test_every_kind_of_message_comes_through_the_client() -> None:
    channel = make_channel(seed=10, n_posts=600)
    assert set(channel.kinds.values()) == set(MIX)

    async def work() -> dict[int, Any]:
        async with Telegram(Api(channel)) as (_server, client):
            request = f.messages.GetHistoryRequest(entity(channel), 200, None, 0, 100, 0, 0, 0)
            raw = {m.id: type(m) for m in (await client(request)).messages}
            empty = [i for i in channel.of_kind("empty") if i in raw]
            assert empty
            assert {raw[i] for i in empty} == {t.MessageEmpty}
            return {m.id: m for m in await scrape(client, channel)}

    got = run(work())

    def of(kind: str) -> list[Any]:
        return [got[i] for i in channel.of_kind(kind)]

    assert all(isinstance(m, t.MessageService) for m in of("service"))
    assert {type(m.action) for m in of("service")} >= {t.MessageActionChannelCreate, t.MessageActionPinMessage}
    assert all(m.photo and m.raw_text for m in of("photo"))
    assert all(m.photo and not m.raw_text for m in of("bare photo"))
    assert all(m.video for m in of("video"))
    assert all(m.document.mime_type == "application/pdf" for m in of("document"))
    assert all(m.web_preview.url.startswith("https://") for m in of("web page"))
    assert all(m.fwd_from for m in of("forward"))
    assert {type(m.fwd_from.from_id) for m in of("forward")} == {t.PeerChannel, type(None)}
    assert all(m.via_bot_id for m in of("via bot"))
    assert all(len(m.poll.poll.answers) == 3 for m in of("poll"))
    assert all(m.invoice.currency == "RUB" for m in of("invoice"))
    assert all("#БТnews" in m.raw_text and ".ru/?utm_source" in m.raw_text for m in of("advert"))
    assert all("telegra.ph" in m.raw_text for m in of("stub"))
    albums: dict[int, list[Any]] = {}
    for message in of("album"):
        albums.setdefault(message.grouped_id, []).append(message)
    assert albums
    for parts in albums.values():
        parts.sort(key=lambda m: m.id)
        assert 2 <= len(parts) <= 5
        assert parts[0].raw_text
        assert not any(m.raw_text for m in parts[1:])
        assert all(m.photo for m in parts)
        assert parts[-1].id - parts[0].id == len(parts) - 1
    posts = [m for m in got.values() if isinstance(m, t.Message)]
    assert all(m.views and m.forwards is not None for m in posts)
    for has in ("reactions", "replies", "edit_date", "post_author"):
        count = sum(bool(getattr(m, has)) for m in posts)
        assert 0 < count < len(posts), has
    assert any(isinstance(r.reaction, t.ReactionCustomEmoji) for m in posts if m.reactions for r in m.reactions.results)


def test_entities_are_measured_in_utf16_units() -> None:
    channel = make_channel(seed=11, n_posts=900)

    async def work() -> list[Any]:
        async with Telegram(Api(channel)) as (_server, client):
            return [m for m in await scrape(client, channel) if isinstance(m, t.Message)]

    seen: set[type] = set()
    astral = 0
    for message in run(work()):
        text = message.raw_text
        for found in message.entities or []:
            covered = sliced(text, found.offset, found.length)
            seen.add(type(found))
            if isinstance(found, t.MessageEntityTextUrl):
                assert covered in (HEADER, "\u200c")
                assert found.url not in text
                astral += len(text) != utf16_len(text) and found.offset > 0
            elif isinstance(found, t.MessageEntityMention):
                assert covered == "@predlozhi_bot"
            elif isinstance(found, t.MessageEntityHashtag):
                assert covered.startswith("#")
            elif isinstance(found, t.MessageEntityUrl):
                assert "." in covered
                assert " " not in covered
            elif isinstance(found, t.MessageEntityCustomEmoji):
                assert covered == "🦔"
                assert found.document_id
            else:
                assert isinstance(found, t.MessageEntityBold)
                assert "\n" not in covered
    assert len(seen) == 6
    assert astral > 10  # where counting code points would give another answer


def test_posts_are_upper_case_lines_between_at_signs() -> None:
    channel = make_channel(seed=12, n_posts=500)
    texts = [channel.message(i).message for i in channel.of_kind("text")]
    assert all("\n@\n" in text for text in texts)
    lines = [line for text in texts for line in text.split("\n") if not line.startswith(("#", "предложено"))]
    assert all(line.isupper() or line == "@" or len(line) == 1 for line in lines)  # one character: an emoji
    assert sum(f"\n{HEADER}" in text for text in texts) > 0.7 * len(texts)
    assert any("\n@\n@\n@\n" in text for text in texts)
    assert len(set(texts)) > 0.95 * len(texts)


# A channel that changes


def test_the_next_scrape_costs_what_is_new_and_sees_edits_and_deletions() -> None:
    channel = make_channel(seed=13, n_posts=1500)

    async def work() -> None:
        async with Telegram(Api(channel)) as (server, client):
            newest = (await scrape(client, channel, reverse=True))[-1].id
            server.clear_log()
            assert await scrape(client, channel, reverse=True, min_id=newest) == []
            assert server.count(HISTORY) == 1
            added = channel.add_posts(40)
            server.clear_log()
            got = await scrape(client, channel, reverse=True, min_id=newest)
            assert [m.id for m in got] == [i for i in added if channel.kinds[i] != "empty"]
            assert server.count(HISTORY) <= 2

            changed, counted, gone = channel.post_ids[-3:]
            channel.edit(changed, Rich("ИСПРАВИТЬ ").add("ЧАЙНИК", t.MessageEntityBold), when=channel.clock + 9)
            channel.edit(counted, views=999_999)
            channel.delete(gone)
            found = {m.id: m for m in await scrape(client, channel, limit=60)}
            assert found[changed].raw_text == "ИСПРАВИТЬ ЧАЙНИК"
            assert found[changed].edit_date.timestamp() == channel.clock + 9
            assert [(e.offset, e.length) for e in found[changed].entities] == [(10, 6)]
            assert found[counted].views == 999_999
            assert found[counted].edit_date == channel.message(counted).edit_date
            assert gone not in found

    run(work())


def test_mistakes_of_a_test_are_told() -> None:
    channel = make_channel(seed=14, n_posts=10)
    with pytest.raises(KeyError):
        channel.delete(10**6)
    with pytest.raises(AttributeError, match="no vews"):
        channel.edit(channel.post_ids[0], vews=1)
    with pytest.raises(ValueError, match="does not come after"):
        channel.add(t.MessageEmpty(1, channel.peer))
    with pytest.raises(ValueError, match="a fault has no color"):
        Faults.from_json('[{"kind": "cut", "color": "red"}]')
    with pytest.raises(LookupError):
        Api(channel).scan_qr()


# Finding a channel


def test_channels_are_found_by_name_id_invite_and_in_the_dialogs() -> None:
    public = make_channel(seed=15, n_posts=20, username="Bugurt_Test")
    private = make_channel(1, 20, channel_id=222, username=None, invite="AAAAinvite", joined=True)
    foreign = make_channel(2, 20, channel_id=333, username=None, invite="BBBBinvite", joined=False)
    api = Api(public, private, foreign)
    api.invites["CCCCinvite"] = "INVITE_HASH_EXPIRED"

    async def work() -> None:
        async with Telegram(api) as (server, client):
            for name in ("bugurt_test", "@BUGURT_test", "https://t.me/bugurt_test"):
                assert (await client.get_input_entity(name)).channel_id == public.id
            assert (await client.get_entity(entity(public))).title == public.title
            assert (await client.get_entity("https://t.me/+AAAAinvite")).id == private.id
            with pytest.raises(ValueError, match="not part of"):
                await client.get_entity("https://t.me/joinchat/BBBBinvite")
            with pytest.raises(errors.InviteHashExpiredError):
                await client.get_entity("https://t.me/+CCCCinvite")
            with pytest.raises(errors.InviteHashInvalidError):
                await client.get_entity("https://t.me/+DDDDinvite")
            with pytest.raises(errors.ChannelPrivateError):
                await client.get_messages(entity(foreign))
            joined = await client(f.messages.ImportChatInviteRequest("BBBBinvite"))
            assert joined.updates.chats[0].id == foreign.id
            assert len(await scrape(client, foreign)) == len(shown(foreign))
            with pytest.raises(errors.UserAlreadyParticipantError):
                await client(f.messages.ImportChatInviteRequest("BBBBinvite"))
            assert isinstance(await client.get_entity("predlozhi_bot"), t.User)
            full = await client(f.channels.GetFullChannelRequest(entity(public)))
            assert full.full_chat.about
            with pytest.raises(ValueError, match="No user has"):
                await client.get_entity("nobody_has_this")
            with pytest.raises(errors.UsernameInvalidError):
                await client(f.contacts.ResolveUsernameRequest("1x"))
            with pytest.raises(errors.ChannelInvalidError):
                await client.get_messages(t.InputPeerChannel(public.id, 1))
            public.error = "CHANNEL_PRIVATE"
            with pytest.raises(errors.ChannelPrivateError):
                await client.get_entity(entity(public))
            assert server.count("contacts.ResolveUsername") == 4

    run(work())


def test_an_id_is_found_by_walking_many_dialogs() -> None:
    channels = [make_channel(n, 2, channel_id=5000 + n, username=None, title=f"Канал {n}") for n in range(130)]

    async def work() -> None:
        async with Telegram(Api(*channels)) as (server, client):
            with pytest.raises(ValueError, match="Could not find"):
                await client.get_input_entity(t.PeerChannel(5077))
            assert sorted([d.entity.id async for d in client.iter_dialogs()]) == [c.id for c in channels]
            assert server.count("messages.GetDialogs") == 2
            assert (await client.get_input_entity(t.PeerChannel(5077))).access_hash == channels[77].access_hash

    run(work())


# Faults


ERRORS = [
    (fault.flood(61), errors.FloodWaitError),
    (fault.error(406, "AUTH_KEY_DUPLICATED"), errors.AuthKeyDuplicatedError),
    (fault.error(401, "AUTH_KEY_UNREGISTERED"), errors.AuthKeyUnregisteredError),
    (fault.error(401, "SESSION_REVOKED"), errors.SessionRevokedError),
    (fault.error(401, "USER_DEACTIVATED_BAN"), errors.UserDeactivatedBanError),
    (fault.error(400, "CHANNEL_PRIVATE"), errors.ChannelPrivateError),
    (fault.error(400, "USERNAME_NOT_OCCUPIED"), errors.UsernameNotOccupiedError),
    (fault.error(400, "INVITE_HASH_EXPIRED"), errors.InviteHashExpiredError),
    (fault.error(420, "TAKEOUT_INIT_DELAY_86400"), errors.TakeoutInitDelayError),
]


@pytest.mark.parametrize(("rule", "expected"), ERRORS, ids=[e.__name__ for _, e in ERRORS])
def test_errors_reach_the_client_as_what_they_are(rule: fault.Fault, expected: type[Exception]) -> None:
    channel = make_channel(seed=16, n_posts=500)
    rule.at, rule.seen, rule.fired = (3,), 0, 0

    async def work() -> None:
        async with Telegram(Api(channel), rule) as (server, client):
            got = []
            with pytest.raises(expected) as caught:
                async for message in client.iter_messages(entity(channel), reverse=True, wait_time=0):
                    got.append(message.id)  # noqa: PERF401 - what arrived before the error counts
            assert got == [i for i in channel.ids[:200] if channel.kinds[i] != "empty"]
            assert server.count(HISTORY) == 3
            assert server.calls[-1].outcome == rule.message
            if isinstance(caught.value, errors.FloodWaitError):
                assert caught.value.seconds == 61

    run(work())


def test_a_short_flood_is_slept_by_the_client_and_nothing_is_lost() -> None:
    channel = make_channel(seed=17, n_posts=350)

    async def work() -> None:
        async with Telegram(Api(channel), fault.flood(1, at=2)) as (server, client):
            started = time.monotonic()
            assert [m.id for m in await scrape(client, channel, reverse=True)] == shown(channel)
            assert time.monotonic() - started >= 1
            assert [c.outcome for c in server.calls if c.method == HISTORY].count("FLOOD_WAIT_1") == 1

    run(work())


def test_rules_choose_calls_by_number_by_step_by_start_and_by_times() -> None:
    def calls(rule: fault.Fault) -> list[int]:
        return [n for n in range(1, 13) if rule.meets(HISTORY)]

    assert calls(fault.flood(1, at=(2, 5))) == [2, 5]
    assert calls(fault.flood(1, every=4)) == [4, 8, 12]
    assert calls(fault.flood(1, every=4, start=5)) == [8, 12]
    assert calls(fault.flood(1, start=10)) == [10, 11, 12]
    assert calls(fault.flood(1, every=2, times=2)) == [2, 4]
    assert calls(fault.flood(1, "contacts.*")) == []
    assert calls(fault.flood(1, "messages.*", at=1)) == [1]
    script = Faults.from_json('[{"kind": "cut", "after_bytes": 9, "at": 3}]')
    assert [[x.after_bytes for x in script.meeting(HISTORY)] for _ in range(4)] == [[], [], [9], []]


@pytest.mark.parametrize("after_bytes", [0, 1, 7, 8, 60, 2000, 10**9])
def test_a_connection_cut_in_the_middle_of_a_page_loses_nothing(after_bytes: int) -> None:
    channel = make_channel(seed=18, n_posts=800)

    async def work() -> None:
        async with Telegram(Api(channel)) as (server, client):
            await scrape(client, channel, reverse=True)
            undisturbed = server.count(HISTORY)
            server.clear_log()
            server.faults.add(fault.cut(after_bytes=after_bytes, at=(2, 6)))
            assert [m.id for m in await scrape(client, channel, reverse=True)] == shown(channel)
            assert server.count(HISTORY) == undisturbed + 2  # the pages that were cut are asked for again
            assert server.connections == 3
            assert [c.outcome for c in server.calls].count("cut") == 2
            assert server.overlaps == 0

    run(work())


def test_a_connection_may_break_between_pages_and_new_ones_be_refused() -> None:
    channel = make_channel(seed=19, n_posts=600)
    closing, refusing = fault.close(at=3), fault.cut(CONNECT, at=(2, 3))

    async def work() -> None:
        async with Telegram(Api(channel), closing, refusing) as (server, client):
            assert [m.id for m in await scrape(client, channel, reverse=True)] == shown(channel)
            assert (closing.fired, refusing.fired) == (1, 2)
            assert server.connections >= 4

    run(work())


def test_a_client_whose_server_always_hangs_up_tries_for_ever() -> None:
    """Telethon's bound on reconnections counts connections refused, not those that break at once."""
    channel = make_channel(seed=20, n_posts=300)

    async def work() -> None:
        script = (fault.cut(at=2), fault.cut(CONNECT, start=2))
        async with Telegram(Api(channel), *script, connection_retries=2) as (server, client):
            scraping = asyncio.ensure_future(scrape(client, channel, reverse=True))
            await asyncio.wrap_future(server.reached(CONNECT, 30))
            assert not scraping.done()
            server.faults.clear()
            assert [m.id for m in await scraping] == shown(channel)

    run(work())


def test_an_outage_is_an_error_after_the_retries_and_over_when_the_server_is_back() -> None:
    channel = make_channel(seed=20, n_posts=300)
    rule, gate = fault.hold(at=2)

    async def work() -> None:
        async with Telegram(Api(channel), rule, connection_retries=2) as (server, client):
            session = client.session.save()
            scraping = asyncio.ensure_future(scrape(client, channel, reverse=True))
            await asyncio.wrap_future(gate.reached)
            await server.stop()
            with pytest.raises(ConnectionError):
                await scraping
            await server.start()
            again = new_client(session)
            await again.connect()
            assert [m.id for m in await scrape(again, channel, reverse=True)] == shown(channel)
            await again.disconnect()

    run(work())


def test_too_many_connections_is_said_below_rpc() -> None:
    channel = make_channel(seed=21, n_posts=300)

    async def work() -> None:
        async with Telegram(Api(channel), fault.transport(-429, at=2)) as (_server, client):
            with pytest.raises(errors.InvalidBufferError) as caught:
                await scrape(client, channel, reverse=True)
            assert caught.value.code == 429

    run(work())


@pytest.mark.parametrize("reverse", [False, True])
def test_short_pages_lose_nothing(reverse: bool) -> None:
    channel = Channel(seed=22)
    channel.skip_ids(100)  # going back, Telethon takes a page that starts at 100 or lower for the last one
    channel.add_posts(700)

    async def work() -> None:
        async with Telegram(Api(channel), fault.short_page(33, every=2)) as (server, client):
            got = [m.id for m in await scrape(client, channel, reverse=reverse)]
            assert got == (shown(channel) if reverse else shown(channel)[::-1])
            assert server.count(HISTORY) > 9

    run(work())


def test_a_page_of_empty_messages_ends_the_clients_walk_as_it_does_at_telegram() -> None:
    channel = make_channel(seed=23, n_posts=100)
    first = shown(channel)
    channel.add_empty(100)
    channel.add_post("ПОСЛЕ ПУСТОТЫ")

    async def work() -> None:
        async with Telegram(Api(channel)) as (_server, client):
            assert [m.id for m in await scrape(client, channel, reverse=True)] == first
            assert (await client.get_messages(entity(channel), limit=1))[0].raw_text == "ПОСЛЕ ПУСТОТЫ"

    run(work())


def test_an_internal_error_is_tried_again_by_the_client() -> None:
    channel = make_channel(seed=24, n_posts=250)

    async def work() -> None:
        async with Telegram(Api(channel), fault.internal(at=2)) as (server, client):
            assert [m.id for m in await scrape(client, channel, reverse=True)] == shown(channel)
            assert [c.outcome for c in server.calls if c.method == HISTORY].count("INTERNAL") == 1

    run(work())


def test_answers_may_be_slow() -> None:
    channel = make_channel(seed=25, n_posts=250)

    async def work() -> None:
        async with Telegram(Api(channel), fault.delay(0.1, HISTORY)) as (server, client):
            started = time.monotonic()
            assert len(await scrape(client, channel, reverse=True)) == len(shown(channel))
            assert time.monotonic() - started >= 0.1 * server.count(HISTORY)

    run(work())


def test_an_answer_may_be_held_while_the_channel_changes() -> None:
    channel = make_channel(seed=26, n_posts=250)
    rule, gate = fault.hold(at=2)

    async def work() -> None:
        async with Telegram(Api(channel), rule) as (server, client):
            scraping = asyncio.ensure_future(scrape(client, channel, reverse=True))
            await asyncio.wrap_future(gate.reached)
            assert await client.get_me()  # other requests are not held
            assert server.count(HISTORY) == 2
            gone = next(i for i in channel.ids[150:] if channel.kinds[i] == "text")
            channel.delete(gone)
            assert not scraping.done()
            gate.release()
            got = [m.id for m in await scraping]
            assert gone not in got
            assert got == shown(channel)

    run(work())


# Sessions that die


def test_a_revoked_session_a_duplicated_one_and_a_forgotten_key() -> None:
    channel = make_channel(seed=27, n_posts=5)

    async def work() -> None:
        async with TelegramServer(Api(channel)) as server:
            for message in ("SESSION_REVOKED", "USER_DEACTIVATED_BAN", "AUTH_KEY_UNREGISTERED"):
                session = server.session()
                server.kill_sessions(401, message)
                client = new_client(session)
                await client.connect()
                assert await client.is_user_authorized() is False
                assert server.calls[-1].outcome == message
                await client.disconnect()
            session = server.session()
            server.kill_sessions(406, "AUTH_KEY_DUPLICATED")
            client = new_client(session)
            with pytest.raises(errors.AuthKeyDuplicatedError):
                await client.connect()
            await client.disconnect()
            session = server.session()
            server.forget_keys()
            client = new_client(session)
            with pytest.raises(errors.AuthKeyNotFound):
                await client.connect()
            await client.disconnect()

    run(work())


def test_one_session_at_two_places_is_noticed_and_if_wished_killed() -> None:
    channel = make_channel(seed=28, n_posts=5)

    async def work() -> None:
        for forbid in (False, True):
            async with TelegramServer(Api(channel), forbid_sharing=forbid) as server:
                text = server.session_string()
                for _ in range(3):  # one after the other is no sharing
                    client = new_client(text)
                    await client.connect()
                    await client.disconnect()
                assert server.overlaps == 0
                first, second = new_client(text), new_client(text)
                await first.connect()
                if forbid:
                    with pytest.raises(errors.AuthKeyDuplicatedError):
                        await second.connect()
                    with pytest.raises(errors.AuthKeyDuplicatedError):
                        await first(f.help.GetConfigRequest())
                else:
                    await second.connect()
                    assert await second.is_user_authorized()
                assert server.overlaps == 1
                await first.disconnect()
                await second.disconnect()

    run(work())


# Login


def logged_out(*script: fault.Fault, dcs: tuple[int, ...] = (2,), **account: Any) -> Telegram:
    api = Api(make_channel(seed=30, n_posts=30), account=Account(**account))
    return Telegram(api, *script, ports=dict.fromkeys(dcs, 0), login=False)


def test_login_by_code_after_a_wrong_and_an_expired_one_and_logout() -> None:
    async def work() -> None:
        async with logged_out() as (server, client):
            phone = server.api.account.phone
            assert await client.is_user_authorized() is False
            with pytest.raises(errors.AuthKeyUnregisteredError):
                await client.get_messages(entity(server.api.channel))
            with pytest.raises(errors.PhoneNumberInvalidError):
                await client.send_code_request("+10000000000")
            await client.send_code_request(phone)
            with pytest.raises(errors.PhoneCodeInvalidError):
                await client.sign_in(phone, "00000")
            again = await client.send_code_request(phone)
            assert isinstance(again.type, t.auth.SentCodeTypeSms)
            server.api.expire_codes()
            with pytest.raises(errors.PhoneCodeExpiredError):
                await client.sign_in(phone, "12345")
            await client.send_code_request(phone)
            assert (await client.sign_in(phone, "12345")).phone == phone
            saved = client.session.save()
            other = new_client(saved)  # the session outlives its client
            await client.disconnect()
            await other.connect()
            assert await other.is_user_authorized()
            assert len(await scrape(other, server.api.channel)) == len(shown(server.api.channel))
            assert await other.log_out() is True
            late = new_client(saved)
            await late.connect()
            assert await late.is_user_authorized() is False
            await late.disconnect()

    run(work())


def test_login_with_a_wrong_api_hash() -> None:
    async def work() -> None:
        async with logged_out() as (server, client):
            client.api_hash = "f" * 32
            with pytest.raises(errors.ApiIdInvalidError):
                await client.send_code_request(server.api.account.phone)

    run(work())


def test_login_with_a_two_step_password() -> None:
    async def work() -> None:
        async with logged_out(password="ёж-42") as (server, client):
            phone = server.api.account.phone
            await client.send_code_request(phone)
            with pytest.raises(errors.SessionPasswordNeededError):
                await client.sign_in(phone, "12345")
            assert await client.is_user_authorized() is False
            with pytest.raises(errors.PasswordHashInvalidError):
                await client.sign_in(password="ёж-43")
            client._authorized = None  # what the client remembers, not what the server thinks
            assert await client.is_user_authorized() is False
            assert (await client.sign_in(password="ёж-42")).phone == phone
            client._authorized = None
            assert await client.is_user_authorized() is True

    run(work())


def test_a_password_challenge_is_good_for_one_answer() -> None:
    check = PasswordCheck("чайник")
    srp_id, public = check.challenge()
    assert check.knows(srp_id)
    assert len(public) == 256
    assert not check.verify(srp_id, (1234).to_bytes(256, "big"), bytes(32))
    assert not check.knows(srp_id)


def test_login_moves_to_the_accounts_data_centre() -> None:
    async def work() -> None:
        async with logged_out(dcs=(2, 4), home_dc=4) as (server, client):
            phone = server.api.account.phone
            await client.send_code_request(phone)
            await client.sign_in(phone, "12345")
            assert (client.session.dc_id, client.session.port) == (4, server.dcs[4].port)
            assert [c.outcome for c in server.calls if c.method == "auth.SendCode"] == ["PHONE_MIGRATE_4", "ok"]
            assert {c.dc for c in server.calls if c.method == "auth.SignIn"} == {4}
            assert StringSession(client.session.save()).port == server.dcs[4].port

    run(work())


@pytest.mark.parametrize("what", ["USER", "NETWORK"])
def test_other_migrations_by_script(what: Any) -> None:
    async def work() -> None:
        rule = fault.migrate(4, what, "auth.SendCode", at=1)
        async with logged_out(rule, dcs=(2, 4), home_dc=4) as (server, client):
            await client.send_code_request(server.api.account.phone)
            assert client.session.dc_id == 4
            assert [c.outcome for c in server.calls if c.method == "auth.SendCode"] == [f"{what}_MIGRATE_4", "ok"]

    run(work())


@pytest.mark.parametrize("home_dc", [2, 4])
def test_login_by_qr_code(home_dc: int) -> None:
    async def work() -> None:
        async with logged_out(dcs=(2, 4), home_dc=home_dc) as (server, client):
            qr = await client.qr_login()
            assert qr.url.startswith("tg://login?token=")
            waiting = asyncio.ensure_future(qr.wait(30))
            await asyncio.sleep(0)  # the client listens from its first step on
            server.scan_qr()
            assert (await waiting).phone == server.api.account.phone
            assert client.session.dc_id == home_dc
            client._authorized = None
            assert await client.is_user_authorized() is True

    run(work())


def test_login_by_qr_code_with_a_password() -> None:
    async def work() -> None:
        async with logged_out(password="чай") as (server, client):
            qr = await client.qr_login()
            old = qr.token
            await qr.recreate()
            assert qr.token != old
            waiting = asyncio.ensure_future(qr.wait(30))
            await asyncio.sleep(0)
            server.scan_qr()
            with pytest.raises(errors.SessionPasswordNeededError):
                await waiting
            await client.sign_in(password="чай")
            client._authorized = None
            assert await client.is_user_authorized() is True

    run(work())


def test_a_client_that_does_not_know_the_servers_key_makes_no_auth_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsa, "_server_keys", {})

    async def work() -> None:
        async with TelegramServer(Api(make_channel(1, 3))) as server:
            client = new_client(server.session(authorised=False), connection_retries=1)
            with pytest.raises(ConnectionError, match="auth_key generation failed"):
                await client.connect()
            assert not server.dcs[2].keys
            assert not server.calls

    run(work())


class Chosen:
    """`os`, of which the first 256 random bytes are chosen: the secret number of one side of a key exchange."""

    def __init__(self, number: int) -> None:
        self._numbers = [number]

    def urandom(self, size: int) -> bytes:
        return self._numbers.pop().to_bytes(256, "big") if size == 256 and self._numbers else os.urandom(size)


def test_a_key_that_begins_with_a_zero_byte_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 256 does; Telethon would make it a byte shorter, and a session saved with it would be of no use."""
    public = pow(crypto.GENERATOR, 3000, crypto.PRIME)
    short = next(b for b in range(2048, 10**6) if pow(public, b, crypto.PRIME).bit_length() <= 2048 - 8)
    monkeypatch.setattr(crypto, "os", Chosen(3000))
    monkeypatch.setattr(authenticator, "os", Chosen(short))

    async def work() -> None:
        async with logged_out() as (server, client):
            lengths = [len(key.key.lstrip(b"\0")) for key, _ in server.dcs[2].keys.values()]
            assert (lengths[0], lengths[-1]) == (255, 256)
            await client.send_code_request(server.api.account.phone)
            await client.sign_in(server.api.account.phone, "12345")
            saved = client.session.save()
            await client.disconnect()
            other = new_client(saved)
            await other.connect()
            assert await other.is_user_authorized()
            await other.disconnect()

    run(work())


# Takeout


def test_a_takeout_is_opened_used_and_finished() -> None:
    channel = make_channel(seed=31, n_posts=250)

    async def work() -> None:
        async with Telegram(Api(channel)) as (server, client):
            async with client.takeout(channels=True) as takeout:
                number = client.session.takeout_id
                got = [m.id async for m in takeout.iter_messages(entity(channel), reverse=True, wait_time=0)]
                assert got == shown(channel)
                assert server.api.takeouts[number].flags == {"message_channels": True}
            assert {c.takeout for c in server.calls if c.method == HISTORY} == {number}
            assert server.api.takeouts[number].success is True
            client.session.takeout_id = number  # it is closed: Telegram says so
            with pytest.raises(errors.TakeoutInvalidError):
                async with client.takeout() as takeout:
                    await takeout.get_messages(entity(channel))
            client.session.takeout_id = None

            older, newer = await client(f.messages.GetSplitRangesRequest())
            assert newer.min_id == older.max_id + 1
            around = f.messages.GetHistoryRequest(entity(channel), newer.min_id, None, -40, 100, 0, 0, 0)
            both = [m.id for m in (await client(around)).messages]
            assert len(both) == 100
            for part, count in ((older, 60), (newer, 40)):
                page = await client(f.InvokeWithMessagesRangeRequest(part, around))
                assert [m.id for m in page.messages] == [i for i in both if part.min_id <= i <= part.max_id]
                assert len(page.messages) == count

    run(work())


def test_a_takeout_that_telegram_delays() -> None:
    rule = fault.error(420, "TAKEOUT_INIT_DELAY_86400", "account.InitTakeoutSession")

    async def work() -> None:
        async with Telegram(Api(make_channel(1, 5)), rule) as (server, client):
            with pytest.raises(errors.TakeoutInitDelayError) as caught:
                async with client.takeout(channels=True):
                    raise AssertionError("the takeout was opened")
            assert caught.value.seconds == 86400
            assert not server.api.takeouts

    run(work())


# The server itself


def test_what_the_server_does_not_know_is_an_rpc_error_and_fails_the_test() -> None:
    async def work() -> None:
        async with Telegram(Api(make_channel(1, 5))) as (_server, client):
            with pytest.raises(errors.MethodInvalidError):
                await client(f.account.GetContentSettingsRequest())

    with pytest.raises(AssertionError, match=r"no handler for account\.GetContentSettings"):
        run(work())


def test_a_bug_of_a_handler_is_an_rpc_error_and_fails_the_test() -> None:
    channel = make_channel(1, 5)
    channel.window = lambda **_: 1 / 0  # type: ignore[method-assign, assignment]

    async def work() -> None:
        async with Telegram(Api(channel), request_retries=0) as (_server, client):
            with pytest.raises(errors.ServerError):
                await client(f.messages.GetHistoryRequest(entity(channel), 0, None, 0, 100, 0, 0, 0))

    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run(work())


def test_many_requests_at_once_pings_and_a_request_too_long_for_one_packet() -> None:
    channel = make_channel(seed=32, n_posts=400)

    async def work() -> None:
        async with Telegram(Api(channel)) as (server, client):
            pages = await asyncio.gather(*(client.get_messages(entity(channel), ids=[i]) for i in channel.ids))
            assert [p[0].id if p[0] else None for p in pages] == [
                i if channel.kinds[i] != "empty" else None for i in channel.ids
            ]
            assert server.count("channels.GetMessages") == 400
            pong = await client(f.PingRequest(77))
            assert pong.ping_id == 77
            with pytest.raises(errors.LimitInvalidError):  # gzipped by the client
                await client(f.channels.GetMessagesRequest(entity(channel), list(range(1, 300))))

    run(work())


def test_handlers_can_be_asked_without_a_network() -> None:
    api = Api(make_channel(1, 5))
    server = TelegramServer(api)
    session = server.session()
    context_state = server.state_of(session)
    assert context_state.authorised
    context_state.authorised = False
    with pytest.raises(RpcError, match="AUTH_KEY_UNREGISTERED"):
        from .api import Context

        api.handle(f.updates.GetStateRequest(), Context(2, context_state))


def test_a_server_in_a_thread_beside_a_client_that_is_a_process(tmp_path: Path) -> None:
    channel = make_channel(seed=33, n_posts=450)
    rule, gate = fault.hold(at=3)
    script = tmp_path / "reader.py"
    script.write_text(
        "import asyncio, os, sys\n"
        "from telethon import TelegramClient\n"
        "from telethon.sessions import StringSession\n"
        "async def main():\n"
        "    client = TelegramClient(StringSession(os.environ['SESSION']), 1, 'x', retry_delay=0)\n"
        "    await client.connect()\n"
        "    channel = await client.get_input_entity(sys.argv[1])\n"
        "    async for message in client.iter_messages(channel, reverse=True, wait_time=0):\n"
        "        print(message.id)\n"
        "    await client.disconnect()\n"
        "asyncio.run(main())\n"
    )
    server = TelegramServer(Api(channel), Faults(rule, fault.cut(after_bytes=500, at=2)), forbid_sharing=True)
    with ServerThread(server) as running:
        env = {**os.environ, "SESSION": running.do(server.session_string)}
        command = [sys.executable, str(script), "bugurt_test"]
        victim = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
        running.wait_for(HISTORY, 3)  # it waits for an answer: kill it there
        victim.kill()
        victim.wait(30)
        gate.release()
        added = running.do(lambda: channel.add_posts(60))
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
        assert [int(line) for line in done.stdout.split()] == shown(channel)
        assert added[-1] == channel.top_id
        assert server.overlaps == 0
    assert "telegram" not in [thread.name for thread in threading.enumerate()]


def test_a_server_as_a_process_with_a_login_by_the_launcher(tmp_path: Path) -> None:
    key = tmp_path / "public.pem"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    options = ["--posts", "230", "--seed", "5", "--dcs", "2", "4", "--home-dc", "4", "--password", "чай"]
    faults = json.dumps([{"kind": "error", "code": 420, "message": "FLOOD_WAIT_999", "at": 3}])
    (tmp_path / "login_probe.py").write_text(
        "import asyncio, json, sys\n"
        "from telethon import TelegramClient, errors\n"
        "from telethon.sessions import StringSession\n"
        "async def main():\n"
        "    account = json.loads(sys.argv[1])\n"
        "    client = TelegramClient(StringSession(), account['api_id'], account['api_hash'], retry_delay=0)\n"
        "    await client.connect()\n"
        "    await client.send_code_request(account['phone'])\n"
        "    try:\n"
        "        await client.sign_in(account['phone'], account['code'])\n"
        "    except errors.SessionPasswordNeededError:\n"
        "        await client.sign_in(password=account['password'])\n"
        "    print(client.session.save())\n"
        "    await client.disconnect()\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-m", "tests.telegram.server", *options, "--faults", faults, "--public-key", str(key)]
    server = subprocess.Popen(
        command, env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )

    def order(**what: Any) -> Any:
        assert server.stdin
        assert server.stdout
        server.stdin.write(json.dumps(what) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    try:
        assert server.stdout
        hello = json.loads(server.stdout.readline())
        address = f"{hello['host']}:{hello['ports']['2']}"
        launcher = [sys.executable, "-m", "tests.telegram.clients", "--key", str(key), "--server", address]
        account = json.dumps(hello["account"])
        login = subprocess.run(
            [*launcher, "-m", "login_probe", account],
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        session = StringSession(login.stdout.strip())
        assert (session.dc_id, session.port) == (4, hello["ports"]["4"])

        ids = order(do="ids")["result"]
        newest = order(do="add_posts", count=3)["result"]
        assert order(do="delete", ids=ids[50])["result"] is None

        async def work() -> None:
            client = new_client(session)
            await client.connect()
            peer = t.InputPeerChannel(hello["channel"]["id"], hello["channel"]["access_hash"])
            with pytest.raises(errors.FloodWaitError):
                await client.get_messages(peer, limit=None, wait_time=0)
            client._flood_waited_requests.clear()
            got = [m.id async for m in client.iter_messages(peer, reverse=True, wait_time=0)]
            assert got[-1] <= newest[-1]
            assert ids[50] not in got
            assert len(got) > 200
            await client.disconnect()

        run(work())
        counts = order(do="counts")["result"]
        assert counts["auth.SendCode"] == 2
        assert counts[HISTORY] == len([c for c in order(do="calls")["result"] if c["method"] == HISTORY])
        assert "no such command" in order(do="dance")["error"]
        assert server.stdin
        server.stdin.close()
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait(30)
