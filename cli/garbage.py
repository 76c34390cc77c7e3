"""What ``gc`` removes: everything that no manifest vouches for and that nobody is at work on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from cli.runs import MARKERS, all_markers, load_record, marked_run, marker
from jobs.artifacts import LEASE_TTL, MANIFEST, ArtifactStore, ObjectInfo
from jobs.specs import KINDS, DataError

WORKERS = 16  # requests at a time
TOGETHER = 128  # artefacts or runs that are listed by one request, or few
BESIDE = 64  # objects a run, from which on it is looked into by itself: a request costs as much as a hundred objects
CHECKPOINTS = "train/checkpoints/"  # in a run's folder
SERVERS_OWN = (".rclone_temp_", ".rclone_multipart_upload_")  # how the embedded server's own files begin
LITTER = 24 * 3600.0  # seconds after which they are of no use: parts of a large upload may come as late
CACHE = "cache/ctranslate2/"  # converted models: MODEL'S ID/QUANTIZATION/


@dataclass
class Collected:
    """What was found: a line for each thing, and bytes in all."""

    lines: list[str] = field(default_factory=list)
    size: int = 0


def collect(store: ArtifactStore, older_than: float, *, dry_run: bool, embedded: Path | None = None) -> Collected:
    """Reclaim what is older than so many seconds by the server's clock. ``embedded``: the embedded server's folder."""
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
    in_use = held | {parent for path in held for parent in _parents(path)}  # shards hold what lies below an artefact
    models: set[str] = set()  # those that are committed
    with ThreadPoolExecutor(WORKERS) as pool:  # a request for each manifest and run: many at a time
        for kind in KINDS:
            found_here = _listed(store, pool, kind, list(bucket.folders(f"{kind}/")))
            listed = {ref: objects for ref, objects in found_here if ref not in in_use}
            if kind == "model":
                models = {ref for ref, objects in listed.items() if any(o.path == f"{ref}/{MANIFEST}" for o in objects)}
            looks = pool.map(lambda item: _of_artifact(store, item[0], old, item[1]), listed.items())
            for ref, seen in zip(listed, looks, strict=True):
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
        steps = _listed(store, pool, "runs", [run for run in runs if run not in training], CHECKPOINTS)
        aged = [(f, files) for f, files in steps if all(old(o.modified) for o in files)]
        spent_ones = pool.map(lambda one: _is_spent(store, one[0], models), aged)
        for (folder, files), spent_one in zip(aged, spent_ones, strict=True):
            # Asked once more before it goes: the model that makes a checkpoint useless may have been removed since.
            if spent_one and (dry_run or _is_spent(store, folder)):
                _remove(store, found, f"{folder}/  (checkpoint)", [(o.path, o.size) for o in files], dry_run)
        _collect_cache(store, found, in_use, old, dead, dry_run=dry_run)
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
    if embedded is not None:
        _collect_litter(found, embedded, lambda moment: old(moment, max(older_than, LITTER)), dry_run=dry_run)
    return found


def _collect_litter(found: Collected, folder: Path, old: Callable[[datetime], bool], *, dry_run: bool) -> None:
    """What is left of uploads that were cut off, or in which the server was ended: it writes each of them to a file
    that has a name of its own until all of it is there, and shows those to nobody who lists the bucket."""
    for place, _, names in os.walk(folder):  # folders may go meanwhile
        for path in (Path(place, name) for name in sorted(names) if name.startswith(SERVERS_OWN)):
            with contextlib.suppress(FileNotFoundError):  # it is whole now
                info = path.stat()
                if not old(datetime.fromtimestamp(info.st_mtime, UTC)):
                    continue
                if not dry_run:
                    path.unlink()
                found.lines.append(f"{path.relative_to(folder)}  (an upload that the server left)")
                found.size += info.st_size


def _parents(path: str) -> Iterator[str]:
    """The folders that a path lies in, as ``batch/ID/parts`` and ``batch/ID`` for ``batch/ID/parts/0``."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _listed(
    store: ArtifactStore, pool: ThreadPoolExecutor, under: str, names: list[str], inside: str = ""
) -> Iterator[tuple[str, list[ObjectInfo]]]:
    """The folders ``under/NAME``, or those in ``under/NAME/inside``, with their objects, by few requests.

    Not by one for each name, which takes a minute for ten thousand. Nor by one for all of them: servers give a
    thousand objects at a time, and the embedded one goes through all that were asked for whenever it is asked for the
    next thousand.
    """
    above = 2 + inside.count("/")
    depth = above + (inside != "")

    def look(start: str, those: list[str]) -> list[tuple[str, list[ObjectInfo]]]:
        wanted = {f"{under}/{name}/{inside}" for name in those}
        found: list[ObjectInfo] = []
        for number, info in enumerate(store.bucket.list(f"{under}/{start}")):
            if inside and number == BESIDE * len(those):  # most of it is not what is asked for
                found = [own for name in those for own in store.bucket.list(f"{under}/{name}/{inside}")]
                break
            if "/".join([*info.path.split("/")[:above], ""]) in wanted:
                found.append(info)
        return _folders(found, depth)

    for folders in pool.map(lambda group: look(*group), _starts(names)):
        yield from folders


