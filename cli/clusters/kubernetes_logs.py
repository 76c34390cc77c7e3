"""Logs of a Job's pods: all shards in one stream, by their time or as they come.

Lines are asked for with their timestamps, by which they are put in order and by which a broken stream is taken up
again where it stopped; the timestamps themselves are not shown.
"""

from __future__ import annotations

import heapq
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cli.clusters.base import LogLine
from cli.clusters.kubernetes_api import Api, ApiError, Stream, Unreachable
from cli.clusters.kubernetes_objects import CONTAINER
from cli.clusters.kubernetes_status import job_state
from jobs.specs import BugurtError

Object = dict[str, Any]
INDEX = "batch.kubernetes.io/job-completion-index"
QUIET = 300.0  # seconds without a line after which a followed log is opened anew


def shard_of(pod: Object) -> int | None:
    """The index of an Indexed Job's pod."""
    meta = pod["metadata"]
    text = (meta.get("labels") or {}).get(INDEX) or (meta.get("annotations") or {}).get(INDEX)
    return int(text) if text is not None and text.isdigit() else None


def has_log(pod: Object) -> bool:
    """Whether the container has begun, and so has a log."""
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        if status.get("name") == CONTAINER:
            state = status.get("state") or {}
            return "running" in state or "terminated" in state
    return False


def runs(pod: Object) -> bool:
    """Whether the pod has not ended yet."""
    return (pod.get("status") or {}).get("phase") in ("Pending", "Running")


class _PodLog:
    """One pod's log, read once through, across broken connections."""

    def __init__(
        self, api: Api, core: str, pod: Object, *, follow: bool, since: float | None, tail: int | None
    ) -> None:
        self.name = str(pod["metadata"]["name"])
        self.shard = shard_of(pod)
        self._api = api
        self._path = f"{core}/pods/{self.name}/log"
        self._query = {"container": CONTAINER, "timestamps": "true"}
        if follow:
            self._query["follow"] = "true"
        if since is not None:
            self._query["sinceSeconds"] = str(max(1, int(since)))
        if tail is not None:
            self._query["tailLines"] = str(tail)
        self._last = ""
        self._last_count = 0  # lines seen with the newest timestamp
        self._stream: Stream | None = None
        self._closed = False
        self.given_up = False  # and has said so

    def close(self) -> None:
        """End the reading, also from another thread."""
        self._closed = True
        if self._stream is not None:
            self._stream.close()

    def read(self, *, again: int = 5) -> Iterator[tuple[str, LogLine]]:
        """Timestamps and lines. After ``again`` broken connections in a row it gives up with a line that says so."""
        failures = 0
        while not self._closed:
            before = (self._last, self._last_count)
            try:
                yield from self._once()
                return
            except ApiError as error:
                if error.status in (400, 404):
                    return  # not begun, or gone with its pod: the bucket has what was shipped
                if error.status not in (429, 500, 502, 503, 504):
                    self.given_up = True
                    yield (
                        self._last,
                        LogLine(f"(the log of pod {self.name} cannot be read: {error.message})", self.shard),
                    )
                    return
                trouble: Exception = error
            except Unreachable as error:
                trouble = error
            if self._closed:
                return
            failures = failures + 1 if (self._last, self._last_count) == before else 1
            if failures > again:
                self.given_up = True
                yield self._last, LogLine(f"(the log of pod {self.name} breaks off: {trouble})", self.shard)
                return
            time.sleep(min(5.0, 0.2 * 2**failures) * random.uniform(0.75, 1.25))  # noqa: S311

    def _once(self) -> Iterator[tuple[str, LogLine]]:
        query, skip_until, skip = dict(self._query), self._last, self._last_count
        if skip_until:
            query.pop("sinceSeconds", None)
            query.pop("tailLines", None)
            query["sinceTime"] = skip_until
        seen = 0
        stream = self._api.stream(self._path, query=query, read_timeout=QUIET if "follow" in query else 60.0)
        self._stream = stream
        try:
            for raw in stream:
                stamp, _, text = raw.decode("utf-8", "replace").rstrip("\r").partition(" ")
                if skip_until and stamp < skip_until:
                    continue
                if stamp == skip_until and seen < skip:
                    seen += 1
                    continue
                self._last_count = self._last_count + 1 if stamp == self._last else 1
                self._last = stamp
                yield stamp, LogLine(text, self.shard)
        finally:
            stream.close()


def read_logs(
    api: Api, core: str, pods: Iterable[Object], *, since: float | None, tail: int | None
) -> Iterator[LogLine]:
    """What there is, all pods by time. ``tail``: the last lines of all together."""
    logs = [_PodLog(api, core, p, follow=False, since=since, tail=tail) for p in pods if has_log(p)]
    try:
        merged = (line for _, line in heapq.merge(*(log.read() for log in logs), key=lambda pair: pair[0]))
        yield from merged if tail is None else deque(merged, maxlen=tail)
    finally:
        for log in logs:
            log.close()


class _End(Exception):  # noqa: N818  # no error
    pass


def follow_logs(
    api: Api,
    core: str,
    pods: Callable[[], list[Object]],
    versions: Callable[[], Iterator[Object]],
    *,
    since: float | None,
    tail: int | None,
) -> Iterator[LogLine]:
    """Lines as they come, of pods that are there and of those that come, until the Job has ended or is gone.

    ``versions`` gives the Job's object at each change (and every few seconds while it waits): each time the pods are
    looked at again. A thread reads each log.
    """
    lines: queue.Queue[LogLine | BaseException] = queue.Queue(maxsize=10_000)
    readers: dict[str, tuple[_PodLog, threading.Thread]] = {}
    stopped = threading.Event()

    def put(item: LogLine | BaseException) -> None:
        while not stopped.is_set():
            try:
                lines.put(item, timeout=1.0)
                return
            except queue.Full:
                continue  # the reader of this generator is slow, or has gone: then `stopped` is set

    def pump(log: _PodLog) -> None:
        for _, line in log.read():
            put(line)

    def look() -> None:
        for pod in pods():
            uid = str(pod["metadata"].get("uid") or pod["metadata"]["name"])
            log, before = readers.get(uid, (None, None))
            # A log may end before its pod: when its node's kubelet or the API server is started again.
            going = before is not None and (before.is_alive() or not runs(pod))
            if going or not has_log(pod) or (log is not None and log.given_up):
                continue
            log = log or _PodLog(api, core, pod, follow=True, since=since, tail=tail)
            thread = threading.Thread(target=pump, args=(log,), name=f"log {log.name}", daemon=True)
            readers[uid] = (log, thread)
            thread.start()

    def scout() -> None:
        end: BaseException = _End()
        try:
            for job in versions():
                if stopped.is_set():
                    return
                look()
                if job_state(job).finished:
                    break
            look()
            for _, thread in list(readers.values()):
                thread.join()
        except BugurtError as error:
            end = error
        put(end)

    threading.Thread(target=scout, name="log scout", daemon=True).start()
    try:
        while True:
            item = lines.get()
            if isinstance(item, _End):
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        for log, _ in list(readers.values()):
            log.close()
