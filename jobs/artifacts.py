"""The only door to the bucket: artefacts, their manifests, and the folders of runs.

An artefact is a folder ``KIND/ID/`` of files and a ``manifest.json``. The manifest is written last and is the
commit: without it there is no artefact, whatever lies in the folder. It lists every file with size and SHA-256,
and whoever reads a file through this module has it verified.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import ValidationError
from tqdm import tqdm

from jobs import __version__
from jobs.leases import TTL as LEASE_TTL
from jobs.leases import Lease, lease_name
from jobs.manifest import MANIFEST, FileEntry, Manifest, safe_path
from jobs.s3 import S3Settings, without_signatures
from jobs.specs import (
    ID_LENGTH,
    KINDS,
    DataError,
    Interrupted,
    NotFoundError,
    TemporaryError,
    describe,
)
from jobs.storage import Bucket, ObjectInfo
from jobs.streams import MIB, UploadStream, open_source
from jobs.verified import Verified, twice, verify

__all__ = [
    "LEASE_TTL",
    "MANIFEST",
    "ArtifactStore",
    "ArtifactWriter",
    "Bucket",
    "FileEntry",
    "Lease",
    "Manifest",
    "ObjectInfo",
    "S3Settings",
    "hash_file",
    "without_signatures",
]

log = logging.getLogger(__name__)

T = TypeVar("T")
HASH_CHUNK = 4 * MIB


def hash_file(path: Path) -> tuple[str, int]:
    """SHA-256 (hex) and size (bytes) of a file."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


