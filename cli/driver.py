"""The pipeline loop: looks at what is there, does the next thing, looks again.

All state is Jobs and bucket, so the driver can be killed after any call and started again. For each stage: if the
artefact is there, go on; else create its Job by its deterministic name (or adopt it) and wait for its end. It runs
as ``python -m cli.driver --run RUN``: on one machine as a process, in a cluster as a Job of its own.

A run of several channels has a scrape for each. They take turns, as the Telegram session is used from one place at a
time; one that fails for good does not keep the others from being read.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from datetime import UTC, datetime
from types import FrameType
from typing import NoReturn

from cli.clusters.base import Cluster, JobRequest, JobState, JobStatus, job_name
from cli.redaction import hide_secrets
from cli.run_page import RunPage
from cli.runs import (
    RunRecord,
    RunState,
    RunStatus,
    StageStatus,
    load_progress,
    load_record,
    load_status,
    save_status,
    step_env,
    with_input,
)
from jobs import __version__
from jobs.artifacts import ArtifactStore, Manifest
from jobs.specs import FATAL_CODES, AnyStageSpec, BugurtError, DataError, ExitCode

log = logging.getLogger("cli.driver")
MAX_REVIVALS = 5  # times that a Job which lost its supervisor, or was deleted, is created again


class StageFailed(BugurtError):  # noqa: N818  # it reads as what happened
    """A stage's Job failed for good; carries its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Driver:
    """Drives one run to its end."""

    def __init__(self, store: ArtifactStore, cluster: Cluster, record: RunRecord, *, owner: str | None = None) -> None:
        """``owner``: the name of the Job that this driver is, which its Jobs belong to."""
        self.store = store
        self.cluster = cluster
        self.record = record
        self.owner = owner
        self.page = RunPage(store, record)
        before = load_status(store, record.run)
        self.status = RunStatus(run=record.run, state="running", attempt=record.attempt)
        for step in record.spec.steps():
            kept = before.stages.get(step)
            same = kept is not None and before.attempt == record.attempt
            self.status.stages[step] = kept if same and kept else StageStatus()

    def run(self) -> None:
        """All stages. Raises StageFailed, or what the bucket and the cluster raise."""
        ref: str | None = None
        failed: list[StageFailed] = []
        for step, spec in self.record.spec.steps().items():
            try:
                ref = self.step(step, with_input(spec, ref))
            except StageFailed as error:
                if not self.record.spec.also or error.code not in FATAL_CODES:
                    raise
                log.error("%s", error)
                failed.append(error)
        if failed:
            more = f"; and {len(failed) - 1} more channels" if len(failed) > 1 else ""
            raise StageFailed(f"{failed[0]}{more}", failed[0].code)
        self.end("succeeded", "", 0)

    def step(self, step: str, spec: AnyStageSpec) -> str:
        """See to it that a stage's artefact is there; returns its reference."""
        status = self.status.stages[step]
        wanted = spec.ref()
        for _ in range(MAX_REVIVALS + 1):
            manifest = self.find(step, spec, wanted)
            if manifest is not None:
                return self.settle(step, status, manifest)
            job = self.create(step, spec, wanted)
            self.note(step, status, job)
            for job in self.cluster.watch(job.name):  # noqa: B020  # the newest word counts
                self.note(step, status, job)
            if job.state is JobState.FAILED:
                self.fail(step, status, job)
            # Succeeded: the artefact is there now. Gone or without a supervisor: ask again.
        manifest = self.find(step, spec, wanted)
        if manifest is not None:
            return self.settle(step, status, manifest)
        message = f"the Job of {step} ended without its artefact {wanted}"
        status.state, status.message = "failed", message
        raise StageFailed(message, int(ExitCode.INTERNAL))

    def find(self, step: str, spec: AnyStageSpec, wanted: str) -> Manifest | None:
        """The artefact if it is there: under its own id, or under the one that the stage answered with."""
        try:
            manifest = self.store.find(wanted)
        except DataError:
            if not self.record.force:
                raise
            manifest = None  # the stage makes it again
        if manifest is None and spec.stage == "scrape":
            # A scrape that finds nothing new commits nothing: its answer is the artefact it would have added to.
            progress = load_progress(self.store, self.record.run, step)
            answer = progress.get("artifact")
            if progress.get("state") == "succeeded" and isinstance(answer, str) and answer != wanted:
                return self.store.find(answer)
        if manifest is not None and self.record.force and manifest.run != self.record.run:
            return None
        return manifest

    def create(self, step: str, spec: AnyStageSpec, wanted: str) -> JobStatus:
        """Ask for the Job, or adopt it."""
        request = JobRequest(
            name=job_name(self.record.run, spec.stage, wanted, self.record.attempt),
            run=self.record.run,
            component=spec.stage,
            spec=spec.model_dump(mode="json"),
            attempt=self.record.attempt,
            shards=getattr(spec, "shards", 1),
            force=self.record.force,
            artifact=wanted,
            owner=self.owner,
            env=step_env(step, spec),
        )
        return self.cluster.create(request)

    def note(self, step: str, status: StageStatus, job: JobStatus) -> None:
        """Write down how a stage stands, when that has changed."""
        waiting = job.state in (JobState.PENDING, JobState.SUSPENDED)
        message = job.reason if waiting or job.reason else ""
        new = ("waiting" if waiting else "running", job.name, message)
        if (status.state, status.job, status.message) != new and not job.state.finished:
            status.state, status.job, status.message = "waiting" if waiting else "running", job.name, message
            status.started = status.started or datetime.now(UTC)
            log.info("%s: %s%s", step, job.state.value, f" ({message})" if message else "")
            self.save()

    def settle(self, step: str, status: StageStatus, manifest: Manifest) -> str:
        """Record a stage whose artefact is there."""
        ours = manifest.run == self.record.run and status.state != "found"
        status.state = "succeeded" if ours else "found"
        status.artifact, status.made_by, status.exit_code = manifest.ref, manifest.run, 0
        status.counts, status.message = dict(manifest.counts), ""
        status.started, status.finished = manifest.started, manifest.created
        log.info("%s: %s %s", step, "made" if ours else f"found, made by run {manifest.run}:", manifest.ref)
        self.save(page=manifest)
        if status.job:
            counts = ", ".join(f"{k}={v}" for k, v in manifest.counts.items())
            self.cluster.annotate(status.job, {"artifact": manifest.ref, "counts": counts})
        return manifest.ref

    def fail(self, step: str, status: StageStatus, job: JobStatus) -> NoReturn:
        """Record a failed stage with its own sentence, and raise StageFailed."""
        progress = load_progress(self.store, self.record.run, step)
        for shard in range(job.shards if job.shards > 1 else 0):
            if progress.get("state") in ("failed", "interrupted"):
                break
            progress = load_progress(self.store, self.record.run, step, shard)
        said = progress.get("message") if progress.get("state") in ("failed", "interrupted") else None
        code = job.exit_code or progress.get("exit_code") or int(ExitCode.INTERNAL)
        status.state, status.finished = "failed", datetime.now(UTC)
        status.message, status.exit_code = str(said or job.reason or "the Job failed"), int(code)
        raise StageFailed(f"{step}: {status.message}", int(code))

    def save(self, *, page: Manifest | bool = False) -> None:
        """Write ``status.json``, unless a later attempt has: its driver may be that of another machine.

        ``page``: write the run's page anew, too; the manifest of what is new in it spares reading that again.
        """
        if load_status(self.store, self.record.run).attempt > self.status.attempt:
            return
        save_status(self.store, self.status)
        if isinstance(page, Manifest):
            self.page.know(page)
        if page:
            self.page.publish(self.status)

    def end(self, state: RunState, message: str, exit_code: int) -> None:
        """Write down how the run ended."""
        self.status.state, self.status.message, self.status.exit_code = state, message, exit_code
        self.save(page=True)


