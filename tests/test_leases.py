"""Leases: never two holders at a time, and never a dead one for long."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import botocore.endpoint
import pytest

from jobs import leases
from jobs.artifacts import ArtifactStore
from jobs.leases import Lease, lease_name
from jobs.specs import Interrupted, LeaseLostError, TemporaryError
from jobs.storage import Bucket, ObjectInfo
from tests.conftest import ROOT, S3Server
from tests.s3_faults import FaultyS3, faulty_s3, retry_without_pauses


@pytest.fixture
def bucket(store: ArtifactStore) -> Bucket:
    return store.bucket


@pytest.fixture
def faults(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    monkeypatch.setitem(vars(botocore.endpoint), "time", time)  # undone afterwards
    retry_without_pauses()
    with faulty_s3(s3_server.endpoint) as proxy:
        yield proxy


def claims(bucket: Bucket) -> list[str]:
    return [o.path for o in bucket.list("leases/")]


def held(bucket: Bucket, **options: Any) -> Lease:
    lease = Lease(bucket, "thing", holder="me", **options)
    lease.acquire()
    return lease


def give_up(sentence: str) -> None:
    raise Interrupted(sentence)


def test_a_lease_is_held_once_and_given_back(bucket: Bucket) -> None:
    with Lease(bucket, "thing", holder="run a") as lease:
        lease.ensure(ask=True)
        assert len(claims(bucket)) == 1
        with pytest.raises(Interrupted, match="waiting: run a is at work on the same thing"):
            Lease(bucket, "thing", holder="run b", waiting=give_up).acquire()
        with Lease(bucket, "other thing", holder="run b"):
            assert len(claims(bucket)) == 2
    assert claims(bucket) == []
    with Lease(bucket, "thing", holder="run b", waiting=give_up):
        assert len(claims(bucket)) == 1
    assert claims(bucket) == []


def test_a_name_below_another_is_a_lease_of_its_own(bucket: Bucket) -> None:
    with Lease(bucket, "batch/a/shard-0", holder="shard 0") as deeper, Lease(bucket, "batch/a", holder="b") as lease:
        assert len(claims(bucket)) == 2
        deeper.ensure(ask=True)
        lease.ensure(ask=True)
        with pytest.raises(Interrupted, match="shard 0"):
            Lease(bucket, "batch/a/shard-0", holder="another", waiting=give_up).acquire()
    with pytest.raises(TemporaryError, match="given back"):
        lease.ensure()


def test_leaving_by_an_error_gives_it_back(bucket: Bucket) -> None:
    before = set(threading.enumerate())  # another test's work may have left one
    with pytest.raises(ZeroDivisionError), Lease(bucket, "thing", holder="me"):
        raise ZeroDivisionError
    with Lease(bucket, "thing", holder="me"):
        with pytest.raises(Interrupted), Lease(bucket, "thing", holder="me", waiting=give_up):
            pytest.fail("two hold it")
        assert len(claims(bucket)) == 1
    for thread in (t for t in set(threading.enumerate()) - before if t.name == "lease"):
        thread.join(20)  # it was told to end and may not have had its turn yet
        assert not thread.is_alive()


@pytest.mark.parametrize("answers", [True, False])
def test_a_signal_is_not_lost_while_it_is_given_back(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answers: bool
) -> None:
    lease, delete, sent = held(bucket), bucket.delete, []
    monkeypatch.setattr(leases, "PATIENCE", 2.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # `nohup` has it ignored

    def interrupted(paths: Iterable[str]) -> int:
        if not sent:
            sent.append(signal.SIGINT)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if not answers:
            raise TemporaryError("the bucket is out of reach")
        return delete(paths)

    monkeypatch.setattr(bucket, "delete", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            lease.release()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (claims(bucket) == []) is answers
    assert ("could not give the lease back, it will expire: the bucket is out of reach" in caplog.text) is not answers
    lease.release()  # all that could be done was done


def test_a_removal_that_is_refused_for_a_moment_is_tried_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lease, delete, tries = held(bucket), bucket.delete, []

    def refused(paths: Iterable[str]) -> int:
        tries.append(paths)
        if len(tries) < 3:
            raise TemporaryError("the storage is full")
        return delete(paths)

    monkeypatch.setattr(bucket, "delete", refused)
    monkeypatch.setattr(leases, "AGAIN", 0.01)
    lease.release()
    assert claims(bucket) == []
    assert not caplog.records


def test_who_asks_while_it_is_given_back_is_told(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    lease, delete, begun, go = held(bucket), bucket.delete, threading.Event(), threading.Event()

    def slow(paths: Iterable[str]) -> int:
        begun.set()
        assert go.wait(20)
        return delete(paths)

    monkeypatch.setattr(bucket, "delete", slow)
    giving = threading.Thread(target=lease.release)
    giving.start()
    assert begun.wait(20)
    with pytest.raises(LeaseLostError, match="given back"):
        lease.ensure(ask=True)
    go.set()
    giving.join(20)
    assert claims(bucket) == []


CONTENDER = """
import os, sys, threading, time
from jobs.artifacts import ArtifactStore
store, folder, rounds = ArtifactStore.from_env(), sys.argv[1], int(sys.argv[2])
alone = os.path.join(folder, "alone")
def work():
    for _ in range(rounds):
        with store.lease("thing", holder="x"):
            os.close(os.open(alone, os.O_CREAT | os.O_EXCL))  # fails when another one is in here
            time.sleep(0.02)
            os.unlink(alone)
        print("round", flush=True)
