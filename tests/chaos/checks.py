"""What must hold after a round. Each check gives sentences on what does not."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cli.garbage import LITTER, collect
from jobs.artifacts import ArtifactStore, S3Settings
from jobs.leases import _process_start
from jobs.storage import Bucket
from tests.chaos.plan import Plan
from tests.chaos.world import BUCKET, KEY, SECRET, World, manifests

KINDS = ("source", "posts", "dataset", "model", "batch")
#: Exit codes that call a failure final. What the weather does passes by itself, so nothing may end in one of them.
FINAL = {64, 65, 78}
#: Files of a run's folder, beside checkpoints.
_RUN_FILES = re.compile(
    r"run\.json|status\.json|index\.html|driver/log\.txt|(scrape|preprocess|train|generate)/(shard-\d{5}/)?(progress\.json|log\.txt)"
)
#: A model's files that do not tell how long something took.
_LASTING = (".safetensors", "tokenizer.json", "style.json", "config.json")

Contents = dict[str, dict[str, str]]


def contents(bucket: Path) -> Contents:
    """All artefacts: digests of their files; a model's without those that hold times."""
    found: Contents = {}
    for folder, body in manifests(bucket):
        if body["kind"] in KINDS and folder.parent.parent == bucket:
            files = {f["path"]: f["sha256"] for f in body["files"]}
            if body["kind"] == "model":
                files = {p: d for p, d in files.items() if p.endswith(_LASTING)}
            found[f"{body['kind']}/{body['id']}"] = files
    return found


def same(found: Contents, wanted: Contents) -> Iterator[str]:
    """The artefacts are those of the undisturbed run, byte by byte."""
    for ref in sorted(set(found) ^ set(wanted)):
        yield f"{ref} is {'not there' if ref in wanted else 'there, and was not made by the undisturbed run'}"
    for ref in sorted(set(found) & set(wanted)):
        differing = sorted(k for k in found[ref].keys() | wanted[ref].keys() if found[ref].get(k) != wanted[ref].get(k))
        if differing:
            yield f"{ref} differs from the undisturbed run's in {', '.join(differing)}"


def whole(bucket: Path) -> Iterator[str]:
    """Every manifest's files are there, of the size and with the digest that it tells."""
    for folder, body in manifests(bucket):
        for entry in body["files"]:
            path = (bucket / entry["artifact"] if entry.get("artifact") else folder) / entry["path"]
            where = f"{folder.relative_to(bucket)} lists {entry['path']}"
            if not path.is_file():
                yield f"{where}, which is not there"
            elif path.stat().st_size != entry["size"]:
                yield f"{where} with {entry['size']} bytes, and it has {path.stat().st_size}"
            elif hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
                yield f"{where}, and its bytes are others"


def posts_once(bucket: Path) -> Iterator[str]:
    """No version of a post is there twice, and the counts are right."""
    for folder, body in manifests(bucket):
        if body["kind"] != "posts":
            continue
        seen: Counter[tuple[Any, ...]] = Counter()
        service = 0
        for entry in body["files"]:
            rows = pq.read_table(folder / entry["path"], columns=["channel", "id", "version", "service"]).to_pylist()
            seen.update((r["channel"], r["id"], r["version"]) for r in rows)
            service += sum(r["service"] is not None for r in rows)
        double = [key for key, count in seen.items() if count > 1]
        if double:
            yield f"{folder.name}: post {double[0]} is there {seen[double[0]]} times ({len(double)} posts are doubled)"
        if body["parent"] is None and body["counts"]["posts"] != len(seen) - service:
            yield f"{folder.name}: {body['counts']['posts']} posts by its manifest, {len(seen) - service} by its shards"


