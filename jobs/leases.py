"""Mutual exclusion through the bucket, for work that must not be done twice at a time.

Some S3 servers ignore conditional writes, so the lease needs nothing but a strongly consistent listing, which
S3 has promised since December 2020: whoever wants the lease writes a claim of its own, lists the claims, and
holds the lease only if no other living claim is there; otherwise it withdraws, waits a random while and tries
again. If two claims are written before either list, both see two and both withdraw; if one lists first, the
other sees it. So two never hold it together.

The age of others' claims is measured by the clock that dates them: the time of the own claim, which was written a
moment ago, tells what that clock shows. The Date of an answer only tells how much time has gone by since: a proxy
before the storage may set it by another clock. This machine's own clock is of no account.

A holder that was out of touch for long (a dead network, a suspended machine) may have been judged dead meanwhile,
so it asks before it goes on: ``ensure``.

Claims are written and removed by a thread that does one after the other. A signal, which is raised in the main thread,
breaks off its waiting but no request: else a claim could arrive behind the request that was to remove it, and a
removal never.
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
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType

from jobs.specs import BugurtError, DataError, LeaseLostError, NotFoundError, load_json
from jobs.storage import Bucket, ObjectInfo

log = logging.getLogger(__name__)

TTL = 60.0  # seconds without a sign of life after which a claim is dead
LATE = 0.75  # of that time: from here on a holder is not sure of its claim any more
PATIENCE = 10.0  # seconds to wait for a claim's removal, before the bucket is taken to be away


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
    once somebody else has, or may have, taken it over; it is not asked for again then.
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
        self._path = self._new_path()
        self._body = json.dumps(
            {"holder": holder, "host": _host(), "pid": os.getpid(), "start": _process_start(os.getpid())}
        ).encode()
        self._stop = threading.Event()
        self.lost = threading.Event()
        self._writes = ThreadPoolExecutor(1, thread_name_prefix="lease")
        self._written: set[str] = set()  # the paths of claims that may be there
        self._thread: threading.Thread | None = None
        self._renewing = threading.Lock()
        self._renewed = time.monotonic()
        self._date: datetime | None = None  # the server's Date when the own claim was written
        self._skew: timedelta | None = None  # by which the Date is ahead of the clock that dates claims

    def _new_path(self) -> str:
        return f"{self._folder}{uuid.uuid4().hex}.json"

    def _put(self) -> None:
        """Write the own claim."""
        self._renewed = time.monotonic()
        self._writes.submit(self._claim).result()
        self._date = self._bucket.server_time()
        self._skew = None

    def _claim(self) -> None:
        if not self._stop.is_set():  # else it would stay there
            self._written.add(self._path)
            self._bucket.put_bytes(self._path, self._body)

    def _withdraw(self) -> Future[None]:
        """Remove whatever claims of this lease there may be, behind all that was asked for before."""

        def remove() -> None:
            self._bucket.delete(self._written)
            self._written.clear()

        return self._writes.submit(remove)

    def _look(self, *ours: str) -> tuple[bool, list[ObjectInfo]]:
        """Whether the own claim is there, and the living claims that are not ours; dead ones are removed."""
        # What lies deeper belongs to leases of other names, such as those of an artefact's shards.
        claims = [c for c in self._bucket.list(self._folder) if "/" not in c.path[len(self._folder) :]]
        own = next((c for c in claims if c.path == self._path), None)
        if own is not None and self._skew is None and self._date is not None:
            self._skew = self._date - own.modified
        living: list[ObjectInfo] = []
        dead: list[ObjectInfo] = []
        others = [c for c in claims if c.path != self._path and c.path not in ours]
        now = self._bucket.server_time() - self._skew if others and self._skew is not None else None
        for claim in others:
            expired = now is not None and (now - claim.modified).total_seconds() > self._ttl
            (dead if expired or self._died_here(claim) else living).append(claim)
        if dead:
            self._bucket.delete(c.path for c in dead)
        return own is not None, living

    def _read(self, claim: ObjectInfo) -> dict[str, object]:
        try:
            found = load_json(self._bucket.get_bytes(claim.path, max_size=10_000))
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
            # What others' claims are worth can be told only once an own one has shown the storage's clock.
            if self._date is None or not self._look()[1]:
                self._put()
                there, others = self._look()
                if there and not others:
                    break
                self._withdraw().result()
            others = self._look()[1]
            if others and self._waiting is not None:
                holder = str(self._read(others[0]).get("holder", "another process"))
                self._waiting(f"waiting: {holder[:200]} is at work on the same thing")
                told = True
            time.sleep(random.uniform(0.2, 1.0))  # noqa: S311  # breaks the tie; S3 has no events to wait for
        if told:
            log.info("the wait is over")
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def ensure(self, *, ask: bool = False) -> None:
        """Raise LeaseLostError unless the lease is still ours (and held); ``ask`` the bucket even if there is no doubt.

        Without a doubt and without ``ask`` this costs nothing, so it can stand before every upload.
        """
        if not self.lost.is_set() and (ask or time.monotonic() - self._renewed > self._ttl * LATE):
            self._renew()
        if self.lost.is_set():
            raise LeaseLostError(
                f"the lease {self._folder.rstrip('/')} was lost: this process was out of touch with the bucket for "
                "too long, and another may be at work on the same thing"
            )
        if self._stop.is_set():  # a thread that is left over from the work it was for
            raise LeaseLostError(f"the lease {self._folder.rstrip('/')} was given back already")

    def _renew(self) -> None:
        """Show a sign of life, or find out that the lease is lost."""
        with self._renewing:
            if self._stop.is_set() or self.lost.is_set():
                return
            began = time.monotonic()
            if self._bucket.head(self._path) is None:  # judged dead and removed
                self.lost.set()
                return
            # While a machine is suspended its own clocks stand still, but not the server's.
            age = (self._bucket.server_time() - self._date).total_seconds() if self._date else 0.0
            if max(age, began - self._renewed) <= self._ttl * LATE:
                self._put()
            else:
                # Somebody may be about to remove this claim. A new one follows the rule for everybody: it holds
                # only if no other is there.
                before, self._path = self._path, self._new_path()
                self._put()
                there, others = self._look(before)
                if others or not there:
                    self.lost.set()
                    self._withdraw().result()
                    return
                self._writes.submit(self._bucket.delete, [before]).result()
            self._renewed = began

    def _keep(self) -> None:
        while not self._stop.wait(self._ttl / 4) and not self.lost.is_set():
            try:
                self._renew()
            except BugurtError as error:
                log.warning("could not renew the lease: %s", error)
        if self.lost.is_set():  # whoever asks `ensure` says so in its own words, and those come last
            log.debug("the lease %s was lost", self._folder.rstrip("/"))

    def release(self) -> None:
        """Give it back; raises nothing but what a signal does, for the claim dies by itself."""
        self._stop.set()
        given_back = self._withdraw()
        try:
            try:
                given_back.result(PATIENCE)
            except KeyboardInterrupt:  # a process that ends because of a signal gives its lease back all the same
                given_back.result(PATIENCE)
                raise
        except TimeoutError:
            log.warning("could not give the lease back, it will expire: the bucket does not answer")
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
