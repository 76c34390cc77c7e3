"""The server: data centres that listen on the loopback, their connections, and a log of every call.

In the event loop of a test:

    async with TelegramServer(Api(make_channel(seed=1, n_posts=1000))) as server:
        client = new_client(server.session())

In a thread of its own, for a client that is another process:

    with ServerThread(TelegramServer(Api(channel))) as running:
        subprocess.run([...], env={..., "SESSION": running.server.session_string()})

As a process: `python -m tests.telegram.server --posts 1000`, see `main`.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import gzip
import json
import os
import struct
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

from telethon.crypto import AuthKey
from telethon.extensions import BinaryReader
from telethon.sessions import StringSession
from telethon.tl import TLObject
from telethon.tl import functions as f
from telethon.tl import types as t
from telethon.tl.core import GzipPacked, MessageContainer

from .api import Account, Api, AuthState, Context, RpcError, method_name
from .channel import make_channel
from .crypto import Envelope, Handshake, ServerKey, open_message, seal_message, shared_key
from .faults import CONNECT, Fault, Faults

T = TypeVar("T")

RPC_RESULT = 0xF35C6D01
VECTOR = 0x1CB5C415
BOOL_TRUE, BOOL_FALSE = 0x997275B5, 0xBC799737
MAX_PACKET = 1 << 24
SERVICE_CHATTER = (t.MsgsAck, t.MsgsStateInfo, f.GetFutureSaltsRequest)


@dataclass
class Call:
    """One RPC: its method, its plain arguments, and what came of it ("ok", an error, or the kind of cut)."""

    method: str
    args: dict[str, Any]
    dc: int
    takeout: int | None = None
    outcome: str = "pending"
    at: float = field(default_factory=time.monotonic)  # seconds, when it came


@dataclass(eq=False)
class DataCentre:
    """One address of Telegram, with the auth keys that were made there."""

    id: int
    port: int = 0

    def __post_init__(self) -> None:
        self.keys: dict[int, tuple[AuthKey, AuthState]] = {}
        self.listener: asyncio.Server | None = None

    def add_key(self, key: AuthKey, state: AuthState) -> None:
        self.keys[key.key_id] = (key, state)


class TelegramServer:
    """Telegram on the loopback: an `Api`, a script of `Faults`, and data centres by id and port (0: any)."""

    def __init__(
        self,
        api: Api,
        faults: Faults | None = None,
        *,
        ports: Mapping[int, int] | None = None,
        host: str = "127.0.0.1",
        forbid_sharing: bool = False,
    ) -> None:
        self.api = api
        self.faults = faults or Faults()
        self.host = host
        self.forbid_sharing = forbid_sharing
        self.dcs = {dc: DataCentre(dc, port) for dc, port in (ports or {2: 0}).items()}
        self.calls: list[Call] = []
        self.bugs: list[str] = []  # what the server itself did wrong or does not know
        self.connections = 0
        self.overlaps = 0  # how often an auth key was met on a second live connection
        self.salt = int.from_bytes(os.urandom(7), "little")
        self._open: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._counts: Counter[str] = Counter()
        self._waiting: list[tuple[str, int, concurrent.futures.Future[None]]] = []

    # Life

    async def start(self) -> TelegramServer:
        """Listen. A server that was stopped comes back at the same ports, with its keys and its log."""
        for dc in self.dcs.values():
            dc.listener = await asyncio.start_server(partial(self._accept, dc), self.host, dc.port)
            dc.port = dc.listener.sockets[0].getsockname()[1]
        self.api.host = self.host
        self.api.dc_options = {dc.id: dc.port for dc in self.dcs.values()}
        return self

    async def stop(self) -> None:
        """Go dark: connections are closed, new ones refused by the operating system."""
        for dc in self.dcs.values():
            if dc.listener is not None:
                dc.listener.close()
        for connection in list(self._open):
            connection.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> TelegramServer:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        await self.stop()
        if kind is None:
            self.check()

    def check(self) -> None:
        """Fail if the server had to answer something it does not know, or stumbled over itself."""
        if self.bugs:
            raise AssertionError("the test server is at fault:\n" + "\n".join(self.bugs))

    # Sessions

    @property
    def key(self) -> ServerKey:
        """The RSA key. Only a login (or a move to another data centre) needs it: see `clients`."""
        return shared_key()

    def session(self, *, dc: int | None = None, authorised: bool = True) -> StringSession:
        """A session that is logged in already, or one that has only the address and has to do it all."""
        centre = self.dcs[dc or next(iter(self.dcs))]
        session = StringSession()
        session.set_dc(centre.id, self.host, centre.port)
        if authorised:
            session.auth_key = AuthKey(os.urandom(256))
            centre.add_key(session.auth_key, AuthState(authorised=True))
        return session

    def session_string(self, **options: Any) -> str:
        """The same as text, for a client in another process. It holds the address: no more is needed."""
        return self.session(**options).save()

    def state_of(self, session: StringSession) -> AuthState:
        return self.dcs[session.dc_id].keys[session.auth_key.key_id][1]

    def kill_sessions(self, code: int, message: str) -> None:
        """Every session is dead from now on: `kill_sessions(401, "SESSION_REVOKED")`."""
        for dc in self.dcs.values():
            for _key, state in dc.keys.values():
                state.killed = (code, message)

    def forget_keys(self) -> None:
        """Auth keys become unknown, which a client learns below RPC, by a -404."""
        for dc in self.dcs.values():
            dc.keys.clear()

    def scan_qr(self) -> None:
        """The user scans the QR code shown last; its client hears of it."""
        token = self.api.scan_qr()
        for connection in self._open:
            if connection.state is not None and connection.state.qr_token == token:
                connection.push(t.UpdateShort(t.UpdateLoginToken(), int(time.time())))

    # The log

    def count(self, method: str) -> int:
        return self._counts[method]

    def histories(self) -> list[dict[str, Any]]:
        """The arguments of every `messages.getHistory`, in order."""
        return [call.args for call in self.calls if call.method == "messages.GetHistory"]

    def clear_log(self) -> None:
        self.calls.clear()
        self._counts.clear()

    def reached(self, method: str, count: int = 1) -> concurrent.futures.Future[None]:
        """Done when so many calls of a method (or connections: `CONNECT`) have come since the log was cleared.

        Wait for it by `.result(timeout)` in a thread, or `asyncio.wrap_future` in the server's event loop.
        """
        future: concurrent.futures.Future[None] = concurrent.futures.Future()
        if self._counts[method] >= count:
            future.set_result(None)
        else:
            self._waiting.append((method, count, future))
        return future

    def log(self, call: Call) -> None:
        self.calls.append(call)
        self._tick(call.method)

    def _tick(self, counted: str) -> None:
        self._counts[counted] += 1
        for entry in list(self._waiting):
            method, count, future = entry
            if method == counted and self._counts[method] >= count:
                self._waiting.remove(entry)
                if not future.done():
                    future.set_result(None)

    # Connections

    async def _accept(self, dc: DataCentre, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._tick(CONNECT)
        if any(fault.kind == "cut" for fault in self.faults.meeting(CONNECT)):
            writer.close()
            return
        connection = Connection(self, dc, reader, writer)
        self._open.add(connection)
        if (task := asyncio.current_task()) is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            await connection.serve()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has gone, or the server is stopping
        except Exception:
            self.bugs.append(traceback.format_exc())
        finally:
            self._open.discard(connection)
            connection.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.bugs.append("".join(traceback.format_exception(error)))

    async def notice_sharing(self, newcomer: Connection) -> None:
        """Telegram kills an auth key that it sees at two places at once. This server counts, and may kill."""
        for _ in range(3):
            await asyncio.sleep(0)  # an end of stream that has arrived already is noticed first
        for other in self._open:
            if other is not newcomer and other.state is newcomer.state and not other.gone:
                self.overlaps += 1
                if self.forbid_sharing and newcomer.state is not None:
                    newcomer.state.killed = (406, "AUTH_KEY_DUPLICATED")
                return


class Connection:
    """One TCP connection in Telegram's "full" transport, plain for the key exchange and encrypted after it."""

    def __init__(
        self, server: TelegramServer, dc: DataCentre, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.server = server
        self.dc = dc
        self.state: AuthState | None = None
        self._reader = reader
        self._writer = writer
        self._key: AuthKey | None = None
        self._session_id: int | None = None
        self._handshake: Handshake | None = None
        self._packets = 0
        self._content = 0
        self._last_msg_id = 0
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def gone(self) -> bool:
        return self._closed or self._reader.at_eof()

    def close(self) -> None:
        """Close after what is written already."""
        self._closed = True
        self._writer.close()
        for task in self._tasks:
            task.cancel()

    async def serve(self) -> None:
        while not self._closed:
            head = await self._reader.readexactly(8)
            (size, _number) = struct.unpack("<ii", head)
            if not 12 <= size <= MAX_PACKET:
                raise ValueError(f"a packet of {size} bytes: not the full transport")
            rest = await self._reader.readexactly(size - 8)
            body = rest[:-4]
            if crc32(head + body) != struct.unpack("<I", rest[-4:])[0]:
                raise ValueError("a packet with a wrong checksum")
            if body[:8] == bytes(8):
                self._plain(body)
            else:
                await self._encrypted(body)
            if not self._closed:
                await self._writer.drain()

    # Below RPC

    def _send(self, body: bytes, cut_after: int | None = None) -> None:
        if self._closed:
            return
        packet = struct.pack("<ii", len(body) + 12, self._packets) + body
        packet += struct.pack("<I", crc32(packet))
        self._packets += 1
        self._writer.write(packet if cut_after is None else packet[: min(cut_after, len(packet) - 1)])

    def _msg_id(self, kind: int) -> int:
        """Odd, rising, and near the present: 1 for an answer, 3 for a notice."""
        now = time.time_ns()
        seconds, rest = divmod(now, 10**9)
        msg_id = (seconds << 32 | (rest << 32) // 10**9) & ~3 | kind
        if msg_id <= self._last_msg_id:
            msg_id = (self._last_msg_id & ~3) + 4 | kind
        self._last_msg_id = msg_id
        return msg_id

    def _plain(self, body: bytes) -> None:
        if self._handshake is None:
            self._handshake = Handshake(self.server.key)
        answer = bytes(self._handshake.answer(BinaryReader(body[20:]).tgread_object()))
        if self._handshake.auth_key is not None:
            self.dc.add_key(self._handshake.auth_key, AuthState())
            self._handshake = None
        self._send(struct.pack("<qqi", 0, self._msg_id(1), len(answer)) + answer)

    async def _encrypted(self, body: bytes) -> None:
        known = self.dc.keys.get(struct.unpack("<Q", body[:8])[0])
        if known is None:
            self._send(struct.pack("<i", -404))
            return
        new = known[1] is not self.state
        self._key, self.state = known
        if new:
            await self.server.notice_sharing(self)
        envelope = open_message(self._key, body)
        fresh = envelope.session_id != self._session_id
        self._session_id = envelope.session_id
        if envelope.salt != self.server.salt:
            self._message(bytes(t.BadServerSalt(envelope.msg_id, 0, 48, self.server.salt)), content=False)
            return
        if fresh:
            self._message(bytes(t.NewSessionCreated(envelope.msg_id, 1, self.server.salt)), content=True)
        self._receive(envelope.msg_id, BinaryReader(envelope.body).tgread_object(), envelope)

    def _message(self, body: bytes, *, content: bool, kind: int = 1, cut_after: int | None = None) -> None:
        if self._key is None or self._session_id is None:
            raise RuntimeError("nothing can be encrypted before the client has spoken")
        seq = self._content * 2 + content
        self._content += content
        envelope = Envelope(self.server.salt, self._session_id, self._msg_id(kind), body, seq)
        sealed = seal_message(self._key, envelope)
        self._send(sealed, cut_after)

    def push(self, update: TLObject) -> None:
        """Send an update that nobody asked for."""
        self._message(bytes(update), content=True, kind=3)

    def _receive(self, msg_id: int, message: Any, envelope: Envelope) -> None:
        if isinstance(message, MessageContainer):
            for inner in message.messages:
                self._receive(inner.msg_id, inner.obj, envelope)
        elif isinstance(message, GzipPacked):
            self._receive(msg_id, BinaryReader(message.data).tgread_object(), envelope)
        elif isinstance(message, (f.PingRequest, f.PingDelayDisconnectRequest)):
            self._message(bytes(t.Pong(msg_id, message.ping_id)), content=False)
        elif not isinstance(message, SERVICE_CHATTER):
            task = self.server.spawn(self._rpc(msg_id, message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    # RPC

    async def _rpc(self, msg_id: int, request: Any) -> None:
        assert self.state is not None
        takeout: int | None = None
        message_range: tuple[int, int] | None = None
        while hasattr(request, "query"):
            if isinstance(request, f.InvokeWithTakeoutRequest):
                takeout = request.takeout_id
            elif isinstance(request, f.InvokeWithMessagesRangeRequest):
                message_range = (request.range.min_id, request.range.max_id)
            request = request.query
        call = Call(method_name(request), _plain_args(request), self.dc.id, takeout)
        faults = self.server.faults.meeting(call.method)
        self.server.log(call)
        for fault in faults:
            if fault.kind == "delay":
                await asyncio.sleep(fault.seconds)
            elif fault.kind == "hold" and fault.gate is not None:
                if not fault.gate.reached.done():
                    fault.gate.reached.set_result(None)
                await asyncio.shield(asyncio.wrap_future(fault.gate.released))
        keep = next((fault.keep for fault in faults if fault.kind == "short"), None)
        context = Context(self.dc.id, self.state, takeout, message_range, keep)
        body = self._result(request, context, faults, call)
        self._answer(struct.pack("<Iq", RPC_RESULT, msg_id) + body, faults, call)

    def _result(self, request: Any, context: Context, faults: list[Fault], call: Call) -> bytes:
        try:
            for fault in faults:
                if fault.kind == "error":
                    raise RpcError(fault.code, fault.message)
            body = _serialise(self.server.api.handle(request, context))
        except RpcError as fail:
            call.outcome = fail.message
            return bytes(t.RpcError(fail.code, fail.message))
        except NotImplementedError as missing:
            self.server.bugs.append(f"no handler for {missing}")
            call.outcome = "METHOD_INVALID"
            return bytes(t.RpcError(400, "METHOD_INVALID"))
        except Exception:  # unanswered, the client would ask for ever
            self.server.bugs.append(traceback.format_exc())
            call.outcome = "BUG"
            return bytes(t.RpcError(500, "INTERNAL_BUG_OF_THE_TEST_SERVER"))
        call.outcome = "ok"
        if len(body) <= 512:
            return body
        return struct.pack("<I", GzipPacked.CONSTRUCTOR_ID) + TLObject.serialize_bytes(gzip.compress(body, 1))

    def _answer(self, message: bytes, faults: list[Fault], call: Call) -> None:
        for fault in faults:
            if fault.kind == "transport":
                call.outcome = f"transport {fault.code}"
                self._send_transport_error(fault.code)
                return
            if fault.kind == "cut":
                call.outcome = "cut"
                if fault.after_bytes:
                    self._message(message, content=True, cut_after=fault.after_bytes)
                self.close()
                return
        self._message(message, content=True)
        if any(fault.kind == "close" for fault in faults):
            call.outcome = "closed"
            self.close()

    def _send_transport_error(self, code: int) -> None:
        if code == -429:  # seen in the wild without the framing
            self._writer.write(struct.pack("<iii", code, code, code))
        else:
            self._send(struct.pack("<i", code))


def _plain_args(request: TLObject) -> dict[str, Any]:
    """The arguments that are numbers, words and dates; a date as Unix time."""
    plain: dict[str, Any] = {}
    for name, value in vars(request).items():
        if isinstance(value, datetime):
            plain[name] = int(value.timestamp())
        elif value is None or isinstance(value, (int, str)):
            plain[name] = value
        elif isinstance(value, list):
            plain[name] = len(value)
    return plain


def _serialise(result: Any) -> bytes:
    if isinstance(result, bool):
        return struct.pack("<I", BOOL_TRUE if result else BOOL_FALSE)
    if isinstance(result, list):
        return struct.pack("<Ii", VECTOR, len(result)) + b"".join(map(bytes, result))
    return bytes(result)


class ServerThread:
    """A server with a thread and an event loop of its own, so that a test may block, or run other processes."""

    def __init__(self, server: TelegramServer) -> None:
        self.server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="telegram", daemon=True)

    def __enter__(self) -> ServerThread:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.server.start(), self._loop).result(30)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        asyncio.run_coroutine_threadsafe(self.server.stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()
        if kind is None:
            self.server.check()

    def do(self, what: Callable[[], T]) -> T:
        """Run `what` between two steps of the server: changes to its channels belong in here."""

        async def step() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(step(), self._loop).result(60)

    def wait_for(self, method: str, count: int = 1, timeout: float = 30) -> None:
        """Block until the log has so many calls of a method."""
        self.do(lambda: self.server.reached(method, count)).result(timeout)


# As a process


def _command(server: TelegramServer, line: str) -> Any:
    """One line of standard input, a JSON object: `{"do": "add_posts", "count": 5}`."""
    order = json.loads(line)
    what = order.pop("do")
    channel = server.api.channels.get(order.pop("channel", 0)) or server.api.channel
    if what == "add_posts":
        return channel.add_posts(order["count"])
    if what == "edit":
        return channel.edit(order["id"], order.get("text"))
    if what == "delete":
        return channel.delete(order["ids"])
    if what == "ids":
        return list(channel.ids)
    if what == "calls":
        return [asdict(call) for call in server.calls]
    if what == "counts":
        return dict(Counter(call.method for call in server.calls))
    if what == "faults":
        server.faults = Faults.from_json(json.dumps(order["faults"]))
        return len(order["faults"])
    if what == "kill_sessions":
        return server.kill_sessions(order["code"], order["message"])
    if what == "scan_qr":
        return server.scan_qr()
    raise ValueError(f"no such command: {what}")


async def _serve(server: TelegramServer, hello: Callable[[], dict[str, Any]]) -> None:
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:  # a daemon: blocked in a read, it must not keep an interrupted process alive
        with contextlib.suppress(RuntimeError):  # the loop has gone
            for line in iter(sys.stdin.readline, ""):
                loop.call_soon_threadsafe(lines.put_nowait, line)
            loop.call_soon_threadsafe(lines.put_nowait, "")

    async with server:
        print(json.dumps(hello()), flush=True)
        threading.Thread(target=read, daemon=True).start()
        while line := await lines.get():
            try:
                answer: dict[str, Any] = {"result": _command(server, line)}
            except (ValueError, KeyError) as wrong:
                answer = {"error": repr(wrong)}
            print(json.dumps(answer, ensure_ascii=False), flush=True)


def main(argv: list[str] | None = None) -> None:
    """Serve until standard input ends.

    The first line of output is a JSON object: `host`, `ports` by data centre, `session` (a StringSession that is
    logged in), `channel` (id, access_hash, username, invite), `account`. Every line of input is a command (see
    `_command`), answered by a line. `--public-key FILE` writes the RSA public key that a login needs.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.telegram.server", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="of the first data centre; 0 takes any")
    parser.add_argument("--dcs", type=int, nargs="+", default=[2], metavar="ID")
    parser.add_argument("--home-dc", type=int, default=2)
    parser.add_argument("--posts", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--username", default="bugurt_test")
    parser.add_argument("--invite")
    parser.add_argument("--password", help="two-step password of the account")
    parser.add_argument("--faults", default="[]", help="a JSON list of objects with the fields of Fault")
    parser.add_argument("--forbid-sharing", action="store_true", help="406 for a session used twice at once")
    parser.add_argument("--public-key", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    channel = make_channel(args.seed, args.posts, username=args.username or None, invite=args.invite)
    account = Account(home_dc=args.home_dc, password=args.password)
    ports = {dc: args.port if number == 0 else 0 for number, dc in enumerate(args.dcs)}
    server = TelegramServer(
        Api(channel, account=account),
        Faults.from_json(args.faults),
        ports=ports,
        forbid_sharing=args.forbid_sharing,
    )
    if args.public_key:
        args.public_key.write_text(server.key.public_pem, encoding="ascii")

    def hello() -> dict[str, Any]:
        return {
            "host": server.host,
            "ports": {dc.id: dc.port for dc in server.dcs.values()},
            "session": server.session_string(),
            "channel": {name: getattr(channel, name) for name in ("id", "access_hash", "username", "invite")},
            "account": asdict(account),
        }

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(server, hello))


if __name__ == "__main__":
    main()
