"""What ``gc`` removes: everything that no manifest vouches for and that nobody is at work on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain

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

    leases = list(bucket.list("leases/"))
    alive = [info.path for info in leases if not old(info.modified, LEASE_TTL)]
    held = {path.removeprefix("leases/").rpartition("/")[0] for path in alive}
    with ThreadPoolExecutor(WORKERS) as pool:  # a request for each artefact and run: many at a time
        for kind in KINDS:
            refs = [f"{kind}/{name}" for name in bucket.folders(f"{kind}/")]
            refs = [r for r in refs if r not in held and not any(h.startswith(f"{r}/") for h in held)]
            for ref, (objects, strays) in zip(refs, pool.map(lambda r: _look(store, r), refs), strict=True):
                if any(o.path == f"{ref}/{MANIFEST}" for o in objects):
                    gone = [(o.path, o.size) for o in strays if old(o.modified)]
                    if gone:
                        line = f"{ref}/  ({len(gone)} file{'s' * (len(gone) > 1)} that it does not list)"
                        _remove(store, found, line, gone, dry_run)
                elif objects and all(old(o.modified) for o in objects) and bucket.head(f"{ref}/{MANIFEST}") is None:
                    _remove(store, found, f"{ref}/  (never committed)", [(o.path, o.size) for o in objects], dry_run)
        checkpoints = [f"runs/{run}/train/checkpoints" for run in bucket.folders("runs/")]
        steps = pool.map(lambda folder: [f"{folder}/{step}" for step in bucket.folders(f"{folder}/")], checkpoints)
        for folder in chain.from_iterable(steps):
            objects = list(bucket.list(f"{folder}/"))
            if not objects or not all(old(o.modified) for o in objects):
                continue
            manifest = store.find(folder)
            model = manifest.info.get("artifact") if manifest else None
            if manifest is None or (isinstance(model, str) and store.find(model) is not None):
                _remove(store, found, f"{folder}/  (checkpoint)", [(o.path, o.size) for o in objects], dry_run)
    dead = [(o.path, o.size) for o in leases if o.path not in alive]
    if dead:
        _remove(store, found, f"{len(dead)} dead leases", dead, dry_run)
    for path, upload, began in list(bucket.open_uploads()):
        if old(began):
            found.lines.append(f"{path}  (an upload that nobody finished)")
            if not dry_run:
                bucket.abort_upload(path, upload)
    return found


def _look(store: ArtifactStore, ref: str) -> tuple[list[ObjectInfo], list[ObjectInfo]]:
    """What lies in an artefact's folder, and what of it its manifest does not list."""
    objects = list(store.bucket.list(f"{ref}/"))
    return objects, _strays(store, ref, objects)


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
