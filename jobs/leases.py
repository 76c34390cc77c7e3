"""Mutual exclusion through the bucket, for work that must not be done twice at a time.

Some S3 servers ignore conditional writes, so the lease needs nothing but a strongly consistent listing, which
S3 has promised since December 2020: whoever wants the lease writes a claim of its own, lists the claims, and
holds the lease only if no other living claim is there; otherwise it withdraws, waits a random while and tries
again. If two claims are written before either list, both see two and both withdraw; if one lists first, the
other sees it. So two never hold it together. Age is measured with the server's clock alone.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from jobs.specs import BugurtError, DataError, NotFoundError
from jobs.storage import Bucket, ObjectInfo

log = logging.getLogger(__name__)

TTL = 60.0  # seconds without a sign of life after which a claim is dead


def _process_start(pid: int) -> str | None:
    """The start time of a process of this machine (clock ticks since boot), or None when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _host() -> str:
    """This machine and process namespace: process numbers of elsewhere mean nothing here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return f"{socket.gethostname()}/unknown-{uuid.uuid4().hex}"
    return f"{socket.gethostname()}/{boot}/{namespace}"


class Lease:
    """Hold ``name`` while the ``with`` block runs; waits until it is free.

    ``waiting`` is called with a sentence when somebody else holds it, and may raise to give up. ``lost`` is set
    when the claim could not be renewed for so long that others may take it.
    """

    def __init__(
        self,
        bucket: Bucket,
        name: str,
        *,
        holder: str,
        ttl: float = TTL,
        waiting: Callable[[str], None] | None = None,
    ) -> None:
        self._bucket, self._folder, self._ttl = bucket, f"leases/{name}/", ttl
        self._waiting = waiting
        self._token = uuid.uuid4().hex
        self._path = f"{self._folder}{self._token}.json"
        self._body = json.dumps(
            {"holder": holder, "host": _host(), "pid": os.getpid(), "start": _process_start(os.getpid())}
        ).encode()
        self._stop = threading.Event()
        self.lost = threading.Event()
        self._thread: threading.Thread | None = None

    def _others(self) -> list[ObjectInfo]:
        """Living claims that are not ours; dead ones are removed on the way."""
        claims = [c for c in self._bucket.list(self._folder) if c.path != self._path]
        if not claims:
            return []
        now = self._bucket.server_time()
        living: list[ObjectInfo] = []
        dead: list[ObjectInfo] = []
        for claim in claims:
            expired = (now - claim.modified).total_seconds() > self._ttl
            (dead if expired or self._died_here(claim) else living).append(claim)
        if dead:
            self._bucket.delete(c.path for c in dead)
        return living

    def _read(self, claim: ObjectInfo) -> dict[str, object]:
        try:
            found = json.loads(self._bucket.get_bytes(claim.path, max_size=10_000))
        except (NotFoundError, DataError, ValueError):
            return {}  # withdrawn this moment, or not readable: its age decides
        return found if isinstance(found, dict) else {}

    def _died_here(self, claim: ObjectInfo) -> bool:
        """Whether the claim's process ran on this machine and is gone: no need to wait for its age then."""
        body = self._read(claim)
        pid = body.get("pid")
        if body.get("host") != _host() or not isinstance(pid, int):
            return False
        return _process_start(pid) != body.get("start")

    def acquire(self) -> None:
        """Wait for the lease and take it."""
        told = False
        while True:
            if not self._others():
                self._bucket.put_bytes(self._path, self._body)
                if not self._others():
                    break
                self._bucket.delete([self._path])
            others = self._others()
            if others and self._waiting is not None:
                holder = str(self._read(others[0]).get("holder", "another process"))
                self._waiting(f"waiting: {holder[:200]} is at work on the same thing")
                told = True
            time.sleep(random.uniform(0.2, 1.0))  # noqa: S311  # breaks the tie; S3 has no events to wait for
        if told:
            log.info("the wait is over")
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(self._ttl / 4):
            try:
                self._bucket.put_bytes(self._path, self._body)
                last = time.monotonic()
            except BugurtError as error:
                log.warning("could not renew the lease: %s", error)
                if time.monotonic() - last > self._ttl * 0.75:
                    self.lost.set()

    def release(self) -> None:
        """Give it back; never raises, for the claim dies by itself."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self._bucket.delete([self._path])
        except BugurtError as error:
            log.warning("could not give the lease back, it will expire: %s", error)

    def __enter__(self) -> Lease:
        try:
            self.acquire()
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lease_name(text: str) -> str:
    """A name that is safe as a part of a key."""
    return re.sub(r"[^A-Za-z0-9._/-]", "-", text)[:200].strip("/")