threads = [threading.Thread(target=work) for _ in range(2)]
for t in threads: t.start()
for t in threads: t.join()
"""


def test_processes_and_threads_never_hold_it_together(s3_env: dict[str, str], tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONTENDER, str(tmp_path), "2"],
            env={**os.environ, **s3_env, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert err == ""  # a thread that was not alone would print why
        assert out.count("round") == 4


def test_a_process_that_died_here_is_found_out_at_once(bucket: Bucket, s3_env: dict[str, str]) -> None:
    code = (
        "import sys; from jobs.artifacts import ArtifactStore\n"
        "ArtifactStore.from_env().lease('thing', holder='the dead').acquire()\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **s3_env, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(Interrupted, match="the dead is at work"):
        Lease(bucket, "thing", holder="me", waiting=give_up).acquire()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    begun = time.monotonic()
    with Lease(bucket, "thing", holder="me", waiting=give_up):
        assert time.monotonic() - begun < 20
        assert len(claims(bucket)) == 1


def elsewhere(bucket: Bucket, name: str = "theirs") -> str:
    """A claim of a process of another machine, whose life only its age can tell."""
    path = f"leases/thing/{name}.json"
    bucket.put_bytes(path, b'{"holder": "run far", "host": "elsewhere", "pid": 1, "start": "1"}')
    return path


def at(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the server's clock, and nothing else, go on."""
    real = bucket.server_time
    monkeypatch.setattr(bucket, "server_time", lambda: real() + timedelta(seconds=seconds))


