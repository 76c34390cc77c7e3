"""Mutual exclusion through the bucket, for work that must not be done twice at a time.

Some S3 servers ignore conditional writes, so the lease needs nothing but a strongly consistent listing, which
S3 has promised since December 2020: whoever wants the lease writes a claim of its own, lists the claims, and
holds the lease only if no other living claim is there; otherwise it withdraws, waits a random while and tries
again. If two claims are written before either list, both see two and both withdraw; if one lists first, the
other sees it. So two never hold it together.

The age of others' claims is measured by the clock that dates them: the time of the own claim, which was written a
moment ago, tells what that clock shows. The Date of an answer only tells how much time has gone by since: a proxy
before the storage may set it by another clock. This machine's own clock is of no account.

A holder that was out of touch for long (a dead network, a suspended machine) may have been judged dead meanwhile. It
is in doubt then, says so to whoever asks (``ensure``, ``in_doubt``), and is sure again only by the rule for everybody:
a new claim, and no other there.

A thread of the lease's own does all of that, one thing after the other. A signal, which is raised in the main thread,
breaks off its waiting but no request: else a claim could arrive behind the request that was to remove it, and a
removal never.
"""

from __future__ import annotations

import contextlib
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
from datetime import datetime, timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias, TypeVar

from jobs.specs import BugurtError, DataError, LeaseLostError, NotFoundError, TemporaryError, load_json
from jobs.storage import Bucket, ObjectInfo

T = TypeVar("T")
log = logging.getLogger(__name__)

TTL = 60.0  # seconds without a sign of life after which a claim is dead
LATE = 0.75  # of that time: from here on a holder is not sure of its claim any more
PATIENCE = 10.0  # seconds to wait for a claim's removal, before the bucket is taken to be away
AGAIN = 1.0  # seconds until a removal that failed is tried once more


def _clock() -> float:
    """Seconds that go on while the machine is suspended, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _process_start(pid: int) -> str | None:
    """The start time of a process of this machine (clock ticks since boot), or None when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _died(pid: int, start: object) -> bool:
    """Whether a process of this machine is gone, or its number another's. In doubt it lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's
        return False
    now = _process_start(pid)
    return None not in (now, start) and now != start


def _host() -> str:
    """This machine and process namespace: process numbers of elsewhere mean nothing here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return f"{socket.gethostname()}/unknown-{uuid.uuid4().hex}"
    return f"{socket.gethostname()}/{boot}/{namespace}"


def release_all() -> None:
    """Give back what this process still holds, at its end."""
    for lease in list(_open):
        lease._give_back()  # again, if a signal broke it off


_Answer: TypeAlias = "SimpleQueue[tuple[Any, BaseException | None]]"  # a value, or what was raised


class _Sign(NamedTuple):
    """A sign of life: when it was sent, by our clock and by the server's, and the server's Date behind it."""

    sent: float
    date: datetime
    behind: datetime


