"""Runs as the bucket keeps them: ``runs/RUN/run.json`` (what was asked for) and ``status.json`` (how it stands).

``run.json`` is written by ``submit`` and is all that a driver needs. ``status.json`` is the driver's account for
people and listings; no decision is ever taken by it. ``submitted/…-RUN/marker`` is empty: an object store lists
by key alone, and the markers' keys sort by the time of submission, so that the newest runs are found without reading
the records of all. Markers decide in which order records are read, never what is true. They are folders, because
servers list those several times faster than objects, of which they tell the digests as well.
"""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.artifacts import ArtifactStore
from jobs.specs import (
    CHAIN,
    RUN_NAME,
    AnyStageSpec,
    DataError,
    NotFoundError,
    RunName,
    RunSpec,
    canonical_json,
    describe,
    load_json,
)

RunState = Literal["waiting", "running", "succeeded", "failed", "cancelled"]
StageState = Literal["waiting", "running", "found", "succeeded", "failed", "cancelled"]
NAME_LENGTH = 31
MARKERS = "submitted/"  # beside runs/, so that whoever goes over the folders of runs does not meet them
_READERS = 16
_WINDOW = 64  # records that are read at a time


class RunRecord(BaseModel):
    """What was asked for. ``attempt`` grows when a run that failed is submitted again; times are UTC."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    run: RunName
    spec: RunSpec
    source: str = Field(description="the source, in the user's words")
    owner: str = ""
    force: bool = False
    attempt: int = Field(1, ge=1)
    created: datetime
    submitted: datetime
    code_version: str


class StageStatus(BaseModel):
    """How one stage of a run stands."""

    model_config = ConfigDict(extra="ignore")

    state: StageState = "waiting"
    artifact: str | None = None
    job: str | None = None
    message: str = ""
    exit_code: int | None = None
    made_by: str | None = None
    counts: dict[str, int | float] = Field(default_factory=dict)
    started: datetime | None = None
    finished: datetime | None = None


class RunStatus(BaseModel):
    """How a run stands, by the last word of its driver."""

    model_config = ConfigDict(extra="ignore")

    run: str
    state: RunState = "waiting"
    attempt: int = 1
    message: str = ""
    exit_code: int | None = None
    stages: dict[str, StageStatus] = Field(default_factory=dict, description="by the names of the run's steps")
    updated: datetime | None = None


#: Russian letters as passports write them (ICAO Doc 9303), so that a run of a file «мои посты» can be recognised.
_LATIN = str.maketrans(
    dict(zip("абвгдезийклмнопрстуфыэ", "abvgdeziiklmnoprstufye", strict=True))
    | {"ё": "e", "ж": "zh", "х": "kh", "ц": "ts", "ч": "ch", "ш": "sh", "щ": "shch", "ъ": "ie", "ь": "", "ю": "iu"}
    | {"я": "ia"}
)


def slug(text: str, length: int) -> str:
    """A part of a Job's name out of any text: lower-case Latin letters, digits and hyphens."""
    latin = unicodedata.normalize("NFC", text).lower().translate(_LATIN)
    plain = unicodedata.normalize("NFKD", latin).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:length].strip("-") or "run"


def run_name(spec: RunSpec, label: str, *, serial: int = 1, store: str | None = None) -> str:
    """A run's deterministic name: asking for the same thing twice gives the same name.

    ``store``: the digest of bucket and prefix, where Jobs of several buckets share a place: names are apart, too.
    """
    identity: dict[str, Any] = {n: [s.identity(), s.inputs()] for n, s in spec.steps().items()}
    if store is not None:
        identity["store"] = store  # no step's name
    digest = sha256(canonical_json(identity).encode("utf-8", "surrogatepass")).hexdigest()[:6]
    tail = f"-{digest}" + (f"-{serial}" if serial > 1 else "")
    return slug(label, NAME_LENGTH - len(tail)) + tail


def with_input(spec: AnyStageSpec, ref: str | None) -> AnyStageSpec:
    """The spec with the artefact of the stage before it filled in, where it names none itself."""
    field = CHAIN.get(spec.stage)
    if field is None or ref is None or getattr(spec, field) is not None:
        return spec
    return spec.model_copy(update={field: ref})


def step_env(step: str, spec: AnyStageSpec) -> dict[str, str]:
    """What the Job of a step is told besides its spec: where its log and progress go, if not below its stage's name."""
    return {} if step == spec.stage else {"BUGURT_STEP": step}


def _read(store: ArtifactStore, path: str) -> bytes | None:
    try:
        return store.bucket.get_bytes(path)
    except NotFoundError:
        return None


