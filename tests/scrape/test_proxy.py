"""Proxies: the addresses that are understood, and a scrape whose every byte goes through a SOCKS5 server."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Iterator

import pytest

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
