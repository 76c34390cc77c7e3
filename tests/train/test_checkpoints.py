"""Uploads of checkpoints under the lease of the model that they are of."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobs.artifacts import ArtifactStore, Lease
from jobs.specs import LeaseLostError, TemporaryError
from jobs.train.checkpoints import NEEDED, Uploader, folder_of
from jobs.train.launch import Parent

MODEL = "model/" + "a" * 20


def save(uploader: Uploader, folder: Path, step: int, text: str) -> None:
    """Upload a checkpoint whose files hold ``text``, and wait until that has ended in one way or the other."""
    folder = folder / f"checkpoint-{step}"
    folder.mkdir()
    for name in NEEDED:
        (folder / name).write_text(text)
    uploader.submit(folder, step, None)
    uploader.settle()


def uploader_of(store: ArtifactStore, lease: Lease) -> Uploader:
    return Uploader(store, run="r", artifact=MODEL, spec={}, keep=1, guard=lease.ensure)


def lose(store: ArtifactStore, lease: Lease) -> None:
    """As after a long sleep: the others took the claim for dead and removed it, and its holder finds that out."""
    store.bucket.delete(o.path for o in list(store.bucket.list(f"leases/{MODEL}/")))
    lease._renew()
    assert lease.lost.is_set()


def contents(store: ArtifactStore) -> dict[str, bytes]:
    return {o.path: store.bucket.get_bytes(o.path) for o in store.bucket.list(folder_of("r"))}


def test_who_lost_the_lease_touches_no_checkpoint_of_the_one_that_has_it(store: ArtifactStore, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    with store.lease(MODEL, holder="run r, first try") as lease:
        first = uploader_of(store, lease)
        save(first, ours, 10, "ours")
        first.wait()
        assert f"{folder_of('r')}/10/manifest.json" in contents(store)
        lose(store, lease)
        with store.lease(MODEL, holder="run r, second try") as other:
            second = uploader_of(store, other)
            save(second, theirs, 20, "theirs")
            second.wait()
            before = contents(store)
            assert {path.split("/")[4] for path in before} == {"20"}, "the holder prunes"
            save(first, ours, 20, "ours")
            assert contents(store) == before, "the same step is not overwritten"
            with pytest.raises(LeaseLostError, match="was lost"):
                first.submit(ours / "checkpoint-30", 30, None)
            assert contents(store) == before


def test_a_lease_that_is_lost_while_a_checkpoint_goes_up_leaves_it_without_a_commit(
    store: ArtifactStore, tmp_path: Path
) -> None:
    with store.lease(MODEL, holder="run r") as lease:
        calls = 0

        def guard() -> None:
            nonlocal calls
            calls += 1
            if calls == 1 + len(NEEDED):  # before the last file
                lose(store, lease)
            lease.ensure()

        uploader = Uploader(store, run="r", artifact=MODEL, spec={}, keep=1, guard=guard)
        save(uploader, tmp_path, 10, "x")
        assert f"{folder_of('r')}/10/manifest.json" not in contents(store)
        with pytest.raises(LeaseLostError):
            uploader.wait()


WORKER = """
import os, sys
from multiprocessing.connection import Client
from jobs.specs import TemporaryError
from jobs.train.worker import Link

link = Link(Client(sys.argv[1], family="AF_UNIX"))
for _ in range(3):
    try:
        link.ensure()
        print("ours", flush=True)
    except TemporaryError as error:
        print(type(error).__name__, error, error.retry_after, flush=True)
print("stopped", link.stop.wait(60), flush=True)
os._exit(0)
"""


def test_a_worker_asks_the_process_that_holds_the_lease() -> None:
    said: list[TemporaryError | None] = [None, TemporaryError("later", retry_after=5.0), LeaseLostError("it was lost")]
    stop = threading.Event()

    def guard() -> None:
        error = said.pop(0)
        if error is not None:
            raise error

    parent = Parent(lambda **fields: None, stop, guard)
    with subprocess.Popen([sys.executable, "-c", WORKER, parent.address], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        lines = [worker.stdout.readline() for _ in range(3)]
        stop.set()  # word of a signal still comes through
        lines.append(worker.stdout.readline())
    parent.close()
    assert "".join(lines).splitlines() == [
        "ours",
        "TemporaryError later 5.0",
        "LeaseLostError it was lost None",
        "stopped True",
    ]