def drive(store: ArtifactStore, cluster: Cluster, run: str, *, owner: str | None = None) -> int:
    """Drive a run to its end and return the exit code: 0; 64, 65 or 78 of the stage that failed; else 70."""
    record = load_record(store, run)
    driver = Driver(store, cluster, record, owner=owner)
    driver.save()
    try:
        driver.run()
    except StageFailed as error:
        driver.end("failed", str(error), error.code)
        log.error("%s", error)
        # The stage has had its tries: a driver that were started again would only find the failed Job.
        return error.code if error.code in FATAL_CODES else int(ExitCode.INTERNAL)
    except BugurtError as error:
        if error.exit_code in FATAL_CODES:  # a driver that is started again would meet the same
            driver.end("failed", str(error), int(error.exit_code))
        raise
    log.info("the run is done")
    return 0


class _BucketLog(logging.Handler):
    """Keeps the driver's few lines in ``runs/RUN/driver/log.txt``."""

    def __init__(self, store: ArtifactStore, run: str) -> None:
        super().__init__()
        self._store, self._path = store, f"runs/{run}/driver/log.txt"
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._lines.append(f"{stamp} {record.levelname:<7} {record.getMessage()}\n")
        try:
            self._store.bucket.put_bytes(self._path, "".join(self._lines).encode("utf-8", "replace"))
        except BugurtError as error:
            print(f"could not keep the log: {error}", file=sys.stderr)  # noqa: T201


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": stamp, "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(line, ensure_ascii=False)


