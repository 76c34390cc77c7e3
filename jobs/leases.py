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

A thread of the lease's own writes, renews and removes claims, one after the other. A signal, which is raised in the
main thread, breaks off its waiting but no request: else a claim could arrive behind the request that was to remove it,
and a removal never.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import random
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType

from jobs.specs import BugurtError, DataError, LeaseLostError, NotFoundError, load_json
from jobs.storage import Bucket, ObjectInfo

log = logging.getLogger(__name__)

TTL = 60.0  # seconds without a sign of life after which a claim is dead
LATE = 0.75  # of that time: from here on a holder is not sure of its claim any more
PATIENCE = 20.0  # seconds to wait for a claim's removal, before the bucket is taken to be away


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
        self._held = False
        self._written: set[str] = set()  # the paths of claims of ours that may be there
        self._thread = threading.Thread(target=self._serve, name="lease", daemon=True)
        self._asked: queue.SimpleQueue[tuple[Callable[[], None], Future[None]]] = queue.SimpleQueue()
        self._asking = threading.Lock()
        self._ended = False  # nobody is answered any more
        self._gone = threading.Event()  # nor is any claim there, if the bucket could be reached
        self._renewed = time.monotonic()
        self._date: datetime | None = None  # the server's Date when the own claim was written
        self._skew: timedelta | None = None  # by which the Date is ahead of the clock that dates claims

    def _new_path(self) -> str:
        return f"{self._folder}{uuid.uuid4().hex}.json"

    # -- the lease's thread

    def _ask(self, call: Callable[[], None]) -> Future[None]:
        """Let the thread call it, behind all that it was asked for before. Raises LeaseLostError once it has ended."""
        answer: Future[None] = Future()
        with self._asking:
            if self._ended:
                raise self._given_back()
            self._asked.put((call, answer))
        return answer

    def _serve(self) -> None:
        while not self._ended:
            try:
                call, answer = self._asked.get(timeout=self._ttl / 4)
            except queue.Empty:
                self._keep()
                continue
            try:
                call()
            except BaseException as error:
                answer.set_exception(error)
            else:
                answer.set_result(None)
        while not self._asked.empty():
            self._asked.get()[1].set_exception(self._given_back())
        self._gone.set()

    def _claim(self, path: str) -> None:
        """Write an own claim."""
        began = time.monotonic()
        self._written.add(path)
        self._bucket.put_bytes(path, self._body)
        self._path, self._renewed = path, began
        self._date = self._bucket.server_time()
        self._skew = None

    def _withdraw(self) -> None:
        """Remove whatever claims of ours there may be."""
        self._bucket.delete(self._written)
        self._written.clear()

    def _end(self) -> None:
        with self._asking:
            self._ended = True
        try:
            self._withdraw()
        except BugurtError as error:
            log.warning("could not give the lease back, it will expire: %s", error)

    def _renew(self) -> None:
        """Show a sign of life, or find out that the lease is lost."""
        if self._stop.is_set() or self.lost.is_set():
            return
        if self._bucket.head(self._path) is None:  # judged dead and removed
            self.lost.set()
            return
        # While a machine is suspended its own clocks stand still, but not the server's.
        age = (self._bucket.server_time() - self._date).total_seconds() if self._date else 0.0
        if max(age, time.monotonic() - self._renewed) <= self._ttl * LATE:
            self._claim(self._path)
            return
        # Somebody may be about to remove this claim. A new one follows the rule for everybody: it holds only if no
        # other is there.
        before = self._path
        self._claim(self._new_path())
        there, others = self._look()
        if others or not there:
            self.lost.set()
            self._withdraw()
            return
        self._bucket.delete([before])
        self._written.discard(before)

    def _keep(self) -> None:
        if not self._held or self.lost.is_set():
            return
        try:
            self._renew()
        except Exception as error:  # whoever asks `ensure` meets it again, and a thread that ends answers nobody
            log.warning("could not renew the lease: %s", error)
        if self.lost.is_set():  # whoever asks `ensure` says so in its own words, and those come last
            log.debug("the lease %s was lost", self._folder.rstrip("/"))

    # -- everybody's

    def _look(self) -> tuple[bool, list[ObjectInfo]]:
        """Whether the own claim is there, and the living claims that are not ours; dead ones are removed."""
        # What lies deeper belongs to leases of other names, such as those of an artefact's shards.
        claims = [c for c in self._bucket.list(self._folder) if "/" not in c.path[len(self._folder) :]]
        own = next((c for c in claims if c.path == self._path), None)
        if own is not None and self._skew is None and self._date is not None:
            self._skew = self._date - own.modified
        living: list[ObjectInfo] = []
        dead: list[ObjectInfo] = []
        others = [c for c in claims if c.path not in self._written]
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
        self._thread.start()
        told = False
        while True:
            # What others' claims are worth can be told only once an own one has shown the storage's clock.
            if self._date is None or not self._look()[1]:
                self._ask(lambda: self._claim(self._path)).result()
                there, others = self._look()
                if there and not others:
                    break
                self._ask(self._withdraw).result()
            others = self._look()[1]
            if others and self._waiting is not None:
                holder = str(self._read(others[0]).get("holder", "another process"))
                self._waiting(f"waiting: {holder[:200]} is at work on the same thing")
                told = True
            time.sleep(random.uniform(0.2, 1.0))  # noqa: S311  # breaks the tie; S3 has no events to wait for
        if told:
            log.info("the wait is over")
        self._held = True

    def ensure(self, *, ask: bool = False) -> None:
        """Raise LeaseLostError unless the lease is still ours (and held); ``ask`` the bucket even if there is no doubt.

        Without a doubt and without ``ask`` this costs nothing, so it can stand before every upload.
        """
        if not self.lost.is_set() and (ask or time.monotonic() - self._renewed > self._ttl * LATE):
            self._ask(self._renew).result()
        if self.lost.is_set():
            raise LeaseLostError(
                f"the lease {self._folder.rstrip('/')} was lost: this process was out of touch with the bucket for "
                "too long, and another may be at work on the same thing"
            )
        if self._stop.is_set():  # a thread that is left over from the work it was for
            raise self._given_back()

    def _given_back(self) -> LeaseLostError:
        return LeaseLostError(f"the lease {self._folder.rstrip('/')} was given back already")

    def release(self) -> None:
        """Give it back; raises nothing but what a signal does, for the claim dies by itself."""
        try:
            self._give_back()
        except KeyboardInterrupt:  # a process that ends because of a signal gives its lease back all the same
            self._give_back()
            raise

    def _give_back(self) -> None:
        self._stop.set()
        if not self._thread.is_alive():
            return  # nothing was claimed, or all is given back
        with contextlib.suppress(LeaseLostError):  # it was asked to before, and a signal came in the middle of that
            self._ask(self._end)
        if not self._gone.wait(PATIENCE):
            log.warning("could not give the lease back, it will expire: the bucket does not answer")

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
