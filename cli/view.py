"""A run as people look at it: the stages with state, progress, times, and why something waits or failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cli.clusters.base import Cluster, JobState, JobStatus, job_name
from cli.quantities import duration
from cli.runs import (
    RunRecord,
    RunState,
    RunStatus,
    StageStatus,
    load_progress,
    load_record,
    load_shards_progress,
    load_status,
)
from jobs.artifacts import ArtifactStore
from jobs.specs import ScrapeSpec


@dataclass(frozen=True)
class StageRow:
    """One step's line: a stage, or one of the channels that are scraped, which ``source`` tells apart then.

    ``left``: seconds, as the stage estimates them; ``shards``: done of all; ``share``: of its work that is done, from 0
    to 1, where a running stage knows how much there is.
    """

    stage: str
    state: str
    artifact: str | None
    progress: str
    message: str
    attempts: int
    shards: str
    seconds: float | None
    left: float | None
    source: str = ""
    share: float | None = None


@dataclass(frozen=True)
class RunView:
    """A run with the rows of its stages."""

    record: RunRecord
    state: RunState
    message: str
    exit_code: int | None
    rows: tuple[StageRow, ...]
    driver: JobStatus | None

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "run": self.record.run,
            "state": self.state,
            "message": self.message,
            "exit_code": self.exit_code,
            "attempt": self.record.attempt,
            "source": self.record.source,
            "owner": self.record.owner,
            "created": self.record.created.isoformat(),
            "submitted": self.record.submitted.isoformat(),
            "stages": [row.__dict__ for row in self.rows],
        }


def driver_job(record: RunRecord) -> str:
    """The name of a run's driver Job."""
    return job_name(record.run, "driver", None, record.attempt)


def jobs_by_step(record: RunRecord, jobs: Iterable[JobStatus]) -> dict[str, JobStatus]:
    """The Jobs of the current attempt by the step that they do; ``driver`` is the driver's."""
    names = {}
    if record.spec.also:  # several Jobs of one stage
        names = {
            job_name(record.run, spec.stage, spec.ref(), record.attempt): step
            for step, spec in record.spec.steps().items()
        }
    return {names.get(j.name, j.component): j for j in jobs if j.attempt == record.attempt}


def view(store: ArtifactStore, cluster: Cluster, run: str) -> RunView:
    """Look at a run. Raises NotFoundError when there is none of this name."""
    record = load_record(store, run)
    status = load_status(store, run)
    current = status.attempt == record.attempt
    found = cluster.list(run)
    jobs = jobs_by_step(record, found)
    state, message = quick_state(record, status, {j.name: j for j in found})
    driver = jobs.get("driver")
    exit_code = status.exit_code if current else None
    if exit_code is None and driver is not None:
        exit_code = driver.exit_code
    rows = tuple(
        _row(store, record, step, status.stages.get(step, StageStatus()) if current else StageStatus(), jobs.get(step))
        for step in record.spec.steps()
    )
    return RunView(record, state, message, exit_code, rows, driver)


def quick_state(record: RunRecord, status: RunStatus, jobs: Mapping[str, JobStatus]) -> tuple[RunState, str]:
    """State and sentence of a run; what its status calls unfinished is judged by its driver among ``jobs``."""
    current = status.attempt == record.attempt
    if current and status.state not in ("waiting", "running"):
        return status.state, status.message
    state: RunState = status.state if current else "waiting"
    driver = jobs.get(driver_job(record))
    if driver is None:
        return state, "its driver is gone; `bugurt rerun` it to go on"
    if driver.state is JobState.FAILED:
        return "failed", driver.reason or "its driver failed"
    if driver.state in (JobState.PENDING, JobState.SUSPENDED):
        return "waiting", driver.reason
    return state, ""


