"""A loopback HTTP server in front of a ControlPlane, with faults of the wire: what a real API server may do to us."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

import yaml

from cli.clusters.kubernetes_api import ApiError
from tests.cli.fake_kubernetes import ACCOUNT, ControlPlane

TOKEN = "right-token"


@dataclass
class WireFault:
    """Befalls the next ``times`` requests whose ``METHOD path?query`` matches.

    ``status``: an answer instead of the real one. ``lost``: the request has its effect, the answer is lost.
    ``drop``: the stream breaks off after so many ``lines``, in the middle of the next. ``end``: it ends before its
    first, as if that were all. ``expire``: a watch that begins well and then says 410. ``garbage``: a proxy's page.
    """

    match: str
    kind: Literal["status", "lost", "refuse", "drop", "end", "expire", "garbage"]
    times: int = 1
    status: int = 500
    message: str = "a fault of the test's making"
    headers: dict[str, str] = field(default_factory=dict)
    lines: int = 0


class ApiServer:
    """``with serve(plane) as server``: ``server.url``, ``server.faults``, ``server.seen``."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.faults: list[WireFault] = []
        self.seen: list[str] = []
        self.lock = threading.Lock()
        self.url = ""

    def fault(self, match: str, kind: Any, **details: Any) -> WireFault:
        """Add a fault; see WireFault."""
        found = WireFault(match, kind, **details)
        self.faults.append(found)
        return found

    def take(self, call: str) -> WireFault | None:
        """The fault that befalls this request, counted down."""
        with self.lock:
            self.seen.append(call)
            for fault in self.faults:
                if re.search(fault.match, call):
                    fault.times -= 1
                    if fault.times <= 0:
                        self.faults.remove(fault)
                    return fault
        return None

    def admit(self, authorization: str, method: str, path: str, query: Mapping[str, str]) -> None:
        """Who asks, and may they? ``TOKEN`` may all; a token of a service account what its Roles say."""
        _, _, token = authorization.partition(" ")
        if token == TOKEN:
            return
        _, _, account = token.partition(f"{ACCOUNT}:")
        home, _, name = account.partition(":")
        if ("serviceaccounts", home, name) not in self.plane.objects:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        match = re.fullmatch(
            r"/(?:api/v1|apis/([\w.-]+)/\w+)/namespaces/([\w.-]+)/(\w+)(?:/([\w.-]+)(?:/(\w+))?)?", path
        )
        if match is None:
            return  # discovery and the version: everybody with an account may
        group, namespace, resource, thing, sub = match.groups()
        verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}.get(method)
        verb = verb or ("watch" if "watch" in query else "get" if thing else "list")
        asked = {"verb": verb, "group": group or "", "resource": resource, "namespace": namespace}
        if not self.plane.may(token, {**asked, **({"subresource": sub} if sub else {})}):
            what = ".".join(filter(None, (resource, group)))
            words = f'User "{token}" cannot {verb} resource "{resource}" in API group "{group or ""}"'
            raise ApiError(403, "Forbidden", f'{what} is forbidden: {words} in the namespace "{namespace}"')

    def kubeconfig(self, folder: Path, *, token: str = TOKEN, namespace: str | None = "bugurt") -> Path:
        """A kubeconfig with two contexts; the current one is ``here``, the other leads nowhere."""
        context = {"cluster": "here", "user": "me", **({"namespace": namespace} if namespace else {})}
        data = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [
                {"name": "here", "cluster": {"server": self.url}},
                {"name": "nowhere", "cluster": {"server": "http://127.0.0.1:9"}},
            ],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [
                {"name": "here", "context": context},
                {"name": "nowhere", "context": {"cluster": "nowhere", "user": "me", "namespace": "elsewhere"}},
            ],
        }
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(data))
        return path


def _handler(server: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def _json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _status(self, error: ApiError, headers: dict[str, str] | None = None) -> None:
            body = {"kind": "Status", "code": error.status, "reason": error.reason, "message": error.message}
            self._json(error.status, body, headers)

        def _all(self) -> None:
            parts = urlsplit(self.path)
            query = dict(parse_qsl(parts.query))
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            try:
                server.admit(self.headers.get("Authorization") or "", self.command, parts.path, query)
            except ApiError as error:
                self._status(error)
                return
            fault = server.take(f"{self.command} {self.path}")
            if fault is not None and fault.kind == "status":
                self._status(ApiError(fault.status, "Fault", fault.message), fault.headers)
                return
            if fault is not None and fault.kind == "garbage":
                self._json(200, b"<html>please log in</html>")
                return
            if fault is not None and fault.kind == "refuse":
                self.close_connection = True
                return
            try:
                if "watch" in query or parts.path.endswith("/log"):
                    self._stream(parts.path, query, fault)
                    return
                kind = self.headers.get("Content-Type") or ""
                answer = server.plane.request(self.command, parts.path, query=query, body=body, content_type=kind)
            except ApiError as error:
                self._status(error)
                return
            if fault is not None and fault.kind == "lost":
                self.close_connection = True
                return
            self._json(201 if self.command == "POST" else 200, answer)

        def _stream(self, path: str, query: dict[str, str], fault: WireFault | None) -> None:
            lines = iter(server.plane.stream(path, query=query))
            if fault is not None and fault.kind == "end":
                lines = iter(())
            first = next(lines, None)  # an error comes before the headers
            self.send_response(200)
            self.send_header("Content-Type", "text/plain" if path.endswith("/log") else "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                number = 0
                while first is not None:
                    if fault is not None and number == fault.lines:
                        if fault.kind == "expire":
                            gone = {"code": 410, "reason": "Expired", "message": "too old resource version"}
                            self._chunk(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
                            break
                        self._chunk(first[: len(first) // 2])
                        self.close_connection = True
                        self.connection.shutdown(socket.SHUT_RDWR)
                        return
                    self._chunk(first + b"\n")
                    number += 1
                    first = next(lines, None)
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                self.close_connection = True  # the client has gone

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        do_GET = do_POST = do_PATCH = do_DELETE = _all  # noqa: N815

    return Handler


@contextmanager
def serve(plane: ControlPlane) -> Iterator[ApiServer]:
    """Serve a plane on a free port of the loopback interface."""
    server = ApiServer(plane)
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
