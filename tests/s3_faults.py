"""A proxy between an S3 client and a server that breaks chosen answers, as networks and servers do.

``FaultyS3(endpoint)`` listens on a port of its own. ``break_next(kind, …)`` arms a fault for requests to come:

- ``error``: 500 InternalError; ``slow_down``: 503 SlowDown; ``denied``: 403 AccessDenied;
- ``full``: 507, a storage without space;
- ``reset``: the request is read and the connection reset;
- ``lost``: the request has its effect, and the connection is reset before the answer;
- ``half_upload``: the server gets half of the request's body, and the connection ends;
- ``corrupt_upload``: the server gets the request's body with one byte changed;
- ``forged_upload``: as before, and the digest that goes along is that of the changed body;
- ``clock``: 403 RequestTimeTooSkewed, what a server says to a machine whose clock is wrong;
- ``stall``: the answer comes after two seconds;
- ``hold``: the request goes on once ``go`` of the armed fault is set;
- ``truncate``: the headers promise the whole body, half of it comes, the connection closes;
- ``corrupt``: the body with one byte changed;
- ``trickle``: the body in small pieces with pauses.

``weather`` (method, target) may name a fault for any request that no armed one hits; ``skew`` is added, in seconds,
to the Date of all answers: the clock of what stands before a storage is not always the storage's own. ``spot`` (the
body's length) chooses the byte that is changed: the last one, if nobody else is named. ``refuses`` (method, target,
body) says of any request whether the server denies it, as one does by a key's policy. ``struck`` counts the faults
that had an effect.

The signature covers the Host header, which is passed on as it came, so the server accepts it.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import socket
import struct
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_ERRORS = {
    "error": (500, "InternalError"),
    "slow_down": (503, "SlowDown"),
    "denied": (403, "AccessDenied"),
    "full": (507, "InsufficientStorage"),
    "clock": (403, "RequestTimeTooSkewed"),
}
_OF_UPLOADS = {"half_upload", "corrupt_upload", "forged_upload"}
_OF_ANSWERS = {"truncate", "corrupt", "trickle"}
STALL = 2.0  # seconds
_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


def retry_without_pauses() -> None:
    """From now on boto3 tries again as often as ever, but at once; other users of ``time`` are left alone."""
    import botocore.endpoint

    vars(botocore.endpoint)["time"] = types.SimpleNamespace(sleep=lambda seconds: None)


@dataclass
class Fault:
    """Breaks the next ``times`` requests whose method and target match; ``came`` is set by the first one.

    ``go``: what a request that is held waits for.
    """

    kind: str
    method: str
    contains: str
    times: int
    hits: int = 0
    came: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)


@dataclass
class FaultyS3:
    """The proxy; ``requests`` lists (method, target) of all requests, ``broken`` those that a fault hit."""

    upstream: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    broken: list[tuple[str, str, str]] = field(default_factory=list)
    endpoint: str = ""
    weather: Callable[[str, str], str | None] | None = None
    refuses: Callable[[str, str, bytes], bool] | None = None
    skew: float = 0.0
    struck: Counter[str] = field(default_factory=Counter)
    spot: Callable[[int], int] = lambda length: length - 1
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _under_way: int = 0
    _ended: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """A request is under way meanwhile, whether or not anybody waits for its answer."""
        with self._ended:
            self._under_way += 1
        try:
            yield
        finally:
            with self._ended:
                self._under_way -= 1
                self._ended.notify_all()

    def wait_until_quiet(self, timeout: float = 60) -> bool:
        """Until every request that has come has had its effect; whether that was so in ``timeout`` seconds."""
        with self._ended:
            return self._ended.wait_for(lambda: self._under_way == 0, timeout)

    def break_next(self, kind: str, *, method: str = "", contains: str = "", times: int = 1) -> Fault:
        """Arm a fault; the first one that matches a request hits it."""
        fault = Fault(kind, method, contains, times)
        with self._lock:
            self.faults.append(fault)
        return fault

    def strike(self, kind: str | None, body: bytes = b"xx") -> None:
        """Count a fault that has its effect; half of nothing, and nothing in pieces, is none."""
        if kind is not None and len(body) > 1:
            with self._lock:
                self.struck[kind] += 1

    def clear(self) -> None:
        """From now on everything works."""
        with self._lock:
            self.faults.clear()

    def choose(self, method: str, target: str) -> tuple[str | None, threading.Event | None]:
        """What to do to a request, and what it waits for if it is held; counts it."""
        with self._lock:
            self.requests.append((method, target))
            for fault in self.faults:
                if fault.hits < fault.times and fault.method in ("", method) and fault.contains in target:
                    fault.hits += 1
                    self.broken.append((fault.kind, method, target))
                    fault.came.set()
                    return fault.kind, fault.go
            kind = self.weather(method, target) if self.weather is not None else None
            if kind is not None:
                self.broken.append((kind, method, target))
            return kind, None


@contextmanager
def faulty_s3(upstream: str) -> Iterator[FaultyS3]:
    """A running proxy before the server at ``upstream``."""
    proxy = FaultyS3(upstream)
    server = _Server(("127.0.0.1", 0), _handler(proxy))
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what this proxy is for."""


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _handler(proxy: FaultyS3) -> type[BaseHTTPRequestHandler]:
    address = urlsplit(proxy.upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _any(self) -> None:
            with proxy.passing():
                self._pass()

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind, go = proxy.choose(self.command, self.path)
            if kind in _OF_UPLOADS:
                proxy.strike(kind, body)
            elif kind not in _OF_ANSWERS:
                proxy.strike(kind)
            if kind == "reset":
                self._reset()
                return
            if kind is None and proxy.refuses is not None and proxy.refuses(self.command, self.path, body):
                kind = "denied"
            if kind in _ERRORS:
                self._refuse(*_ERRORS[kind])
                return
            if kind == "hold" and go is not None:
                go.wait(60)
            if kind == "stall":
                time.sleep(STALL)  # slowness is the fault itself
            if kind in ("corrupt_upload", "forged_upload") and body:
                body = _flipped(body, proxy.spot(len(body)))
            if kind == "forged_upload":
                digest = hashlib.md5(body, usedforsecurity=False).digest()
                self.headers.replace_header("Content-MD5", base64.b64encode(digest).decode())
            upstream = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
            try:
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in _HOP:
                        upstream.putheader(name, value)
                if body or self.command in ("PUT", "POST"):
                    upstream.putheader("Content-Length", str(len(body)))
                if kind == "half_upload":
                    upstream.endheaders(body[: len(body) // 2] or None)
                    self._reset()
                    return
                upstream.endheaders(body or None)
                answer = upstream.getresponse()
                data = answer.read()
            finally:
                upstream.close()
            if kind == "lost":
                self._reset()
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in (_HOP | {"date", "server"}):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self._send(data, kind)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string((time.time() if timestamp is None else timestamp) + proxy.skew)

        def _reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def _send(self, data: bytes, kind: str | None) -> None:
            if kind in _OF_ANSWERS:
                proxy.strike(kind, data)
            if kind == "corrupt" and data:
                data = _flipped(data, proxy.spot(len(data)))
            if kind == "truncate":
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                return
            if kind == "trickle":
                step = max(1, len(data) // 20)
                for start in range(0, len(data), step):
                    self.wfile.write(data[start : start + step])
                    self.wfile.flush()
                    time.sleep(0.02)  # slowness is the fault itself
                return
            self.wfile.write(data)

        def _refuse(self, status: int, code: str) -> None:
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by the test</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

    call: Callable[[Any], None] = Handler._any
    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", call)
    return Handler
