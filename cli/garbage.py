"""What ``gc`` removes: everything that no manifest vouches for and that nobody is at work on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain

from cli.runs import MARKERS, all_markers, load_record, marked_run, marker
from jobs.artifacts import LEASE_TTL, MANIFEST, ArtifactStore, ObjectInfo
from jobs.specs import KINDS, DataError

WORKERS = 16  # requests at a time


@dataclass
class Collected:
    """What was found: a line for each thing, and bytes in all."""

    lines: list[str] = field(default_factory=list)
    size: int = 0


def collect(store: ArtifactStore, older_than: float, *, dry_run: bool) -> Collected:
    """Reclaim what is older than so many seconds by the server's clock."""
    bucket = store.bucket
    now = bucket.server_time() if dry_run else bucket.storage_time()
    found = Collected()

    def old(moment: datetime, limit: float = older_than) -> bool:
        return (now - moment).total_seconds() >= limit - 1  # the server tells its time in whole seconds

    def dead(moment: datetime) -> bool:
        return old(moment, LEASE_TTL)

    leases = list(bucket.list("leases/"))
    alive = [info.path for info in leases if not dead(info.modified)]
    held = {path.removeprefix("leases/").rpartition("/")[0] for path in alive}
    with ThreadPoolExecutor(WORKERS) as pool:  # a request for each artefact and run: many at a time
        for kind in KINDS:
            refs = [f"{kind}/{name}" for name in bucket.folders(f"{kind}/")]
            refs = [r for r in refs if r not in held and not any(h.startswith(f"{r}/") for h in held)]
            for ref, seen in zip(refs, pool.map(lambda r: _of_artifact(store, r, old), refs), strict=True):
                if not seen:
                    continue
                with _undisturbed(store, ref, dead, dry_run=dry_run) as alone:
                    # Looked at once more: whoever came between the two looks may have gone on with it, or committed it.
                    objects = _of_artifact(store, ref, old) if alone else []
                    if not objects:
                        continue
                    count = len(objects)
                    committed = bucket.head(f"{ref}/{MANIFEST}") is not None
                    what = f"{count} file{'s' * (count > 1)} that it does not list" if committed else "never committed"
                    _remove(store, found, f"{ref}/  ({what})", objects, dry_run)
        training = _holders(store, [path for path in alive if path.startswith("leases/model/")])
        runs = list(bucket.folders("runs/"))
        steps = pool.map(lambda run: _steps(store, run), [run for run in runs if run not in training])
        for folder in chain.from_iterable(steps):
            files = list(bucket.list(f"{folder}/"))
            if files and all(old(o.modified) for o in files) and _is_spent(store, folder):
                _remove(store, found, f"{folder}/  (checkpoint)", [(o.path, o.size) for o in files], dry_run)
    spent = [(o.path, o.size) for o in _spent_markers(store, set(runs)) if old(o.modified)]
    if spent:
        _remove(store, found, f"{MARKERS}  ({len(spent)} of runs gone or submitted again)", spent, dry_run)
    ended = [(o.path, o.size) for o in leases if o.path not in alive]
    if ended:
        _remove(store, found, f"{len(ended)} dead leases", ended, dry_run)
    for path, upload, began in list(bucket.open_uploads()):
        if old(began):
            found.lines.append(f"{path}  (an upload that nobody finished)")
            if not dry_run:
                bucket.abort_upload(path, upload)
    return found


def _steps(store: ArtifactStore, run: str) -> list[str]:
    """The folders of a run's checkpoints."""
    folder = f"runs/{run}/train/checkpoints"
    return [f"{folder}/{step}" for step in store.bucket.folders(f"{folder}/")]


def _spent_markers(store: ArtifactStore, runs: set[str]) -> list[ObjectInfo]:
    """Markers of runs that are gone, and those before a run's last submission.

    One that is later than the record stays: its record may be on its way.
    """
    of: dict[str, list[str]] = {}
    for path in all_markers(store):
        of.setdefault(marked_run(path), []).append(path)
    spent: list[str] = []
    for run, paths in of.items():
        if run not in runs:
            spent += paths
        elif len(paths) > 1:
            with contextlib.suppress(DataError):  # which one is right cannot be told any more
                own = marker(load_record(store, run))
                spent += [path for path in paths if path > own]
    return [info for path in spent for info in store.bucket.list(f"{path}/")]


def _of_artifact(store: ArtifactStore, ref: str, old: Callable[[datetime], bool]) -> list[tuple[str, int]]:
    """What may go of an artefact's folder: what a manifest does not list, or all of it when there is none."""
    objects = list(store.bucket.list(f"{ref}/"))
    if any(o.path == f"{ref}/{MANIFEST}" for o in objects):
        objects = [o for o in _strays(store, ref, objects) if old(o.modified)]
    elif not all(old(o.modified) for o in objects):
        objects = []
    return [(o.path, o.size) for o in objects]


def _holders(store: ArtifactStore, claims: list[str]) -> set[str]:
    """The runs that hold these claims: one may be putting a checkpoint, whose folder does not tell for what."""
    found = set()
    for path in claims:
        try:
            holder = json.loads(store.bucket.get_bytes(path)).get("holder", "")
        except (DataError, ValueError, AttributeError):
            continue  # given back this moment
        found.add(str(holder).removeprefix("run "))
    return found


def _is_spent(store: ArtifactStore, folder: str) -> bool:
    """Whether nothing can be resumed from a checkpoint any more, or its model is there."""
    try:
        manifest = store.find(folder)
    except DataError:
        return True  # the training passes it over, too
    if manifest is None:
        return True
    model = manifest.info.get("artifact")
    return isinstance(model, str) and store.bucket.head(f"{model}/{MANIFEST}") is not None


class _Busy(Exception):  # noqa: N818  # it is no error
    """Somebody is at work on it."""


@contextlib.contextmanager
def _undisturbed(store: ArtifactStore, ref: str, dead: Callable[[datetime], bool], *, dry_run: bool) -> Iterator[bool]:
    """Hold the artefact's lease meanwhile; gives False where somebody else has it, or one of its shards."""
    if dry_run:
        yield True
        return

    def busy(sentence: str) -> None:
        raise _Busy(sentence)

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(store.lease(ref, holder="gc", waiting=busy))
            deeper = [o for o in store.bucket.list(f"leases/{ref}/") if o.path.count("/") > ref.count("/") + 2]
            alone = all(dead(o.modified) for o in deeper)
        except _Busy:
            alone = False
        yield alone


def _strays(store: ArtifactStore, ref: str, objects: list[ObjectInfo]) -> list[ObjectInfo]:
    """What a process that was killed right behind its commit left in an artefact's folder: parts, cursors."""
    if len(objects) == 1:
        return []
    try:
        manifest = store.find(ref)
    except DataError:
        return []  # what it listed cannot be told any more
    if manifest is None:
        return []
    listed = {f"{ref}/{f.path}" for f in manifest.files if f.artifact is None} | {f"{ref}/{MANIFEST}"}
    return [o for o in objects if o.path not in listed]


def _remove(store: ArtifactStore, found: Collected, line: str, objects: list[tuple[str, int]], dry_run: bool) -> None:
    found.lines.append(line)
    found.size += sum(size for _, size in objects)
    if not dry_run:
        store.bucket.delete(path for path, _ in objects)