def main() -> NoReturn:
    """The driver as a process: ``python -m cli.driver --run RUN``."""
    parser = argparse.ArgumentParser(prog="python -m cli.driver", description="Drive a run to its end.")
    parser.add_argument("--run", default=os.environ.get("BUGURT_RUN"), help="the run (default: BUGURT_RUN)")
    options = parser.parse_args()
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(_Json())
    logging.getLogger("cli").addHandler(stream)
    logging.getLogger("cli").setLevel(logging.INFO)
    hide_secrets()

    came: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        came.append(number)
        _ignore_signals()  # a second one, as from a supervisor that dies, must not cut the end short
        # Not by print: the signal may have come in the middle of one, and that raises a RuntimeError.
        os.write(2, f"interrupted by {signal.Signals(number).name}; the Jobs go on\n".encode())
        sys.exit(int(ExitCode.INTERRUPTED))  # no Exception: nothing on the way may swallow it

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    try:
        if not options.run:
            parser.error("--run is needed")
        _work(options.run)
    except Exception as error:
        if not came:  # else it is what Python made of the end: a class that is being made makes a RuntimeError of it
            _tell(error)
        sys.exit(int(ExitCode.INTERRUPTED if came else getattr(error, "exit_code", 1)))
    finally:
        _ignore_signals()  # the interpreter's own end shows a traceback of whatever a signal raises in it


def _ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _work(run: str) -> NoReturn:
    """Drive the run, and exit with the code that says how it ended. Raises whatever keeps it from that."""
    log.info("bugurt %s, driver of run %s", __version__, run)  # before the heavy packages are imported
    from cli.places import open_cluster, open_store
    from cli.settings import load

    settings = load()
    store = open_store(settings, making=True)
    logging.getLogger("cli").addHandler(_BucketLog(store, run))
    record = load_record(store, run)
    owner = job_name(record.run, "driver", None, record.attempt)
    sys.exit(drive(store, open_cluster(settings), run, owner=owner))


def _tell(error: Exception) -> None:
    if isinstance(error, BugurtError):
        log.error("%s", error)
    else:  # what it was goes to the log, and the driver is started again
        log.error("internal error, please report it: %s: %s", type(error).__name__, " ".join(str(error).split()))


if __name__ == "__main__":
    main()