class ArtifactStore:
    """Artefacts of one bucket and prefix. Safe to use from threads."""

    def __init__(self, bucket: Bucket, *, workers: int = 4, show_progress: bool | None = None) -> None:
        """``show_progress``: draw transfer bars; None means on a terminal only."""
        self.bucket = bucket
        self._workers = workers
        self._hide = None if show_progress is None else not show_progress

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> ArtifactStore:
        """A store by ``BUGURT_S3_*`` and the AWS environment; see S3Settings."""
        return cls(Bucket(S3Settings.from_env(env)))

    # -- reading

    def find(self, ref: str, *, quick: bool = False) -> Manifest | None:
        """The manifest at ``ref`` (an artefact, or any folder that was committed), or None.

        ``quick``: by ``Bucket.find_bytes``, for whoever asks for very many. Raises DataError when there is one that
        cannot be read.
        """
        path = f"{ref}/{MANIFEST}"
        try:
            data = self.bucket.find_bytes(path) if quick else self.bucket.get_bytes(path)
        except NotFoundError:
            return None
        if data is None:
            return None
        where = self.bucket.url(f"{ref}/{MANIFEST}")
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError as error:
            raise DataError(describe(error, f"{where} is damaged")) from error
        if ref.partition("/")[0] in KINDS and manifest.ref != ref:
            raise DataError(f"{where} is damaged: it says that it is {manifest.ref[:60]}")
        return manifest

    def manifest(self, ref: str) -> Manifest:
        """As ``find``; raises NotFoundError when there is none."""
        found = self.find(ref)
        if found is None:
            raise _no_artifact(ref, self.bucket)
        return found

    def list(self, *kinds: str) -> Iterator[Manifest]:
        """Manifests of all committed artefacts, kind by kind. A damaged one is left out with a warning."""

        def find(ref: str) -> Manifest | None:
            try:
                return self.find(ref, quick=True)
            except DataError as error:
                log.warning("left out: %s", error)
                return None

        for kind in kinds or KINDS:
            refs = [f"{kind}/{name}" for name in self.bucket.folders(f"{kind}/")]
            with ThreadPoolExecutor(8) as pool:
                yield from (m for m in pool.map(find, refs) if m is not None)

    def resolve(self, text: str, kind: str | None = None) -> str:
        """The one ``kind/id`` that a user's text means: whole or abbreviated, with or without the kind."""
        given, _, start = text.strip().rstrip("/").rpartition("/")
        kinds: Iterable[str] = [given] if given else ([kind] if kind else KINDS)
        if not start or any(k not in KINDS for k in kinds) or set(start) - set("0123456789abcdef"):
            raise NotFoundError(f"{text!r} is not an artefact; write KIND/ID, with a kind of {', '.join(KINDS)}")
        if len(start) == ID_LENGTH and given:
            if self.bucket.head(f"{given}/{start}/{MANIFEST}") is None:  # one that is damaged can still be removed
                raise _no_artifact(f"{given}/{start}", self.bucket)
            return f"{given}/{start}"
        hits = [
            f"{k}/{n}"
            for k in kinds
            for n in self.bucket.folders(f"{k}/")
            if n.startswith(start) and self.bucket.head(f"{k}/{n}/{MANIFEST}")
        ]
        if len(hits) != 1:
            problem = "is the beginning of several artefacts" if hits else "is no artefact"
            raise NotFoundError(
                f"{text!r} {problem} in {self.bucket.url('')}{': ' if hits else ''}{', '.join(hits[:5])}"
            )
        return hits[0]

    def key_of(self, ref: str, entry: FileEntry) -> str:
        """Where an entry's bytes lie."""
        return f"{entry.artifact or ref}/{entry.path}"

    def open(self, ref: str, entry: FileEntry) -> BinaryIO:
        """A file as a stream in bounded memory.

        At its end it raises, if the bytes are not the manifest's: DataError when those in the bucket are not, which
        a second look tells, and TemporaryError when they were damaged on the way.
        """
        key = self.key_of(ref, entry)
        where = self.bucket.url(key)

        def look_again() -> None:
            with self.bucket.ranges(key, entry.size) as ranges:
                verified = Verified(ranges, entry, where)
                while verified.next():
                    pass

        ranges = self.bucket.ranges(key, entry.size, ahead=1, at_once=False)
        return open_source(_Reading(Verified(ranges, entry, where, look_again), self, ref, entry))

    def read(self, ref: str, entry: FileEntry, *, max_size: int = 256 * MIB) -> bytes:
        """A file's bytes, verified. Raises DataError when it is larger than ``max_size`` bytes."""
        if entry.size > max_size:
            raise DataError(f"{ref}/{entry.path} is too large to be read at once ({entry.size} bytes)")
        key = self.key_of(ref, entry)

        def fetch() -> bytes:
            data = self.bucket.get_bytes(key, max_size=max_size)
            verify(hashlib.sha256(data).hexdigest(), len(data), entry, self.bucket.url(key))
            return data

        with self.reading(ref, entry):
            return twice(fetch)

    @contextlib.contextmanager
    def reading(self, ref: str, entry: FileEntry) -> Iterator[None]:
        """A file that cannot be read because its artefact is being removed or made anew is no bad input."""
        try:
            yield
        except DataError as error:
            try:
                now = self.find(ref)
            except DataError:
                raise error from None
            if now is not None and entry in now.files:
                raise
            raise TemporaryError(f"{ref} was removed or made again while {entry.path} was read; try again") from error

    def download(self, ref: str, dest: Path, *patterns: str, manifest: Manifest | None = None) -> Manifest:
        """Download an artefact's files (all, or those that match a pattern) below ``dest``, verified.

        A file appears under its name only when it is whole; one that is there already and right is kept.
        """
        manifest = manifest or self.manifest(ref)
        entries = manifest.matching(*patterns) if patterns else list(manifest.files)
        with self._bar(f"down {ref[:12]}", sum(e.size for e in entries)) as advance:

            def fetch(entry: FileEntry) -> None:
                target = dest / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.is_file() and hash_file(target) == (entry.sha256, entry.size):
                    advance(entry.size)
                    return
                part = target.with_name(f".{target.name}.{os.getpid()}.part")

                def attempt() -> None:
                    key = self.key_of(ref, entry)
                    with part.open("wb") as file, self.bucket.ranges(key, entry.size) as ranges:
                        verified = Verified(ranges, entry, self.bucket.url(key))
                        while data := verified.next():
                            file.write(data)
                            advance(len(data))

                try:
                    with self.reading(ref, entry):
                        twice(attempt)
                    part.replace(target)
                finally:
                    part.unlink(missing_ok=True)

            self._all(fetch, entries)
        return manifest

    # -- writing

    def writer(self, ref: str, *, guard: Callable[[], None] | None = None) -> ArtifactWriter:
        """Begin to write a folder (an artefact ``kind/id``, a checkpoint …); ``commit`` makes it exist.

        ``guard`` is called before each file is written and may raise: a lease's ``ensure``.
        """
        return ArtifactWriter(self, ref, guard)

    def remove(self, ref: str, *, but: str | None = None) -> int:
        """Delete an artefact: the manifest first, so that no reader meets half of it. Returns objects deleted.

        ``but``: a folder within it that stays, such as ``parts/``.
        """
        first = f"{ref}/{MANIFEST}"
        paths = [o.path for o in self.bucket.list(f"{ref}/") if but is None or not o.path.startswith(f"{ref}/{but}")]
        removed = self.bucket.delete(p for p in paths if p == first)
        return removed + self.bucket.delete(p for p in paths if p != first)

    def lease(self, name: str, *, holder: str, waiting: Callable[[str], None] | None = None) -> Lease:
        """A lease on ``name``, to be held with ``with``."""
        return Lease(self.bucket, lease_name(name), holder=holder, waiting=waiting)

    # -- shared by both directions

    def _all(self, work: Callable[[Any], object], items: Iterable[Any]) -> None:
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="transfer")
        wait = True
        try:
            for future in [pool.submit(work, item) for item in items]:
                future.result()
        except (Interrupted, KeyboardInterrupt):
            wait = False  # whoever interrupts has seconds, and what is under way may be gigabytes
            raise
        finally:
            pool.shutdown(wait=wait, cancel_futures=True)

    @contextlib.contextmanager
    def _bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        bar = tqdm(total=total, desc=label, unit="B", unit_scale=True, delay=2, leave=False, disable=self._hide)
        lock = threading.Lock()

        def advance(count: int) -> None:
            with lock:
                bar.update(count)

        with bar:
            yield advance