_open: set[Lease] = set()  # that were begun and not given back


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
        self._body = json.dumps(
            {"holder": holder, "host": _host(), "pid": os.getpid(), "start": _process_start(os.getpid())}
        ).encode()
        self.lost = threading.Event()
        self._path = ""  # of the claim by which it is held
        self._written: set[str] = set()  # of all claims of ours that may be there
        self._ours: set[str] = set()  # of all that were ever written: one may be on its way behind its removal
        self._sign: _Sign | None = None  # the last one that leaves no doubt; none before it is held
        self._skew: timedelta | None = None  # by which the server's Date is ahead of the clock that dates claims
        # Nothing here is built of Python's own code with locks in it, as conditions are: a signal may come in there.
        self._thread = threading.Thread(target=self._serve, name="lease", daemon=True)
        self._asked: SimpleQueue[tuple[Callable[[], Any], _Answer]] = SimpleQueue()
        self._asking = threading.Lock()
        self._stopped = False  # it is being given back
        self._ended = False  # nobody is answered any more
        self._gone = False  # all is given back, as far as the bucket let it
        self._alive = threading.Lock()  # free from then on
        self._alive.acquire()

    # -- what everybody may call

    def acquire(self) -> None:
        """Wait for the lease and take it."""
        try:
            _open.add(self)
            self._thread.start()
            told = False
            while not self._ask(self._try):
                others = self._ask(self._others)
                if others and self._waiting is not None:
                    holder = str(self._read(others[0]).get("holder", "another process"))
                    self._waiting(f"waiting: {holder[:200]} is at work on the same thing")
                    told = True
                time.sleep(random.uniform(0.2, 1.0))  # noqa: S311  # breaks the tie; S3 has no events to wait for
            if told:
                log.info("the wait is over")
        except BaseException:
            self.release()
            raise

    @property
    def in_doubt(self) -> bool:
        """Whether somebody else may have taken it over by now, or has; the bucket is not asked."""
        return self.lost.is_set() or self._sign is None or self._is_old(self._sign)

    def ensure(self, *, ask: bool = False) -> None:
        """Raise LeaseLostError unless the lease is still ours (and held); ``ask`` the bucket even if there is no doubt.

        Without a doubt and without ``ask`` this costs nothing, so it can stand before every upload.
        """
        if not self.lost.is_set() and (ask or self.in_doubt):
            self._ask(lambda: self._renew() if ask or self.in_doubt else None)
            if self.in_doubt and not self.lost.is_set() and not self._stopped:
                raise self._too_slow()
        if self.lost.is_set():
            raise LeaseLostError(
                f"the lease {self._folder.rstrip('/')} was lost: this process was out of touch with the bucket for "
                "too long, and another may be at work on the same thing"
            )
        if self._stopped:  # a thread that is left over from the work it was for
            raise self._given_back()

    def release(self) -> None:
        """Give it back; raises nothing but what a signal does, for the claim dies by itself."""
        if self._stopped:
            return
        try:
            self._give_back()
        except KeyboardInterrupt:  # a process that ends because of a signal gives its lease back all the same
            self._give_back()
            raise

    def __enter__(self) -> Lease:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    # -- the way to the lease's thread

    def _ask(self, call: Callable[[], T]) -> T:
        """Let the thread call it, behind all that it was asked for before. Raises LeaseLostError once it has ended."""
        answer: _Answer = SimpleQueue()
        self._put(call, answer)
        value, error = answer.get()
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]

    def _put(self, call: Callable[[], Any], answer: _Answer) -> None:
        with self._asking:
            if self._ended or self._thread.ident is None:
                raise self._given_back()
            self._asked.put((call, answer))

    def _given_back(self) -> LeaseLostError:
        return LeaseLostError(f"the lease {self._folder.rstrip('/')} was given back already")

    def _too_slow(self) -> TemporaryError:
        return TemporaryError(
            f"the lease {self._folder.rstrip('/')} is in doubt: the bucket takes too long to answer; try again"
        )

    def _give_back(self) -> None:
        self._stopped = True
        with contextlib.suppress(LeaseLostError):  # nothing was claimed, or it was asked to before
            self._put(self._end, SimpleQueue())
        if self._thread.ident is not None and not self._gone:
            if self._alive.acquire(timeout=PATIENCE):
                self._alive.release()
            elif not self._gone:
                log.warning("could not give the lease back, it will expire: the bucket does not answer")
        _open.discard(self)

    # -- the lease's thread

    def _serve(self) -> None:
        pause = self._ttl / 4
        while not self._ended:
            try:
                call, answer = self._asked.get(timeout=pause)
            except Empty:
                pause = self._ttl / (4 if self._keep() else 20)
                continue
            try:
                answer.put((call(), None))
            except BaseException as error:
                answer.put((None, error))
        while not self._asked.empty():
            self._asked.get()[1].put((None, self._given_back()))
        self._gone = True
        self._alive.release()

    def _keep(self) -> bool:
        """Renew it, if it is held; whether there is nothing to be done about it soon."""
        if self._sign is None or self.lost.is_set():
            return True
        try:
            self._renew()
        except Exception as error:  # whoever asks meets it again, and a thread that ends answers nobody
            log.warning("could not renew the lease: %s", error)
            return False
        if self.lost.is_set():  # whoever asks `ensure` says so in its own words, and those come last
            log.debug("the lease %s was lost", self._folder.rstrip("/"))
        return True

    def _try(self) -> bool:
        """Take the lease if it is free."""
        # What others' claims are worth can be told only once an own one has shown the storage's clock.
        if self._skew is not None and self._others():
            return False
        path = self._new_path()
        sign = self._claim(path)
        if self._alone(path, sign) and not self._is_old(sign):
            self._path, self._sign = path, sign
            return True
        self._withdraw()
        return False

    def _renew(self) -> None:
        """Show a sign of life, or find out that the lease is lost."""
        before = self._sign
        if before is None or self._stopped or self.lost.is_set():
            return
        if self._bucket.head(self._path) is None:  # judged dead and removed
            self.lost.set()
            return

        def is_sure(sent: float, date: datetime) -> bool:
            # While a virtual machine is paused its own clocks stand still, but not the server's.
            return max(sent - before.sent, (date - before.date).total_seconds()) <= self._ttl * LATE

        date = self._bucket.server_time()
        if is_sure(_clock(), date):
            sign = self._claim(self._path, date)
            if is_sure(_clock(), sign.behind):  # else it may have been removed, and now be there again
                self._sign = sign
                return
        # Somebody may be about to remove this claim. A new one follows the rule for everybody.
        path = self._new_path()
        sign = self._claim(path)
        if not self._alone(path, sign):
            self.lost.set()
            with contextlib.suppress(BugurtError):  # the end tries it again
                self._withdraw()
            return
        self._path = path  # by which it is held, and looked for from now on, whatever becomes of the one before
        if self._is_old(sign):
            raise self._too_slow()
        self._sign = sign
        with contextlib.suppress(BugurtError):  # so does it with these
            self._bucket.delete(self._written - {path})
            self._written &= {path}

    def _end(self) -> None:
        with self._asking:
            self._ended = True
        deadline = _clock() + PATIENCE
        while True:
            try:
                self._withdraw()
                return
            except Exception as error:
                if not isinstance(error, TemporaryError) or _clock() + AGAIN > deadline:
                    log.warning("could not give the lease back, it will expire: %s", error)
                    return
            time.sleep(AGAIN)  # a storage that refuses tells nobody when it does no more

    # -- claims

    def _new_path(self) -> str:
        return f"{self._folder}{uuid.uuid4().hex}.json"

    def _claim(self, path: str, date: datetime | None = None) -> _Sign:
        """Write an own claim; ``date``: the server's, if it was asked for a moment ago."""
        date = date or self._bucket.server_time()
        sent = _clock()
        self._written.add(path)
        self._ours.add(path)
        self._bucket.put_bytes(path, self._body)
        behind = self._bucket.server_time()
        return _Sign(sent, date, behind)

    def _is_old(self, sign: _Sign) -> bool:
        return _clock() - sign.sent > self._ttl * LATE

    def _alone(self, path: str, sign: _Sign) -> bool:
        """Whether our claim, written a moment ago, is there and no other one that lives."""
        claims = self._claims()
        own = next((c for c in claims if c.path == path), None)
        if own is None:
            return False
        self._skew = sign.behind - own.modified
        return not self._living(claims, own.modified)

    def _withdraw(self) -> None:
        """Remove whatever claims of ours there may be."""
        self._bucket.delete(self._written)
        self._written.clear()

    def _others(self) -> list[ObjectInfo]:
        # Before the listing: a claim that is renewed behind it must not look old by a time that is asked for later.
        now = None if self._skew is None else self._bucket.server_time() - self._skew
        return self._living(self._claims(), now)

    def _claims(self) -> list[ObjectInfo]:
        # What lies deeper belongs to leases of other names, such as those of an artefact's shards.
        return [c for c in self._bucket.list(self._folder) if "/" not in c.path[len(self._folder) :]]

    def _living(self, claims: list[ObjectInfo], now: datetime | None) -> list[ObjectInfo]:
        """Those that are others' and live; dead ones are removed. ``now``: by the clock that dates claims."""
        others = [c for c in claims if c.path not in self._ours]
        living: list[ObjectInfo] = []
        dead: list[ObjectInfo] = []
        for claim in others:
            expired = now is not None and (now - claim.modified).total_seconds() > self._ttl
            (dead if expired or self._died_here(claim) else living).append(claim)
        if dead:
            self._bucket.delete(c.path for c in dead)
        return living

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
        if body.get("host") != _host() or not isinstance(pid, int) or pid <= 0:
            return False
        return _died(pid, body.get("start"))


def lease_name(text: str) -> str:
    """A name that is safe as a part of a key."""
    return re.sub(r"[^A-Za-z0-9._/-]", "-", text)[:200].strip("/")
