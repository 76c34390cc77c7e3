"""What ``gc`` removes: everything that no manifest vouches for and that nobody is at work on."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from jobs.artifacts import LEASE_TTL, MANIFEST, ArtifactStore
from jobs.specs import KINDS


@dataclass
class Collected:
    """What was found: a line for each thing, and bytes in all."""

    lines: list[str] = field(default_factory=list)
    size: int = 0


def collect(store: ArtifactStore, older_than: float, *, dry_run: bool) -> Collected:
    """Reclaim what is older than so many seconds by the server's clock."""
    bucket = store.bucket
    now = bucket.server_time()
    found = Collected()

    def old(moment: datetime, limit: float = older_than) -> bool:
        return (now - moment).total_seconds() >= limit - 1  # the server tells its time in whole seconds

    leases = list(bucket.list("leases/"))
    alive = [info.path for info in leases if not old(info.modified, LEASE_TTL)]
    held = {path.removeprefix("leases/").rpartition("/")[0] for path in alive}
    for kind in KINDS:
        for name in list(bucket.folders(f"{kind}/")):
            ref = f"{kind}/{name}"
            if ref in held or any(h.startswith(f"{ref}/") for h in held) or bucket.head(f"{ref}/{MANIFEST}"):
                continue
            objects = list(bucket.list(f"{ref}/"))
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


def _remove(store: ArtifactStore, found: Collected, line: str, objects: list[tuple[str, int]], dry_run: bool) -> None:
    found.lines.append(line)
    found.size += sum(size for _, size in objects)
    if not dry_run:
        store.bucket.delete(path for path, _ in objects)
