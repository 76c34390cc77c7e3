"""A way to the S3 server that can be cut, or start to refuse, while a training goes on."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

REFUSAL = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>No more.</Message></Error>"


class Proxy:
    """Forwards connections to ``port`` until ``refuse`` is called: then it says 403 to every request."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self._refusing = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._refusing.is_set():
                    threading.Thread(target=self._refuse, args=(near,), daemon=True).start()
                    continue
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for a, b in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(a, b), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _refuse(near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            near.recv(65536)
            head = f"HTTP/1.1 403 Forbidden\r\nContent-Length: {len(REFUSAL)}\r\nConnection: close\r\n\r\n"
            near.sendall(head.encode() + REFUSAL)
            near.close()

    def refuse(self) -> None:
        """Cut what is open; from now on there is only 403."""
        self._refusing.set()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Accept nothing any more."""
        self._listener.close()


@contextlib.contextmanager
def way_to(port: int) -> Iterator[Proxy]:
    """A proxy that is closed in the end."""
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.refuse()
        proxy.close()
