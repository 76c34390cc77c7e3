"""Lines of a run's logs: from the Jobs while they are there, else from what the stages left in the bucket."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from cli.clusters.base import Cluster, LogLine
from cli.runs import RunRecord
from cli.view import driver_job, jobs_by_step
from jobs.artifacts import ArtifactStore
from jobs.specs import BugurtError, NotFoundError


def _prefix(part: str, line: LogLine, *, many: bool) -> str:
    shard = f"[{line.shard}]" if line.shard is not None else ""
    return f"{part}{shard}  {line.text}" if many or shard else line.text


def kept_lines(
    store: ArtifactStore,
    cluster: Cluster,
    record: RunRecord,
    parts: Sequence[str],
    *,
    since: float | None,
    tail: int | None,
) -> Iterator[str]:
    """All lines up to now, part by part."""
    jobs = {step: job.name for step, job in jobs_by_step(record, cluster.list(record.run)).items()}
    for part in parts:
        lines = list(cluster.logs(jobs[part], since=since, tail=tail)) if part in jobs else []
        if not lines:
            lines = _from_bucket(store, record.run, part, since)
            lines = lines[-tail:] if tail is not None else lines
        for line in lines:
            yield _prefix(part, line, many=len(parts) > 1)


def _from_bucket(store: ArtifactStore, run: str, part: str, since: float | None) -> list[LogLine]:
    """What the stage shipped: one log, or one for each shard."""
    found: list[LogLine] = []
    for info in store.bucket.list(f"runs/{run}/{part}/"):
        if not info.path.endswith("/log.txt"):
            continue
        folder = info.path.split("/")[-2]
        shard = int(folder.removeprefix("shard-")) if folder.startswith("shard-") else None
        try:
            text = store.bucket.get_bytes(info.path).decode("utf-8", "replace")
        except NotFoundError:
            continue
        found += [LogLine(line, shard) for line in text.splitlines()]
    if since is not None:
        found = [line for line in found if _newer(line.text, since)]
    return sorted(found, key=lambda line: line.text.split(" ", 1)[0]) if len({x.shard for x in found}) > 1 else found


def _newer(text: str, seconds: float) -> bool:
    try:
        stamp = datetime.fromisoformat(text.split(" ", 1)[0])
    except ValueError:
        return True
    return (datetime.now(UTC) - stamp).total_seconds() <= seconds


def live_lines(
    store: ArtifactStore,
    cluster: Cluster,
    record: RunRecord,
    parts: Sequence[str],
    *,
    since: float | None,
    tail: int | None,
) -> Iterator[str]:
    """Lines as they arrive, from each Job of the run as it comes to be, until the driver's Job has ended."""
    lines: queue.Queue[str | BugurtError | None] = queue.Queue()
    started: set[str] = set()
    threads: list[threading.Thread] = []

    def read(part: str, job: str) -> None:
        try:
            for line in cluster.logs(job, follow=True, since=since, tail=tail):
                lines.put(_prefix(part, line, many=len(parts) > 1))
        except BugurtError as error:
            lines.put(error)

    def attach() -> None:
        for step, job in jobs_by_step(record, cluster.list(record.run)).items():
            if step in parts and job.name not in started:
                started.add(job.name)
                thread = threading.Thread(target=read, args=(step, job.name), daemon=True)
                thread.start()
                threads.append(thread)

    def run() -> None:
        ended = threading.Event()

        def watch() -> None:
            try:
                for _ in cluster.watch(driver_job(record)):
                    pass
            except BugurtError as error:
                lines.put(error)
            ended.set()

        threading.Thread(target=watch, daemon=True).start()
        try:
            while True:
                last = ended.is_set()
                attach()
                if last:
                    break
                ended.wait(1.0)  # new Jobs of the run are looked for once a second
            for thread in threads:
                thread.join()
        except BugurtError as error:
            lines.put(error)
        lines.put(None)

    threading.Thread(target=run, daemon=True).start()
    while (item := lines.get()) is not None:
        if isinstance(item, BugurtError):
            raise item
        yield item
    if not started:
        yield from kept_lines(store, cluster, record, parts, since=since, tail=tail)