def aged(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the claims that are there have been written so many seconds earlier."""
    there = set(claims(bucket))
    real = bucket.list

    def listed(under: str = "") -> Iterator[ObjectInfo]:
        for info in real(under):
            earlier = timedelta(seconds=seconds if info.path in there else 0)
            yield replace(info, modified=info.modified - earlier)

    monkeypatch.setattr(bucket, "list", listed)


def late(lease: Lease) -> None:
    """As after 46 seconds of a dead network."""
    assert lease._sign is not None
    lease._sign = lease._sign._replace(sent=lease._sign.sent - 46)


def test_a_claim_dies_by_the_servers_clock_alone(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    path = elsewhere(bucket)
    with pytest.raises(Interrupted, match="run far is at work"):
        Lease(bucket, "thing", holder="me", waiting=give_up).acquire()
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this machine's clock is of no account
    with pytest.raises(Interrupted):
        Lease(bucket, "thing", holder="me", waiting=give_up).acquire()
    aged(bucket, monkeypatch, 50)
    with pytest.raises(Interrupted):
        Lease(bucket, "thing", holder="me", waiting=give_up).acquire()
    aged(bucket, monkeypatch, 15)
    lease = held(bucket, waiting=give_up)
    assert path not in claims(bucket)
    lease.release()


@pytest.mark.parametrize("seconds", [-3600, -90, 90, 3600])
def test_a_date_that_is_not_the_storages_kills_no_claim_and_keeps_no_dead_one(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """A proxy before the storage may set the Date of answers by a clock of its own."""
    at(bucket, monkeypatch, seconds)
    lease = held(bucket)
    (ours,) = claims(bucket)
    body = bucket.get_bytes(ours)
    bucket.put_bytes(ours, body.replace(b'"host": "', b'"host": "elsewhere-'))  # so that only its age can tell
    with pytest.raises(Interrupted, match="me is at work"):
        Lease(bucket, "thing", holder="you", waiting=give_up).acquire()
    lease.ensure(ask=True)
    assert claims(bucket) == [ours]
    lease.release()
    path = elsewhere(bucket)
    aged(bucket, monkeypatch, 61)
    held(bucket, waiting=give_up).release()
    assert path not in claims(bucket)


def test_a_claim_that_was_removed_before_it_was_seen_holds_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, removed = bucket.put_bytes, []

    def put(path: str, data: bytes) -> None:
        real(path, data)
        if not removed:
            removed.append(path)
            bucket.delete([path])

    monkeypatch.setattr(bucket, "put_bytes", put)
    lease = held(bucket)
    assert removed and len(claims(bucket)) == 1
    lease.release()


def test_damaged_claims_count_until_they_are_old(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, body in enumerate((b"", b"[]", b"\xff", b'{"host": 1, "pid": "x"}', b"x" * 20_000)):
        bucket.put_bytes(f"leases/thing/{number}.json", body)
    with pytest.raises(Interrupted, match="another process is at work"):
        Lease(bucket, "thing", holder="me", waiting=give_up).acquire()
    aged(bucket, monkeypatch, 61)
    held(bucket, waiting=give_up).release()
    assert claims(bucket) == []


def test_a_claim_is_kept_alive(bucket: Bucket) -> None:
    lease = held(bucket, ttl=4.0)
    (before,) = bucket.list("leases/")
    deadline = time.monotonic() + 20
    while (now := next(bucket.list("leases/"))).modified <= before.modified:
        assert time.monotonic() < deadline
        time.sleep(0.05)  # object storage tells of no changes
    assert now.path.startswith("leases/thing/")
    lease.ensure()
    lease.release()
    assert claims(bucket) == []


def test_a_holder_whose_claim_was_removed_finds_out_and_does_not_take_it_back(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    lease = held(bucket, ttl=1.0)
    bucket.delete(claims(bucket))
    theirs = elsewhere(bucket)
    with caplog.at_level(logging.WARNING):
        assert lease.lost.wait(20)  # by the thread that renews
    with pytest.raises(TemporaryError, match="the lease leases/thing was lost: this process was out of touch"):
        lease.ensure()
    lease.release()
    assert claims(bucket) == [theirs]


def test_asking_finds_out_before_the_next_renewal(bucket: Bucket) -> None:
    lease = held(bucket)
    bucket.delete(claims(bucket))
    lease.ensure()  # not in doubt yet
    with pytest.raises(TemporaryError, match="was lost"):
        lease.ensure(ask=True)
    lease.release()
    assert claims(bucket) == []


def test_a_machine_that_slept_asks_before_it_goes_on(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own clocks stood still, so the claim's age tells it; nobody has come, so it may go on by a new claim."""
    lease = held(bucket)
    (before,) = claims(bucket)
    at(bucket, monkeypatch, 55)
    lease.ensure(ask=True)
    (after,) = claims(bucket)
    assert after != before
    assert not lease.lost.is_set()
    lease.release()
    assert claims(bucket) == []


def test_a_late_holder_yields_to_whoever_came(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = held(bucket)
    late(lease)
    theirs = elsewhere(bucket)
    with pytest.raises(TemporaryError, match="was lost"):
        lease.ensure()
    assert claims(bucket) == [theirs]
    lease.release()


def test_a_renewal_that_arrives_when_somebody_has_come_is_of_no_account(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was sent in time, and brought back what had been judged dead and removed meanwhile."""
    lease, put, theirs = held(bucket), bucket.put_bytes, []

    def late(path: str, data: bytes) -> None:
        monkeypatch.setattr(bucket, "put_bytes", put)
        bucket.delete(claims(bucket))
        theirs.append(elsewhere(bucket))
        at(bucket, monkeypatch, 50)
        put(path, data)

    monkeypatch.setattr(bucket, "put_bytes", late)
    with pytest.raises(LeaseLostError, match="was lost"):
        lease.ensure(ask=True)
    assert claims(bucket) == theirs
    lease.release()


def test_a_holder_in_doubt_stays_in_doubt_until_it_has_looked(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    lease, listed = held(bucket), bucket.list
    assert not lease.in_doubt
    late(lease)
    assert lease.in_doubt  # without a request: whatever must not be done twice waits for none

    def unreachable(under: str = "") -> Iterator[ObjectInfo]:
        raise TemporaryError("the bucket is out of reach")

    monkeypatch.setattr(bucket, "list", unreachable)
    with pytest.raises(TemporaryError, match="out of reach"):
        lease.ensure()
    monkeypatch.setattr(bucket, "list", listed)
    assert lease.in_doubt and not lease.lost.is_set()
    lease.ensure()
    assert not lease.in_doubt
    assert len(claims(bucket)) == 1
    late(lease)
    theirs = elsewhere(bucket)
    with pytest.raises(LeaseLostError):
        lease.ensure()
    assert lease.in_doubt
    lease.release()
    assert claims(bucket) == [theirs]


def test_slow_answers_alone_lose_nothing(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    lease, clock, listed, slept = held(bucket), leases._clock, bucket.list, [0.0]
    first = claims(bucket)
    monkeypatch.setattr(leases, "_clock", lambda: clock() + slept[0])

    def slow(under: str = "") -> Iterator[ObjectInfo]:
        slept[0] += 50
        return listed(under)

    late(lease)
    monkeypatch.setattr(bucket, "list", slow)
    with pytest.raises(TemporaryError, match="takes too long to answer"):
        lease.ensure()
    assert not lease.lost.is_set()
    monkeypatch.setattr(bucket, "list", listed)
    bucket.delete(first)  # as dead, by somebody who waits

    def refused(paths: Iterable[str]) -> int:
        raise TemporaryError("the storage is full")

    with monkeypatch.context() as full:
        full.setattr(bucket, "delete", refused)
        lease.ensure()  # what was written before does no harm
    assert not lease.in_doubt
    lease.release()
    assert claims(bucket) == []


def test_a_claim_is_not_judged_by_a_time_that_came_behind_the_listing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, theirs, listed = held(bucket), elsewhere(bucket), bucket.list

    def slow(under: str = "") -> Iterator[ObjectInfo]:
        found = list(listed(under))
        at(bucket, monkeypatch, 65)  # time enough for it to be renewed
        return iter(found)

    with monkeypatch.context() as slowly:
        slowly.setattr(bucket, "list", slow)
        assert [c.path for c in lease._others()] == [theirs]
    assert theirs in claims(bucket)
    lease.release()


def test_a_process_gives_back_at_its_end_what_it_holds(bucket: Bucket) -> None:
    first, second = held(bucket), Lease(bucket, "other thing", holder="me")
    second.acquire()
    second.release()
    leases.release_all()
    assert claims(bucket) == []
    with pytest.raises(LeaseLostError, match="given back"):
        first.ensure(ask=True)
    with pytest.raises(LeaseLostError, match="given back"):
        Lease(bucket, "thing", holder="me").ensure()  # nobody has it


def test_a_process_whose_start_cannot_be_read_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    start = leases._process_start(os.getpid())
    assert not leases._died(os.getpid(), start)
    assert leases._died(os.getpid(), "1")  # the number is another's now
    monkeypatch.setattr(leases, "_process_start", lambda pid: None)
    assert not leases._died(os.getpid(), start)
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert leases._died(gone.pid, "1")


def test_a_bucket_that_is_away_for_a_while_costs_nothing(s3_env: dict[str, str], faults: FaultyS3) -> None:
    bucket = ArtifactStore.from_env({**s3_env, "BUGURT_S3_ENDPOINT": faults.endpoint}).bucket
    lease = held(bucket)
    faults.break_next("error", times=10_000)
    with pytest.raises(TemporaryError, match="answered 500"):
        lease.ensure(ask=True)
    assert not lease.lost.is_set()
    faults.clear()
    lease.ensure(ask=True)
    faults.break_next("error", times=10_000)
    lease.release()  # never raises: the claim dies by itself
    faults.clear()
    assert len(claims(bucket)) == 1


def test_names_are_safe_as_keys() -> None:
    assert lease_name("posts/0123") == "posts/0123"
    assert lease_name("/a b\n🙂?*/") == "a-b----"
    assert len(lease_name("x" * 1000)) == 200
