"""Artefacts: the manifest is the commit, and every byte that is read is verified."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.endpoint
import pytest

from jobs.artifacts import MANIFEST, ArtifactStore, FileEntry, Manifest
from jobs.specs import DataError, Interrupted, NotFoundError, TemporaryError
from jobs.storage import PART_SIZE
from tests.conftest import ROOT, S3Server
from tests.s3_faults import FaultyS3, faulty_s3, retry_without_pauses

REF = "posts/" + "0123456789" * 2
OTHER = "posts/" + "ab" * 10
MIB = 1024 * 1024
PART = 5 * MIB


def make(store: ArtifactStore, ref: str = REF, **files: bytes) -> Manifest:
    writer = store.writer(ref)
    for name, data in (files or {"a.txt": b"A", "b/c.bin": b"C" * 1000}).items():
        writer.put_bytes(name, data)
    return writer.commit(stage="scrape", spec={"channel": "@a"}, counts={"posts": 2})


def on_disk(s3_server: S3Server, store: ArtifactStore, ref: str = REF) -> list[str]:
    folder = s3_server.folder / store.bucket.settings.bucket / ref
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def rewrite(store: ArtifactStore, ref: str, **changes: Any) -> None:
    """Change a manifest as somebody with access to the bucket could."""
    data = json.loads(store.bucket.get_bytes(f"{ref}/{MANIFEST}"))
    data.update(changes)
    store.bucket.put_bytes(f"{ref}/{MANIFEST}", json.dumps(data).encode())


@pytest.fixture
def faults(s3_server: S3Server, s3_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """A breakable way to the bucket, and retries that do not wait."""
    monkeypatch.setitem(vars(botocore.endpoint), "time", time)  # undone afterwards
    retry_without_pauses()
    with faulty_s3(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def shaky(faults: FaultyS3, s3_env: dict[str, str]) -> ArtifactStore:
    store = ArtifactStore.from_env({**s3_env, "BUGURT_S3_ENDPOINT": faults.endpoint})
    for config in (store.bucket._transfer, store.bucket._stream_transfer):  # S3's least size: small parts, fast tests
        config.multipart_threshold = config.multipart_chunksize = PART
    return store


# -- the manifest is the commit


def test_nothing_exists_before_the_commit_and_everything_after(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "own.bin").write_bytes(b"x" * 5000)
    writer = store.writer(REF)
    writer.put_bytes("a.txt", b"A")
    writer.put_folder(tmp_path / "in", "tree/")
    with writer.open("s.txt") as stream:
        stream.write(b"S" * 10)
        stream.write(memoryview(b"T"))
    assert store.find(REF) is None
    assert list(store.list()) == []
    for read in (store.manifest, store.resolve, lambda r: store.download(r, tmp_path / "out")):
        with pytest.raises(NotFoundError, match=REF):
            read(REF)
    assert not (tmp_path / "out").exists()

    made = writer.commit(stage="scrape", spec={"channel": "@a"}, inputs={"source": OTHER}, counts={"posts": 2}, run="r")
    assert store.find(REF) == made
    assert [m.ref for m in store.list()] == [REF]
    assert [(f.path, f.size) for f in made.files] == [("a.txt", 1), ("s.txt", 11), ("tree/own.bin", 5000)]
    assert made.started <= made.created
    assert made.size == 5012
    store.download(REF, tmp_path / "out")
    assert (tmp_path / "out" / "s.txt").read_bytes() == b"S" * 10 + b"T"
    assert made.file("s.txt").sha256 == hashlib.sha256(b"S" * 10 + b"T").hexdigest()
    with pytest.raises(NotFoundError, match=r"has no file x\.txt"):
        made.file("x.txt")


def test_what_cannot_be_read_back_is_not_committed(store: ArtifactStore) -> None:
    writer = store.writer(REF)
    with pytest.raises(ValueError, match="counts"):
        writer.commit(stage="scrape", spec={}, counts={"loss": float("nan")})
    assert store.find(REF) is None


def test_removing_takes_the_manifest_first(store: ArtifactStore, faults: FaultyS3, shaky: ArtifactStore) -> None:
    make(store)
    make(store, OTHER)
    assert shaky.remove(REF) == 3
    deletes = [target for method, target in faults.requests if method == "DELETE"]
    assert len(deletes) == 3 and deletes[0].endswith("/manifest.json")
    assert list(store.bucket.list(f"{REF}/")) == []
    assert store.remove(REF) == 0
    assert store.find(OTHER) is not None
    # Cut off after the first of the two requests, half of an artefact is left, and nobody takes it for one.
    make(store)
    calls: list[list[str]] = []
    original = shaky.bucket.delete

    def once(paths: Any) -> int:
        calls.append(list(paths))
        if len(calls) == 2:
            raise TemporaryError("cut off")
        return original(calls[-1])

    shaky.bucket.delete = once  # type: ignore[method-assign]
    with pytest.raises(TemporaryError):
        shaky.remove(REF)
    assert calls[0] == [f"{REF}/{MANIFEST}"]
    assert store.find(REF) is None
    assert [o.path for o in store.bucket.list(f"{REF}/")] == [f"{REF}/a.txt", f"{REF}/b/c.bin"]


OUTSIDE = (
    *("../x", "a/../../x", "/etc/passwd", "..", ".", "", "a//b", "a/", "./a", "a\\..\\b", "a\0b", MANIFEST),
    "x" * 600,
)


def test_a_path_that_leaves_the_artefact_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    make(store)
    writer = store.writer(OTHER)
    (tmp_path / "f").write_bytes(b"A")
    for path in OUTSIDE:
        rewrite(store, REF, files=[{"path": path, "size": 1, "sha256": hashlib.sha256(b"A").hexdigest()}])
        with pytest.raises(DataError, match=r"is damaged: files\.0\.path: .*is not a path inside an artefact"):
            store.download(REF, tmp_path / "out")
        with pytest.raises(DataError, match="rename the file"):
            writer.put_bytes(path, b"A")
        with pytest.raises(DataError, match="rename the file"):
            writer.open(path)
        if path:  # without one, put_file takes the file's own name
            with pytest.raises(DataError, match="rename the file"):
                writer.put_file(tmp_path / "f", path)
    assert not (tmp_path / "out").exists()
    assert list(store.bucket.list(f"{OTHER}/")) == []


def test_a_folder_with_a_manifest_of_its_own_cannot_pass_for_an_artefact(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(make(store).model_copy(update={"id": OTHER[6:]}).model_dump_json())
    with pytest.raises(DataError, match="rename the file"):
        store.writer(OTHER).put_folder(tmp_path)
    assert store.find(OTHER) is None


DAMAGES: list[tuple[bytes | dict[str, Any], str]] = [
    (b"", "is damaged"),
    (b"{", "is damaged"),
    (b"\xff\xfe", "is damaged"),
    (b"[]", "is damaged"),
    ({"id": OTHER[6:]}, "is damaged: it says that it is posts/abab"),
    ({"kind": "model"}, "is damaged: it says that it is model/"),
    ({"format": 2}, "format: Input should be less than or equal to 1"),
    ({"files": [{"path": "a", "size": -1, "sha256": "0" * 64}]}, r"files\.0\.size"),
    ({"files": [{"path": "a", "size": 1, "sha256": "xyz"}]}, r"files\.0\.sha256"),
    ({"files": [{"path": "a", "size": 1, "sha256": "0" * 64, "artifact": "../up"}]}, r"files\.0\.artifact"),
    ({"files": [{"path": "a", "size": 1, "sha256": "0" * 64}] * 2}, "a path is listed twice"),
]


def test_a_damaged_manifest_is_told_in_a_sentence_and_does_not_end_a_listing(
    store: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    make(store, OTHER)
    for damage, sentence in DAMAGES:
        make(store)
        if isinstance(damage, bytes):
            store.bucket.put_bytes(f"{REF}/{MANIFEST}", damage)
        else:
            rewrite(store, REF, **damage)
        with pytest.raises(DataError, match=sentence) as caught:
            store.find(REF)
        assert f"{REF}/{MANIFEST}" in str(caught.value)
        assert "\n" not in str(caught.value)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert [m.ref for m in store.list("posts")] == [OTHER]
        assert f"{REF}/{MANIFEST}" in caplog.text


def test_fields_of_a_later_version_do_not_make_a_manifest_unreadable(store: ArtifactStore) -> None:
    made = make(store)
    rewrite(store, REF, signature="later", spec={"channel": "@a", "new": 1})
    assert store.manifest(REF).files == made.files


# -- what is read is verified


@pytest.mark.parametrize("damage", [b"", b"CCC", b"D" * 1000, b"C" * 1001])
def test_bytes_that_are_not_the_manifests_are_refused(store: ArtifactStore, tmp_path: Path, damage: bytes) -> None:
    entry = make(store).file("b/c.bin")
    store.bucket.put_bytes(f"{REF}/b/c.bin", damage)
    with pytest.raises(DataError, match=r"b/c\.bin"):
        store.read(REF, entry)
    with pytest.raises(DataError, match=r"b/c\.bin"):
        store.download(REF, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] in (["a.txt"], [])
    for size in (-1, 100, 5000):
        with pytest.raises(DataError, match=r"b/c\.bin"), store.open(REF, entry) as stream:
            while stream.read(size):
                pass


def test_a_file_that_is_gone_is_named(store: ArtifactStore, tmp_path: Path) -> None:
    entry = make(store).file("a.txt")
    store.bucket.delete([f"{REF}/a.txt"])
    for read in (
        lambda: store.read(REF, entry),
        lambda: store.open(REF, entry).read(),
        lambda: store.download(REF, tmp_path / "out"),
    ):
        with pytest.raises(NotFoundError, match=r"a\.txt"):
            read()


@pytest.mark.parametrize("way", ["removed", "made again"])
def test_an_artefact_that_is_taken_away_meanwhile_is_no_bad_input(
    store: ArtifactStore, tmp_path: Path, way: str
) -> None:
    before = make(store)
    entry = before.file("a.txt")
    store.remove(REF)
    if way == "made again":
        make(store, **{"a.txt": b"of other posts"})
    for read in (
        lambda: store.read(REF, entry),
        lambda: store.open(REF, entry).read(),
        lambda: store.download(REF, tmp_path / "out", manifest=before),
    ):
        with pytest.raises(TemporaryError, match=r"was removed or made again while .* was read; try again"):
            read()


def test_a_stream_reads_like_a_file(store: ArtifactStore) -> None:
    data = bytes(range(256)) * 80_000  # 20 MB: three ranges
    entry = make(store, REF, big=data, none=b"").file("big")
    assert store.open(REF, entry).read() == data
    with store.open(REF, entry) as stream:
        assert stream.read(10) + stream.read(9 * MIB) + stream.read() == data
    with store.open(REF, entry) as stream:
        assert sum(len(line) for line in stream) == len(data)
    assert store.open(REF, store.manifest(REF).file("none")).read() == b""


def test_a_download_keeps_what_is_right_and_mends_what_is_not(store: ArtifactStore, tmp_path: Path) -> None:
    make(store)
    store.download(REF, tmp_path)
    kept = (tmp_path / "a.txt").stat().st_mtime_ns
    (tmp_path / "b" / "c.bin").write_bytes(b"C" * 999 + b"D")
    store.bucket.delete([f"{REF}/a.txt"])  # it is not asked for again
    store.download(REF, tmp_path)
    assert (tmp_path / "a.txt").stat().st_mtime_ns == kept
    assert (tmp_path / "b" / "c.bin").read_bytes() == b"C" * 1000
    assert [f.path for f in store.manifest(REF).matching("*.bin", "no*")] == ["b/c.bin"]
    store.download(REF, tmp_path / "some", "b/*")
    assert [p.name for p in (tmp_path / "some").rglob("*") if p.is_file()] == ["c.bin"]


def test_reading_at_once_has_a_bound(store: ArtifactStore) -> None:
    entry = make(store).file("b/c.bin")
    with pytest.raises(DataError, match="too large to be read at once"):
        store.read(REF, entry, max_size=999)


# -- files of other artefacts


def test_files_of_an_ancestor_are_listed_first_and_read_from_there(store: ArtifactStore, tmp_path: Path) -> None:
    parent = make(store, OTHER, **{"part-00000.parquet": b"0", "part-00001.parquet": b"1"})
    writer = store.writer(REF)
    writer.put_bytes("part-00002.parquet", b"2")
    for entry in parent.files:
        writer.adopt(entry.model_copy(update={"artifact": OTHER}))
    made = writer.commit(stage="scrape", spec={}, parent=OTHER)
    assert [f.path[5:10] for f in made.files] == ["00000", "00001", "00002"]
    assert made.size == 1
    assert [store.read(REF, f) for f in store.manifest(REF).files] == [b"0", b"1", b"2"]
    store.download(REF, tmp_path)
    assert sorted(p.read_bytes() for p in tmp_path.iterdir()) == [b"0", b"1", b"2"]
    with pytest.raises(ValueError, match=r"part-00000\.parquet is in"):
        writer.put_bytes("part-00000.parquet", b"own")


def test_an_id_may_be_abbreviated(store: ArtifactStore) -> None:
    make(store)
    make(store, OTHER)
    make(store, "posts/" + "abcd" * 5)
    store.writer("model/" + "0" * 20).put_bytes("half", b"")
    assert store.resolve("posts/0") == store.resolve("0123") == store.resolve(f" {REF}/ ") == REF
    for text, sentence in (
        ("ab", "is the beginning of several artefacts"),
        ("model/0", "is no artefact"),
        ("posts/zz", "is not an artefact"),
        ("nothing/00", "is not an artefact"),
        ("", "is not an artefact"),
        ("posts/" + "f" * 20, "there is no artefact"),
    ):
        with pytest.raises(NotFoundError, match=sentence):
            store.resolve(text)


# -- streams


def test_a_stream_that_is_dropped_leaves_nothing(store: ArtifactStore, s3_server: S3Server) -> None:
    writer = store.writer(REF)
    with pytest.raises(ZeroDivisionError), writer.open("a.bin") as stream:
        stream.write(b"x" * (3 * PART_SIZE))  # several parts are out already
        raise ZeroDivisionError
    threads = set(threading.enumerate())
    forgotten = writer.open("b.bin")
    forgotten.write(b"x" * (2 * PART_SIZE + 5))
    (uploading,) = set(threading.enumerate()) - threads - {t for t in threading.enumerate() if "Thread" in t.name}
    del forgotten
    gc.collect()
    uploading.join(20)
    assert not uploading.is_alive()
    small = writer.open("c.bin")
    small.write(b"x")
    del small
    gc.collect()
    assert list(store.bucket.open_uploads()) == []
    assert writer.commit(stage="scrape", spec={}).files == ()
    assert on_disk(s3_server, store) == [MANIFEST]


MEMORY = """
import hashlib, os, sys
from pathlib import Path
from jobs.artifacts import ArtifactStore
store = ArtifactStore.from_env()
block = os.urandom(1 << 20)
def peak():
    # Not getrusage: its peak begins with what the process that started this one held.
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024
writer = store.writer("posts/" + "0" * 20)
with writer.open("warm") as stream:
    stream.write(block)
