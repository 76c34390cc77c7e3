"""Proxies: the addresses that are understood, and scrapes whose every byte goes through a SOCKS5 or MTProto proxy."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import struct
import threading
from collections.abc import Iterator
from zlib import crc32

import pytest
from telethon.crypto import AESModeCTR

from jobs.artifacts import ArtifactStore
from jobs.specs import ConfigError, ScrapeSpec
from jobs.telegram import parse_proxy
from tests.conftest import RunStage
from tests.telegram.channel import make_channel

from .conftest import Serve, telegram_env
from .helpers import rows
from .test_telegram import check

SECRET = "0123456789abcdef0123456789abcdef"


class Socks:
    """A SOCKS5 server (RFC 1928) with name and password (RFC 1929), in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.port = 0
        self.asked: list[tuple[str, int]] = []
        self.names: list[tuple[str, str]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._start(), self.loop).result(10)

    async def _start(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, count = await reader.readexactly(2)
        await reader.readexactly(count)
        writer.write(b"\x05\x02")
        _, size = await reader.readexactly(2)
        name = (await reader.readexactly(size)).decode()
        [size] = await reader.readexactly(1)
        self.names.append((name, (await reader.readexactly(size)).decode()))
        writer.write(b"\x01\x00")
        _, _, _, kind = await reader.readexactly(4)
        if kind == 1:
            host = ".".join(str(b) for b in await reader.readexactly(4))
        else:
            [size] = await reader.readexactly(1)
            host = (await reader.readexactly(size)).decode()
        [port] = struct.unpack(">H", await reader.readexactly(2))
        self.asked.append((host, port))
        there_reader, there_writer = await asyncio.open_connection(host, port)
        writer.write(b"\x05\x00\x00\x01" + bytes(6))
        for source, target in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.ensure_future(self._pump(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
        target.close()


@pytest.fixture
def socks() -> Iterator[Socks]:
    server = Socks()
    yield server
    server.loop.call_soon_threadsafe(server.loop.stop)


def test_a_scrape_goes_through_the_proxy(store: ArtifactStore, run_stage: RunStage, serve: Serve, socks: Socks) -> None:
    channel = make_channel(1, 250)
    running = serve(channel)
    proxy = f"socks5://ivan:p%40ss@127.0.0.1:{socks.port}"
    spec = ScrapeSpec(channel="@bugurt_test")
    result = run_stage(spec, env={**telegram_env(running.server), "BUGURT_TELEGRAM_PROXY": proxy})
    assert result.code == 0, result.stderr
    check(rows(store, spec.ref()), channel)
    assert socks.names == [("ivan", "p@ss")]
    assert [port for _, port in socks.asked] == [dc.port for dc in running.server.dcs.values()]
    assert running.server.connections == 1


class MtProxy:
    """An MTProto proxy (https://core.telegram.org/mtproto/mtproto-transports#transport-obfuscation), in a thread.

    Takes the padded intermediate transport under AES-CTR, with keys of the client's first 64 bytes and the secret, and
    speaks the full transport to the server. Who does not know the secret is hung up on, as proxies do.
    """

    def __init__(self, secret: str, server: tuple[str, int]) -> None:
        self.loop = asyncio.new_event_loop()
        self.port = 0
        self.centres: list[int] = []  # that clients asked for
        self.refused = 0
        self.frames = 0
        self._secret, self._server = bytes.fromhex(secret), server
        self._tasks: set[asyncio.Task[None]] = set()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._start(), self.loop).result(10)

    async def _start(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(64)
        back = first[55:7:-1]
        reading = AESModeCTR(hashlib.sha256(first[8:40] + self._secret).digest(), first[40:56])
        writing = AESModeCTR(hashlib.sha256(back[:32] + self._secret).digest(), back[32:48])
        tail = reading.encrypt(first)[56:]
        if tail[:4] != b"\xdd" * 4:  # the sign of the transport, if the secrets are the same
            self.refused += 1
            writer.close()
            return
        self.centres.append(int.from_bytes(tail[4:6], "little", signed=True))
        there_reader, there_writer = await asyncio.open_connection(*self._server)
        for work in (
            self._to_server(reader, reading, there_writer),
            self._to_client(there_reader, writing, writer),
        ):
            task = asyncio.ensure_future(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _to_server(self, reader: asyncio.StreamReader, cipher: AESModeCTR, writer: asyncio.StreamWriter) -> None:
        number = 0
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                [size] = struct.unpack("<i", cipher.encrypt(await reader.readexactly(4)))
                body = cipher.encrypt(await reader.readexactly(size))
                body = body[: size - size % 4]  # the rest is padding
                packet = struct.pack("<ii", len(body) + 12, number) + body
                writer.write(packet + struct.pack("<I", crc32(packet)))
                number += 1
                self.frames += 1
                await writer.drain()
        writer.close()

    async def _to_client(self, reader: asyncio.StreamReader, cipher: AESModeCTR, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size, _ = struct.unpack("<ii", await reader.readexactly(8))
                body = (await reader.readexactly(size - 8))[:-4]
                writer.write(cipher.encrypt(struct.pack("<i", len(body)) + body))
                await writer.drain()
        writer.close()


@pytest.mark.parametrize("prefix", ["", "dd"])
def test_a_scrape_goes_through_an_mtproto_proxy(
    store: ArtifactStore, run_stage: RunStage, serve: Serve, prefix: str
) -> None:
    channel = make_channel(1, 250)
    running = serve(channel)
    [(number, centre)] = running.server.dcs.items()
    proxy = MtProxy(SECRET, (running.server.host, centre.port))
    spec = ScrapeSpec(channel="@bugurt_test")
    link = f"https://t.me/proxy?server=127.0.0.1&port={proxy.port}&secret={prefix}{SECRET}"
    result = run_stage(spec, env={**telegram_env(running.server), "BUGURT_TELEGRAM_PROXY": link})
    proxy.loop.call_soon_threadsafe(proxy.loop.stop)
    assert result.code == 0, result.stderr
    check(rows(store, spec.ref()), channel)
    assert proxy.centres == [number]
    assert proxy.frames >= 5
    assert running.server.connections == 1
    assert SECRET not in result.stderr


def test_a_proxy_with_another_secret_is_temporary(run_stage: RunStage, serve: Serve) -> None:
    running = serve(make_channel(1, 5))
    [centre] = running.server.dcs.values()
    proxy = MtProxy("f" * 32, (running.server.host, centre.port))
    text = f"mtproxy://{SECRET}@127.0.0.1:{proxy.port}"
    result = run_stage(
        ScrapeSpec(channel="@bugurt_test"), env={**telegram_env(running.server), "BUGURT_TELEGRAM_PROXY": text}
    )
    proxy.loop.call_soon_threadsafe(proxy.loop.stop)
    assert result.code == 75, result.stderr
    assert proxy.refused > 0
    assert running.server.connections == 0
    assert SECRET not in result.stderr


@pytest.mark.parametrize(
    "text",
    [
        f"mtproxy://{SECRET}@proxy.primer.ru:443",
        f"https://t.me/proxy?server=proxy.primer.ru&port=443&secret={SECRET}",
        f"tg://proxy?server=proxy.primer.ru&port=443&secret={SECRET}",
    ],
)
def test_mtproto_proxies(text: str) -> None:
    from telethon.network.connection import ConnectionTcpMTProxyRandomizedIntermediate as Connection

    assert parse_proxy(text) == {"connection": Connection, "proxy": ("proxy.primer.ru", 443, SECRET)}


def test_other_proxies() -> None:
    assert parse_proxy(None) == parse_proxy("") == {}
    assert parse_proxy("http://primer.ru:3128") == {
        "proxy": {"proxy_type": "http", "addr": "primer.ru", "port": 3128, "rdns": True}
    }
    assert parse_proxy("socks5://u:p@[::1]:9")["proxy"]["addr"] == "::1"


@pytest.mark.parametrize(
    "text",
    [
        "primer.ru:1080",
        "socks5://primer.ru",
        "socks5://primer.ru:port",
        "ftp://primer.ru:1",
        "mtproxy://primer.ru:443",
        "mtproxy://zz@primer.ru:443",
        "https://t.me/proxy?server=primer.ru",
        f"mtproxy://ee{SECRET}@primer.ru:443",
    ],
)
def test_what_is_no_proxy(text: str) -> None:
    with pytest.raises(ConfigError, match="BUGURT_TELEGRAM_PROXY") as caught:
        parse_proxy(text)
    assert "primer.ru" not in str(caught.value)