def _no_artifact(ref: str, bucket: Bucket) -> NotFoundError:
    return NotFoundError(f"there is no artefact {ref} in {bucket.url('')}")


class _Reading:
    """A source whose errors tell bad bytes from an artefact that was taken away; see ``ArtifactStore.reading``."""

    def __init__(self, source: Verified, store: ArtifactStore, ref: str, entry: FileEntry) -> None:
        self._source, self._store, self._ref, self._entry = source, store, ref, entry

    def next(self) -> bytes:
        with self._store.reading(self._ref, self._entry):
            return self._source.next()

    def close(self) -> None:
        self._source.close()


def _order(entry: FileEntry) -> tuple[bool, str]:
    """Ancestors' files first, in the order in which they were adopted (oldest first), then the own ones by path."""
    return (entry.artifact is None, "" if entry.artifact else entry.path)


class ArtifactWriter:
    """Collects a folder's files in the bucket; nothing exists for readers until ``commit``."""

    def __init__(self, store: ArtifactStore, ref: str, guard: Callable[[], None] | None = None) -> None:
        self.store = store
        self.ref = ref
        self._guard = guard
        self.started = datetime.now(UTC)
        self._entries: dict[str, FileEntry] = {}
        self._lock = threading.Lock()

    def _add(self, entry: FileEntry) -> FileEntry:
        with self._lock:
            before = self._entries.get(entry.path)
            if before is not None and before.artifact != entry.artifact:
                raise ValueError(
                    f"{entry.path} is in {before.artifact or self.ref} and in {entry.artifact or self.ref}"
                )
            self._entries[entry.path] = entry
        return entry

    def _begin(self, path: str) -> None:
        """What must hold before the first byte goes out: a file named like the manifest would pass for one."""
        if self._guard is not None:
            self._guard()
        try:
            safe_path(path)
        except ValueError as error:
            raise DataError(f"{error}; rename the file") from error

    def put_bytes(self, path: str, data: bytes) -> FileEntry:
        """Write a small file."""
        self._begin(path)
        entry = FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        self.store.bucket.put_bytes(f"{self.ref}/{path}", data)
        return self._add(entry)

    def put_file(self, local: Path, path: str | None = None) -> FileEntry:
        """Upload a file; it is hashed while it goes out."""
        with self.store._bar(f"up {self.ref[:12]}", local.stat().st_size) as advance:
            return self._put_file(local, path or local.name, advance)

    def _put_file(self, local: Path, path: str, advance: Callable[[int], None]) -> FileEntry:
        self._begin(path)
        with ThreadPoolExecutor(1) as pool:
            hashed = pool.submit(hash_file, local)
            self.store.bucket.upload_file(local, f"{self.ref}/{path}", advance)
            sha256, size = hashed.result()
        return self._add(FileEntry(path=path, size=size, sha256=sha256))

    def put_folder(self, folder: Path, prefix: str = "") -> None:
        """Upload all files below a folder, several at a time."""
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        with self.store._bar(f"up {self.ref[:12]}", sum(p.stat().st_size for p in files)) as advance:
            self.store._all(lambda p: self._put_file(p, prefix + p.relative_to(folder).as_posix(), advance), files)

    def open(self, path: str) -> HashingStream:
        """Write a file as a stream of any length, in bounded memory; leaving the ``with`` by an error drops it."""
        self._begin(path)
        return HashingStream(self, path, self.store.bucket.create(f"{self.ref}/{path}"))

    def adopt(self, entry: FileEntry) -> FileEntry:
        """List a file that is in the bucket already: an ancestor's shard, or a part that another process put."""
        return self._add(entry)

    def commit(
        self,
        *,
        stage: str,
        spec: Mapping[str, Any],
        inputs: Mapping[str, str] | None = None,
        parent: str | None = None,
        counts: Mapping[str, int | float] | None = None,
        info: Mapping[str, Any] | None = None,
        run: str | None = None,
        made_from: Mapping[str, datetime] | None = None,
    ) -> Manifest:
        """Write the manifest: from now on the artefact exists."""
        kind, _, name = self.ref.partition("/")
        manifest = Manifest(
            kind=kind,
            id=name,
            stage=stage,
            spec=dict(spec),
            inputs=dict(inputs or {}),
            parent=parent,
            files=tuple(sorted(self._entries.values(), key=_order)),
            counts=dict(counts or {}),
            info=dict(info or {}),
            run=run,
            code_version=__version__,
            made_from=dict(made_from or {}),
            started=self.started,
            created=datetime.now(UTC),
        )
        text = manifest.model_dump_json(indent=1)
        Manifest.model_validate_json(text)  # what cannot be read back (a count that is not a number) is no commit
        self.store.bucket.put_bytes(f"{self.ref}/{MANIFEST}", text.encode(), content_type="application/json")
        return manifest


class HashingStream:
    """The writing end of ``ArtifactWriter.open``; the file counts once the ``with`` block ends well."""

    def __init__(self, writer: ArtifactWriter, path: str, stream: UploadStream) -> None:
        self._writer, self._path, self._stream = writer, path, stream
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self._digest.update(data)
        self._size += len(data)
        return self._stream.write(data)

    # pyarrow and other writers ask for these of a file object
    closed = False

    def flush(self) -> None:
        """Parts go out by themselves."""

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def __enter__(self) -> HashingStream:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self._stream.abort()
            return
        self._stream.close()
        self._writer._add(FileEntry(path=self._path, size=self._size, sha256=self._digest.hexdigest()))
