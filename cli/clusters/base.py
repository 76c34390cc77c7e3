"""What the driver and the commands need of a place where stages run: the ``Cluster`` protocol.

``cli.clusters.local`` implements it with processes on this machine, ``cli.clusters.kubernetes`` with Jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Protocol

from jobs.specs import StageName

Component = StageName | Literal["driver"]


class JobState(StrEnum):
    """Where a Job stands. ``suspended``: a queue holds it back; ``pending``: nothing of it runs yet."""

    PENDING = "pending"
    SUSPENDED = "suspended"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"

    @property
    def finished(self) -> bool:
        """Whether it will not change any more."""
        return self in (JobState.SUCCEEDED, JobState.FAILED)


@dataclass(frozen=True)
class JobRequest:
    """One Job to be created. The same request has the same name, so asking twice makes one Job.

    ``spec`` goes into ``BUGURT_SPEC``; the driver's is ``{"run": NAME}``. ``env`` holds no secrets. ``artifact``
    is the reference of what the Job will make.
    """

    name: str
    run: str
    component: Component
    spec: dict[str, Any]
    attempt: int = 1
    shards: int = 1
    force: bool = False
    artifact: str | None = None
    owner: str | None = None
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JobStatus:
    """A Job as it is now. ``reason``: one sentence on why it waits or failed, or empty.

    ``exit_code``: of the process that decided a failure, where it is known. ``restarts``: processes or pods that
    ended before their work was done. ``shards_done`` and ``shards_failed`` count finished indexes.
    """

    name: str
    run: str
    component: str
    state: JobState
    reason: str = ""
    exit_code: int | None = None
    attempt: int = 1
    restarts: int = 0
    shards: int = 1
    shards_done: int = 0
    shards_failed: int = 0
    active: int = 0
    created: datetime | None = None
    started: datetime | None = None
    finished: datetime | None = None


@dataclass(frozen=True)
class LogLine:
    """A line of a Job's log; ``shard`` for Indexed Jobs."""

    text: str
    shard: int | None = None


class Cluster(Protocol):
    """A place where Jobs run. Methods raise ConfigError (no access) or TemporaryError (out of reach)."""

    kind: str

    def create(self, request: JobRequest) -> JobStatus:
        """Create the Job, or adopt the one that has this name already (and see to it that it goes on)."""
        ...

    def render(self, request: JobRequest) -> list[dict[str, Any]]:
        """What ``create`` would send, as plain dicts that serialise to YAML; nothing is sent."""
        ...

    def get(self, name: str) -> JobStatus | None:
        """The Job, or None: those of another bucket or prefix are not told, where several share the place."""
        ...

    def list(self, run: str | None = None) -> list[JobStatus]:
        """All Jobs of bugurt here, or of one run; oldest first."""
        ...

    def watch(self, name: str) -> Iterator[JobStatus]:
        """The Job now and at each change that can be told; ends after a finished state, or when it is gone."""
        ...

    def delete(self, name: str) -> None:
        """Stop the Job (SIGTERM, its grace period, SIGKILL) and remove it; no error when ``get`` tells of none."""
        ...

    def annotate(self, name: str, notes: dict[str, str]) -> None:
        """Leave results (artefact, counts) on the Job for people to read; no error when there is none."""
        ...

    def logs(
        self, name: str, *, follow: bool = False, since: float | None = None, tail: int | None = None
    ) -> Iterator[LogLine]:
        """Lines of the Job's processes that still have a log here. ``since``: seconds back."""
        ...


def job_name(run: str, component: str, ref: str | None, attempt: int) -> str:
    """The deterministic name ``RUN-STAGE-SPEC8``, with a suffix from the second attempt on.

    At most 31 + 11 + 9 + 4 characters, which leaves room for the index in a pod's host name (63).
    """
    parts = [run, component]
    if ref is not None:
        parts.append(ref.rpartition("/")[2][:8])
    if attempt > 1:
        parts.append(str(attempt))
    return "-".join(parts)