base = peak()
with writer.open("big") as stream:
    for _ in range(240):
        stream.write(block)
up = peak() - base
made = writer.commit(stage="scrape", spec={})
digest = hashlib.sha256()
with store.open(made.ref, made.file("big")) as stream:
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
assert digest.hexdigest() == made.file("big").sha256 and made.file("big").size == 240 << 20
print(up, peak() - base)
"""


def test_a_stream_of_any_length_needs_bounded_memory(s3_env: dict[str, str]) -> None:
    import os

    done = subprocess.run(
        [sys.executable, "-c", MEMORY],
        env={**os.environ, **s3_env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    up, down = (int(n) for n in done.stdout.split())
    assert max(up, down) < 140, f"{up} MiB to write and {down} MiB to read 240 MiB"


# -- a network and a server that fail


@pytest.mark.parametrize("kind", ["error", "slow_down", "reset"])
def test_writing_goes_on_after_a_failure(faults: FaultyS3, shaky: ArtifactStore, tmp_path: Path, kind: str) -> None:
    data = b"0123456789abcdef" * (2 * PART // 16) + b"end"
    (tmp_path / "f").write_bytes(data)
    for contains in ("uploads", "partNumber=1", "partNumber=2", "uploadId", "small", MANIFEST):
        faults.break_next(kind, contains=contains, times=2)
    writer = shaky.writer(REF)
    writer.put_file(tmp_path / "f", "file")
    with writer.open("stream") as stream:
        stream.write(data)
    writer.put_bytes("small", b"s")
    made = writer.commit(stage="scrape", spec={})
    assert len(faults.broken) == 12
    faults.clear()
    digest = hashlib.sha256(data).hexdigest()
    assert [(f.path, f.sha256) for f in made.files][:1] == [("file", digest)]
    shaky.download(REF, tmp_path / "out")
    assert hashlib.sha256((tmp_path / "out" / "stream").read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("kind", ["error", "slow_down", "reset", "truncate", "trickle"])
def test_reading_goes_on_after_a_failure(faults: FaultyS3, shaky: ArtifactStore, tmp_path: Path, kind: str) -> None:
    data = b"0123456789abcdef" * (2 * PART // 16) + b"end"
    made = make(shaky, REF, big=data)
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: shaky.open(REF, made.file("big")).read(),
        lambda: shaky.read(REF, made.file("big")),
        lambda: (shaky.download(REF, tmp_path), (tmp_path / "big").read_bytes())[1],
    )
    for read in ways:
        faults.clear()
        faults.break_next(kind, method="GET", contains="/big", times=2)
        assert read() == data
    faults.clear()
    faults.break_next(kind, method="GET", contains=MANIFEST, times=2)
    faults.break_next(kind, method="GET", contains="list-type", times=1)
    assert shaky.manifest(REF) == made
    assert [o.path for o in shaky.bucket.list(REF)] == [f"{REF}/big", f"{REF}/{MANIFEST}"]
    assert sum(k == kind for k, _, _ in faults.broken) >= 6


def test_bytes_damaged_on_the_way_are_read_once_more_and_no_oftener(
    faults: FaultyS3, shaky: ArtifactStore, tmp_path: Path
) -> None:
    made = make(shaky)
    entry = made.file("b/c.bin")
    faults.break_next("corrupt", method="GET", contains="c.bin")
    assert shaky.read(REF, entry) == b"C" * 1000
    faults.break_next("corrupt", method="GET", contains="c.bin")
    shaky.download(REF, tmp_path / "once")
    assert (tmp_path / "once" / "b" / "c.bin").read_bytes() == b"C" * 1000
    faults.break_next("corrupt", method="GET", contains="c.bin", times=99)
    for read in (
        lambda: shaky.read(REF, entry),
        lambda: shaky.open(REF, entry).read(),
        lambda: shaky.download(REF, tmp_path / "never"),
    ):
        with pytest.raises(DataError, match=r"c\.bin is damaged"):
            read()
    assert [p.name for p in (tmp_path / "never").rglob("*") if p.is_file()] == ["a.txt"]


def test_bytes_that_are_damaged_in_another_way_each_time_may_be_right_the_next(
    faults: FaultyS3, shaky: ArtifactStore, tmp_path: Path
) -> None:
    """The bucket's own bytes are right then: it is no bad input, and the stage is tried again."""
    made = make(shaky)
    entry = made.file("b/c.bin")
    spots = itertools.count()
    faults.spot = lambda length: next(spots) % length
    faults.break_next("corrupt", method="GET", contains="c.bin", times=99)
    for read in (lambda: shaky.open(REF, entry).read(), lambda: shaky.download(REF, tmp_path / "never")):
        with pytest.raises(TemporaryError, match=r"c\.bin is damaged.*the bytes differ"):
            read()
    assert [p.name for p in (tmp_path / "never").rglob("*") if p.is_file()] == ["a.txt"]
    faults.clear()
    faults.break_next("corrupt", method="GET", contains="c.bin")
    with pytest.raises(TemporaryError, match=r"read once more they are right"):
        shaky.open(REF, entry).read()
    assert shaky.open(REF, entry).read() == b"C" * 1000