def _starts(names: list[str], length: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Names by beginnings that each of them has one of: no more than ``TOGETHER`` have the same one."""
    if len(names) <= TOGETHER:
        if names:
            yield names[0][:length], names
        return
    for start, group in groupby(sorted(names), key=lambda name: name[: length + 1]):
        alike = list(group)
        if len(start) <= length:  # nothing follows: the name that the others go on from
            yield f"{start}/", alike
        else:
            yield from _starts(alike, length + 1)


def _folders(objects: Iterable[ObjectInfo], depth: int) -> list[tuple[str, list[ObjectInfo]]]:
    """Objects, in the order of their paths, by the folder that so many names of a path lead to."""
    inside = (o for o in objects if o.path.count("/") >= depth)
    return [(f, list(g)) for f, g in groupby(inside, key=lambda o: "/".join(o.path.split("/")[:depth]))]


def _collect_cache(
    store: ArtifactStore,
    found: Collected,
    in_use: set[str],
    old: Callable[[datetime], bool],
    dead: Callable[[datetime], bool],
    *,
    dry_run: bool,
) -> None:
    """Converted models that nobody can ask for any more, for the model is gone, and those that were never finished."""

    def useless(folder: str, objects: list[ObjectInfo]) -> bool:
        model = f"model/{folder.split('/')[2]}"
        if folder in in_use or model in in_use or not all(old(o.modified) for o in objects):
            return False
        finished = any(o.path == f"{folder}/{MANIFEST}" for o in objects)
        return not finished or store.bucket.head(f"{model}/{MANIFEST}") is None

    for folder, objects in _folders(store.bucket.list(CACHE), 4):
        if not useless(folder, objects):
            continue
        with _undisturbed(store, folder, dead, dry_run=dry_run) as alone:
            now = list(store.bucket.list(f"{folder}/")) if alone else []  # whoever came meanwhile may have made it
            if now and useless(folder, now):
                _remove(store, found, f"{folder}/  (converted)", [(o.path, o.size) for o in now], dry_run)


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


def _of_artifact(
    store: ArtifactStore, ref: str, old: Callable[[datetime], bool], objects: list[ObjectInfo] | None = None
) -> list[tuple[str, int]]:
    """What may go of an artefact's folder: what a manifest does not list, or all of it when there is none.

    ``objects``: all that lies in the folder, where that is known already.
    """
    objects = list(store.bucket.list(f"{ref}/")) if objects is None else objects
    if any(o.path == f"{ref}/{MANIFEST}" for o in objects):
        aged = any(old(o.modified) for o in objects if o.path != f"{ref}/{MANIFEST}")
        objects = [o for o in _strays(store, ref, objects) if old(o.modified)] if aged else []
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


def _is_spent(store: ArtifactStore, folder: str, models: set[str] | None = None) -> bool:
    """Whether nothing can be resumed from a checkpoint any more, or its model is there (among ``models``, if given)."""
    try:
        manifest = store.find(folder, quick=True)
    except DataError:
        return True  # the training passes it over, too
    if manifest is None:
        return True
    model = manifest.info.get("artifact")
    if models is not None:
        return model in models
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
        manifest = store.find(ref, quick=True)
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