def load_record(store: ArtifactStore, run: str) -> RunRecord:
    """A run's record. Raises NotFoundError, or DataError when it is damaged."""
    path = f"runs/{run}/run.json"
    data = _read(store, path) if re.fullmatch(RUN_NAME, run) else None
    if data is None:
        raise NotFoundError(f"there is no run {run!r} in {store.bucket.url('')}; `bugurt runs` lists them")
    try:
        return RunRecord.model_validate_json(data)
    except ValidationError as error:
        raise DataError(describe(error, f"{store.bucket.url(path)} is damaged")) from error


def find_record(store: ArtifactStore, run: str) -> RunRecord | None:
    """As ``load_record``, or None when there is none."""
    try:
        return load_record(store, run)
    except NotFoundError:
        return None


def save_record(store: ArtifactStore, record: RunRecord) -> None:
    """Write ``run.json``, and its marker first: a kill in between leaves a marker too many, never one too few."""
    store.bucket.put_bytes(f"{marker(record)}/marker", b"")
    body = record.model_dump_json(indent=1).encode()
    store.bucket.put_bytes(f"runs/{record.run}/run.json", body)


def load_status(store: ArtifactStore, run: str) -> RunStatus:
    """The driver's last word, or an empty account when there is none that can be read."""
    data = _read(store, f"runs/{run}/status.json")
    try:
        return RunStatus.model_validate_json(data) if data else RunStatus(run=run)
    except ValidationError:
        return RunStatus(run=run, message="its status.json is damaged")


def save_status(store: ArtifactStore, status: RunStatus) -> None:
    """Write ``status.json``."""
    stamped = status.model_copy(update={"updated": datetime.now(UTC)})
    store.bucket.put_bytes(f"runs/{status.run}/status.json", stamped.model_dump_json(indent=1).encode())


def load_progress(store: ArtifactStore, run: str, stage: str, shard: int | None = None) -> dict[str, Any]:
    """A stage's ``progress.json`` (see ``jobs.reporting``), or an empty dict."""
    return _progress(_read(store, _progress_path(run, stage, shard)))


def load_shards_progress(store: ArtifactStore, run: str, stage: str, shards: int) -> list[dict[str, Any]]:
    """As ``load_progress``, of all shards."""
    return [_progress(data) for data in store.bucket.get_many(_progress_path(run, stage, n) for n in range(shards))]


def _progress_path(run: str, stage: str, shard: int | None) -> str:
    return f"runs/{run}/{stage}" + (f"/shard-{shard:05d}" if shard is not None else "") + "/progress.json"


def _progress(data: bytes | None) -> dict[str, Any]:
    try:
        found = load_json(data) if data else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def marker(record: RunRecord) -> str:
    """The folder of a record's marker; those of later submissions sort before it."""
    submitted = record.submitted if record.submitted.tzinfo else record.submitted.replace(tzinfo=UTC)
    microseconds = (submitted - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
    return f"{MARKERS}{2 * 10**18 - microseconds:019d}-{record.run}"  # 19 digits for the years 1 to 9999


def all_markers(store: ArtifactStore) -> list[str]:
    """The folders of all markers, the newest submission first."""
    return sorted(MARKERS + name for name in store.bucket.folders(MARKERS))


def marked_run(path: str) -> str:
    """The run that a marker names."""
    return path.removeprefix(MARKERS).partition("-")[2]


def all_records(store: ArtifactStore) -> Iterator[RunRecord]:
    """The records of all runs of the bucket, newest first, read as they are asked for, many at a time.

    Folders without a record that can be read are left out. Runs and markers are listed whole, a thousand a request.
    Runs that no marker names are read at once; the others in the order of their newest markers. Each is given out by
    the time in its record, so a marker without a record, or of another time, is no matter.
    """

    def read(name: str) -> RunRecord | None:
        try:
            return load_record(store, name)
        except DataError:  # a stage that was run by hand, or a record that somebody broke
            return None

    with ThreadPoolExecutor(_READERS) as pool:
        folders = pool.submit(lambda: list(store.bucket.folders("runs/")))
        newest: dict[str, str] = {}
        for path in all_markers(store):
            newest.setdefault(marked_run(path), path)
        marked = list(newest)
        names = [name for name in folders.result() if name not in newest]
        known: list[tuple[str, RunRecord]] = []
        for start in range(0, len(marked) + 1, _WINDOW):
            names += marked[start : start + _WINDOW]
            for record in filter(None, pool.map(read, names)):
                heapq.heappush(known, (marker(record), record))
            names = []
            following = marked[start + _WINDOW : start + _WINDOW + 1]
            while known and not (following and known[0][0] > newest[following[0]]):
                yield heapq.heappop(known)[1]


def with_status(store: ArtifactStore, records: Sequence[RunRecord]) -> list[tuple[RunRecord, RunStatus]]:
    """These records, each with its status."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(zip(records, pool.map(lambda record: load_status(store, record.run), records), strict=True))