def test_a_server_that_stays_broken_leaves_no_commit_and_no_parts(
    faults: FaultyS3, shaky: ArtifactStore, tmp_path: Path, store: ArtifactStore
) -> None:
    made = make(shaky)
    faults.break_next("truncate", method="GET", contains="c.bin", times=999)
    with pytest.raises(TemporaryError, match=r"reading posts/.*c\.bin: the transfer to http"):
        shaky.download(REF, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["a.txt"]
    with pytest.raises(TemporaryError, match=r"reading posts/.*c\.bin"):
        shaky.open(REF, made.file("b/c.bin")).read()
    faults.break_next("full", method="PUT", times=999)
    writer = shaky.writer(OTHER)
    with pytest.raises(TemporaryError, match=r"the storage behind http.* is full"), writer.open("s") as stream:
        for _ in range(100):
            stream.write(b"x" * MIB)
    with pytest.raises(TemporaryError, match="is full"):
        writer.commit(stage="scrape", spec={})
    assert store.find(OTHER) is None
    assert list(store.bucket.open_uploads()) == []


def test_an_interrupt_does_not_wait_for_gigabytes(store: ArtifactStore) -> None:
    """SIGTERM raises in the thread that waits, while others are in the middle of long transfers."""
    started, leave = threading.Event(), threading.Event()

    def transfer(item: int) -> None:
        if item == 0:
            started.wait(10)
            raise Interrupted("as the signal's handler does")
        started.set()
        leave.wait(30)

    try:
        with pytest.raises(Interrupted):
            store._all(transfer, range(20))
        assert not leave.is_set()
    finally:
        leave.set()


def test_a_guard_stands_before_every_write(store: ArtifactStore, tmp_path: Path) -> None:
    def guard() -> None:
        raise TemporaryError("lost")

    (tmp_path / "f").write_bytes(b"1")
    writer = store.writer(REF, guard=guard)
    for write in (
        lambda: writer.put_bytes("a", b""),
        lambda: writer.put_file(tmp_path / "f"),
        lambda: writer.put_folder(tmp_path),
        lambda: writer.open("a"),
    ):
        with pytest.raises(TemporaryError, match="lost"):
            write()
    assert list(store.bucket.list()) == []


def test_an_entry_is_checked_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="sha256"):
        FileEntry(path="a", size=1, sha256="A" * 64)
