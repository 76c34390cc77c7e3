"""Run a command where there is no network but this machine's own, and tell whom it looked for.

``python -m tests.cut_network COMMAND …`` enters a network namespace of its own, in which every address is the
machine itself: names asked for and connections to the web's ports come to listeners that note them and give nothing.
Prints a JSON object: the command's exit ``code``, ``stdout``, ``stderr``, and ``sought``, the names and addresses.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

WEB = (80, 443, 8080, 3128)
SET_UP = "ip link set lo up && ip route add local default dev lo && ip -6 route add local default dev lo"


def possible() -> bool:
    """Whether this machine lets us have such a namespace."""
    command = ["unshare", "--map-root-user", "--net", "sh", "-c", SET_UP]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def cut_off(*command: str, **options: object) -> dict[str, object]:
    """Run a command in one. ``options`` are those of ``subprocess.run``."""
    inner = [sys.executable, "-m", __name__, *command]
    outer = ["unshare", "--map-root-user", "--net", "sh", "-c", f'{SET_UP} && exec "$@"', "sh", *inner]
    done = subprocess.run(outer, capture_output=True, text=True, check=True, **options)  # type: ignore[call-overload]
    found: dict[str, object] = json.loads(done.stdout)
    return found


class Listeners:
    """Take whatever comes for a name server or for the web, wherever it was meant for."""

    def __init__(self) -> None:
        self.sought: set[str] = set()
        for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            names = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                names.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            names.bind((host, 53))
            threading.Thread(target=self._names, args=(names,), daemon=True).start()
            for port in (53, *WEB):
                web = socket.socket(family, socket.SOCK_STREAM)
                if family == socket.AF_INET6:
                    web.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                web.bind((host, port))
                web.listen(64)
                threading.Thread(target=self._web, args=(web,), daemon=True).start()

    def _names(self, listener: socket.socket) -> None:
        while True:
            query, sender = listener.recvfrom(4096)
            self.sought.add(_name(query))
            # The question back, marked as an answer: no such name.
            listener.sendto(query[:2] + b"\x81\x83" + query[4:], sender)

    def _web(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            address, port = connection.getsockname()[:2]
            self.sought.add(f"{address}:{port}")
            connection.close()


def _name(query: bytes) -> str:
    """The name that a DNS query asks for: labels, each behind its length, from byte 12 on."""
    labels, at = [], 12
    while at < len(query) and query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace"))
        at += 1 + query[at]
    return ".".join(labels)


def main(command: Sequence[str]) -> None:
    """Inside the namespace: listen, run the command, report."""
    listeners = Listeners()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = {"code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
    print(json.dumps(found | {"sought": sorted(listeners.sought)}))


if __name__ == "__main__":
    main(sys.argv[1:])
