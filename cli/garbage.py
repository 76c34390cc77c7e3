"""What ``gc`` removes: everything that no manifest vouches for and that nobody is at work on."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from jobs.artifacts import LEASE_TTL, MANIFEST, ArtifactStore, ObjectInfo
from jobs.specs import KINDS, DataError


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
    for kind in KINDS:
        for name in list(bucket.folders(f"{kind}/")):
            ref = f"{kind}/{name}"
            if ref in held or any(h.startswith(f"{ref}/") for h in held):
                continue
            objects = list(bucket.list(f"{ref}/"))
            if any(o.path == f"{ref}/{MANIFEST}" for o in objects):
                strays = [(o.path, o.size) for o in _strays(store, ref, objects) if old(o.modified)]
                if strays:
                    _remove(
                        store,
                        found,
                        f"{ref}/  ({len(strays)} file{'s' * (len(strays) > 1)} that it does not list)",
                        strays,
                        dry_run,
                    )
                continue
            if objects and all(old(o.modified) for o in objects):
                _remove(store, found, f"{ref}/  (never committed)", [(o.path, o.size) for o in objects], dry_run)
    for run in list(bucket.folders("runs/")):
        for step in list(bucket.folders(f"runs/{run}/train/checkpoints/")):
            folder = f"runs/{run}/train/checkpoints/{step}"
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