def told(world: World, plan: Plan) -> Iterator[str]:
    """Nothing that passes by itself was called final, and no internal error or traceback was shown."""
    texts: list[tuple[str, str, int | None]] = [
        (name, done.stdout + done.stderr, done.returncode) for name, done in world.said
    ]
    for project in world.projects:
        for job in sorted((project.folder / ".bugurt" / "jobs").glob("*/job.json")):
            code = None
            state = job.parent / "state.json"
            if state.is_file():
                code = json.loads(state.read_text(encoding="utf-8")).get("exit_code")
            logs = sorted(job.parent.glob("*.log"))
            said = "".join(f.read_text(encoding="utf-8", errors="replace") for f in logs)
            texts.append((f"{project.folder.name}: {job.parent.name}", said, code))
    for name, text, code in texts:
        if code in FINAL:
            yield f"{name} ended with {code}: {_last_error(text)}"
        for line in _TRACKER.sub("", text).splitlines():
            if "Traceback" in line or "internal error" in line:
                yield f"{name} said: {line[:600]}"
                break


#: Python's resource tracker, a process that holds nothing of ours: killed, it is started again by Python, and says so
#: in a traceback for each name that it was never told. The stage goes on and ends as it would.
_TRACKER = re.compile(
    r"^Traceback \(most recent call last\):\n  File \".*multiprocessing/resource_tracker\.py\", .*, in main\n"
    r"(?:    .*\n)+KeyError: '/mp-.*'$",
    re.MULTILINE,
)

#: What processes say about the weather, by what it is.
_WORDS = {
    "a full disk": re.compile(r"disk is full|No space left|cannot write state\.json|cannot start a process"),
    "waiting for another's lease": re.compile(r"waiting: .* is at work on the same thing"),
    "interrupted": re.compile(r"interrupted by"),
}


def words(world: World) -> Counter[str]:
    """How many lines of the Jobs' logs tell of what."""
    found: Counter[str] = Counter()
    for log in world.logs():
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            found.update(kind for kind, pattern in _WORDS.items() if pattern.search(line))
    return found


def _last_error(text: str) -> str:
    lines = [line for line in text.splitlines() if "error" in line.lower()]
    return (lines or text.splitlines() or [""])[-1][:400]


def tidy(world: World) -> Iterator[str]:
    """No temporary file is left, once somebody has cleaned up behind the killed."""
    for project in world.projects:
        project.ok("gc", "--older-than", "1")
    for project in world.projects:
        jobs = project.folder / ".bugurt" / "jobs"
        for left in [*jobs.glob(".*"), *(f for f in jobs.glob("*/tmp") if f.exists()), *jobs.glob("*/tmp/*/*")]:
            yield f"{left.relative_to(world.folder)} was left"
    for left in (world.folder / "tmp").iterdir():
        yield f"{left.relative_to(world.folder)} was left"


def reclaimed(world: World) -> Iterator[str]:
    """Nobody holds a lease; once some time has passed, ``gc`` leaves nothing but what a manifest vouches for."""
    for lease in sorted((world.bucket / "leases").rglob("*.json")):
        body = json.loads(lease.read_text(encoding="utf-8"))
        if _process_start(body["pid"]) == body["start"]:
            yield f"{lease.relative_to(world.bucket)} is held by process {body['pid']}, which lives"
    store = _store(world)
    collect(store, 0, dry_run=False)
    left = list(store.bucket.open_uploads())
    if left:
        yield f"{len(left)} uploads were left, the first of {left[0][0]}"
    world.server.stop()
    long_ago = time.time() - 2 * LITTER
    for path in world.bucket.rglob("*"):
        if path.is_file():
            os.utime(path, (long_ago, long_ago))
    world.server.start()
    collect(_store(world), 3600, dry_run=False, embedded=world.bucket)
    known = set()
    for folder, body in manifests(world.bucket):
        known.add(folder / "manifest.json")
        known |= {folder / e["path"] for e in body["files"] if not e.get("artifact")}
    for path in sorted(p for p in world.bucket.rglob("*") if p.is_file()):
        name = path.relative_to(world.bucket).as_posix()
        if name.startswith("runs/"):
            if not _RUN_FILES.fullmatch(name.split("/", 2)[2]):
                yield f"{name} is left"
        elif not name.startswith(("telegram/entities/", "submitted/")) and (path not in known or "/parts/" in name):
            yield f"{name} is left"


def _store(world: World) -> ArtifactStore:
    settings = S3Settings(
        BUCKET, endpoint=world.server.endpoint, region="us-east-1", access_key_id=KEY, secret_access_key=SECRET
    )
    return ArtifactStore(Bucket(settings), show_progress=False)