def _row(store: ArtifactStore, record: RunRecord, step: str, status: StageStatus, job: JobStatus | None) -> StageRow:
    spec = record.spec.steps()[step]
    live = status.state in ("running", "waiting") and status.job is not None
    shards = getattr(spec, "shards", 1)
    reports = _progress(store, record.run, step, shards) if live or status.state == "failed" else []
    message = status.message
    if live and job is not None and job.reason:
        message = job.reason
    if live and not message:
        message = str(next((r["message"] for r in reports if r.get("state") == "running" and r.get("message")), ""))
    lefts = [float(v) for r in reports if isinstance(v := r.get("metrics", {}).get("seconds_left"), int | float)]
    end = status.finished or datetime.now(UTC)
    # One that has ended is running until the driver has seen its end; it does not wait for anything any more.
    running = live and job is not None and job.state not in (JobState.PENDING, JobState.SUSPENDED)
    return StageRow(
        stage=step,
        state="running" if running else status.state,
        artifact=status.artifact,
        progress=_describe(reports) if live else ", ".join(f"{k} {v:,}" for k, v in list(status.counts.items())[:3]),
        message=message,
        attempts=(job.restarts + 1) if job is not None else 0,
        shards=f"{job.shards_done}/{job.shards}" if job is not None and job.shards > 1 else "",
        seconds=(end - status.started).total_seconds() if status.started and status.state != "found" else None,
        left=max(lefts) if lefts else None,
        source=spec.channel or spec.source or "" if isinstance(spec, ScrapeSpec) and record.spec.also else "",
        share=_share(reports) if running else None,
    )


def _share(reports: Iterable[dict[str, Any]]) -> float | None:
    """The part of the work that is done, over all shards that say so."""
    pairs = [(r["done"], r["total"]) for r in reports if isinstance(r.get("done"), int | float) and r.get("total")]
    total = sum(t for _, t in pairs)
    return min(1.0, max(0.0, sum(d for d, _ in pairs) / total)) if total else None


def _progress(store: ArtifactStore, run: str, step: str, shards: int) -> list[dict[str, Any]]:
    return [load_progress(store, run, step)] if shards == 1 else load_shards_progress(store, run, step, shards)


#: Metrics that are told by their unit, and those that are not told in a line (the first one has a column).
_UNITS = {
    "bits_per_character": "bits/character",
    "memory_mib": "MiB",
    "posts_per_second": "posts/s",
    "tokens_per_second": "tokens/s",
}
_UNSHOWN = {"seconds_left", "learning_rate", "best_step"}


def _describe(reports: Iterable[dict[str, Any]]) -> str:
    """``12 of 100 posts, loss 2.31``: sums over shards, and the newest metrics."""
    found = [r for r in reports if r]
    parts = []
    told = ""  # the metric that says once more what the rate says
    done = [r["done"] for r in found if isinstance(r.get("done"), int | float)]
    if done:
        totals = [r["total"] for r in found if isinstance(r.get("total"), int | float)]
        unit = next((str(r["unit"]) for r in found if r.get("unit")), "")
        whole = f" of {sum(totals):,.0f}" if len(totals) == len(done) else ""
        parts.append(f"{sum(done):,.0f}{whole} {unit}".strip())
        rates = [r["per_second"] for r in found if isinstance(r.get("per_second"), int | float)]
        if rates:
            parts.append(f"{_number(sum(rates))} {unit}/s")
            told = f"{unit}_per_second"
    metrics: dict[str, Any] = {}
    for report in found:
        metrics.update(report.get("metrics") or {})
    for name, value in metrics.items():
        if name not in _UNSHOWN and name != told and isinstance(value, int | float):
            said = _UNITS.get(name)
            parts.append(f"{_number(value)} {said}" if said else f"{name.replace('_', ' ')} {_number(value)}")
    return ", ".join(parts[:8])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def row_cells(row: StageRow) -> tuple[str, ...]:
    """The cells of ``status``'s table."""
    return (
        f"{row.stage}  {row.source}" if row.source else row.stage,
        row.state,
        row.shards or "-",
        str(row.attempts or "-"),
        duration(row.seconds) if row.seconds is not None else "-",
        duration(row.left) if row.left is not None else "-",
        row.progress or "-",
        row.artifact or "-",
    )


ROW_HEAD = ("stage", "state", "shards", "tries", "time", "left", "progress", "artifact")
