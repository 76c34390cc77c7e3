"""One machine as a cluster: each Job is a folder below ``.bugurt/jobs`` and a supervisor process.

Stages run as subprocesses of exactly the command that their container has. A Job outlives the terminal that
submitted it. Whether it runs is told by a lock that its supervisor holds, never by a process number.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cli.clusters.base import JobRequest, JobState, JobStatus, LogLine
from cli.clusters.supervisor import ROOM, left_behind
from cli.settings import Settings
from jobs.specs import FATAL_CODES, ConfigError, ExitCode, TemporaryError, load_json

#: Times that a process of a stage is started again, and seconds that it has after SIGTERM: as in the Job templates.
RETRIES = {"scrape": 3, "preprocess": 2, "train": 4, "generate": 2, "driver": 3}
GRACE = {"scrape": 60, "preprocess": 30, "train": 300, "generate": 60, "driver": 10}
FOLLOW_INTERVAL = 0.3  # seconds between looks at a growing log file


class LocalCluster:
    """Jobs as processes of this machine; see ``cli.clusters.base.Cluster``."""

    kind = "local"

    def __init__(
        self,
        folder: Path,
        *,
        cwd: Path,
        s3_env: Callable[[], dict[str, str]],
        telegram_env: Callable[[], dict[str, str]] = dict,
        parallelism: int | None = None,
    ) -> None:
        """``folder``: where the Jobs' folders lie. ``s3_env`` and ``telegram_env`` give a stage its secrets."""
        self.folder = folder
        self._cwd = cwd
        self._s3_env = s3_env
        self._telegram_env = telegram_env
        self._parallelism = parallelism or max(1, os.cpu_count() or 1)

    @classmethod
    def from_settings(cls, settings: Settings, s3_env: Callable[[], dict[str, str]]) -> LocalCluster:
        """The cluster of the folder that holds ``bugurt.toml``."""

        def telegram_env() -> dict[str, str]:
            from cli.telegram_file import load_telegram_env

            return load_telegram_env()

        return cls(
            settings.state / "jobs",
            cwd=settings.root,
            s3_env=s3_env,
            telegram_env=telegram_env,
            parallelism=settings.cluster.generate.parallelism,
        )

    # -- the protocol

    def create(self, request: JobRequest) -> JobStatus:
        """Start the Job, or adopt it; one whose supervisor was killed is started again."""
        job = self.folder / request.name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = self._lock_new(job, request)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise TemporaryError(f"the disk of {self.folder} is full; free some space and try again") from error
            raise ConfigError(f"cannot keep Jobs in {self.folder}: {error.strerror}") from error
        if lock is None:
            found = self.get(request.name)
            if found is None:
                return self.create(request)  # deleted between the two looks
            return found
        try:
            self._spawn(job, lock)
        finally:
            os.close(lock)
        return self._status(job, alive=True)

    def _lock_new(self, job: Path, request: JobRequest) -> int | None:
        """The lock of a Job that needs a supervisor, its folder made; None when there is nothing to start."""
        if not job.is_dir():
            self.sweep()
            fresh = self.folder / f".{request.name}.{os.getpid()}.{time.monotonic_ns()}"
            fresh.mkdir(mode=0o700)
            try:
                (fresh / "job.json").write_text(json.dumps(self._describe(request)), encoding="utf-8")
                (fresh / "pid").write_text(ROOM)
                fresh.rename(job)  # a Job appears whole or not at all
            except OSError:
                shutil.rmtree(fresh)
                if not job.is_dir():  # else somebody else made it this moment: adopt theirs
                    raise
        lock = os.open(job / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        if self._read_state(job).get("state") in ("succeeded", "failed"):
            os.close(lock)
            return None
        return lock

    def sweep(self) -> None:
        """Remove temporary files of killed processes whose Job nobody has started again."""
        for job in sorted(self.folder.glob("*")) if self.folder.is_dir() else ():
            if job.name.startswith("."):  # a Job that was being made by a process that is gone
                maker = job.name.split(".")[-2]
                if not Path(f"/proc/{maker}").exists():
                    shutil.rmtree(job, ignore_errors=True)
                continue
            if not (job / "tmp").exists():
                continue
            try:
                lock = os.open(job / "lock", os.O_RDWR)
            except OSError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                list(left_behind(job))
            except BlockingIOError:
                continue  # its supervisor sees to that
            finally:
                os.close(lock)

    def _describe(self, request: JobRequest) -> dict[str, Any]:
        module = "cli.driver" if request.component == "driver" else f"jobs.{request.component}"
        command = [sys.executable, "-m", module]
        if request.component == "driver":
            command += ["--run", request.run]
        env = {**request.env, "BUGURT_RUN": request.run, "BUGURT_SPEC": json.dumps(request.spec, ensure_ascii=False)}
        if request.force:
            env["BUGURT_FORCE"] = "1"
        return {
            **{k: v for k, v in asdict(request).items() if k not in ("spec", "env")},
            "spec": request.spec,
            "env": env,
            "command": command,
            "cwd": str(self._cwd),
            "parallelism": min(self._parallelism, request.shards),
            "retries": RETRIES[request.component],
            "grace": GRACE[request.component],
            "fatal": [int(c) for c in FATAL_CODES] + [int(ExitCode.INTERNAL)] * (request.component == "driver"),
            "created": datetime.now(UTC).isoformat(),
        }

    def _spawn(self, job: Path, lock: int) -> None:
        request = json.loads((job / "job.json").read_text(encoding="utf-8"))
        secrets = self._s3_env()  # handed on by the environment: never written into the Job's folder
        inherited = dict(os.environ)
        if request["spec"].get("channel"):
            secrets |= self._telegram_env()
        elif request["component"] != "driver":  # only a scrape that talks to Telegram needs the session
            inherited = {k: v for k, v in inherited.items() if not k.startswith("BUGURT_TELEGRAM_")}
        with (job / "supervisor.log").open("ab") as out:
            subprocess.Popen(
                [sys.executable, "-m", "cli.clusters.supervisor", str(job), str(lock)],
                env={**inherited, **secrets},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self._cwd,
                start_new_session=True,
                pass_fds=(lock,),
            )

    def render(self, request: JobRequest) -> list[dict[str, Any]]:
        """The Job as its folder's ``job.json`` describes it."""
        return [self._describe(request)]

    def get(self, name: str) -> JobStatus | None:
        """The Job's state, from its folder and its lock."""
        job = self.folder / name
        if not (job / "job.json").is_file():
            return None
        try:
            return self._status(job, alive=self._alive(job))
        except FileNotFoundError:
            return None

    def list(self, run: str | None = None) -> list[JobStatus]:
        """All Jobs, or those of a run; oldest first."""
        if not self.folder.is_dir():
            return []
        names = sorted(p.name for p in self.folder.iterdir() if not p.name.startswith("."))
        found = [s for s in map(self.get, names) if s is not None and run in (None, s.run)]
        return sorted(found, key=lambda s: s.created or datetime.min.replace(tzinfo=UTC))

    def watch(self, name: str) -> Iterator[JobStatus]:
        """The Job now, and once more when its supervisor has let go of the lock."""
        status = self.get(name)
        if status is None:
            return
        yield status
        if status.state.finished:
            return
        try:
            lock = os.open(self.folder / name / "lock", os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)  # blocks until the supervisor is gone: no polling
        finally:
            os.close(lock)
        status = self.get(name)
        if status is not None:
            yield status

    def delete(self, name: str) -> None:
        """SIGTERM to the supervisor, which gives its processes their grace period; then remove the folder."""
        job = self.folder / name
        if not job.is_dir():
            return
        if self._alive(job):
            with contextlib.suppress(OSError, ValueError):  # it may end by itself just now
                os.kill(int((job / "pid").read_text()), signal.SIGTERM)
            for _ in self.watch(name):
                pass
        shutil.rmtree(job, ignore_errors=True)

    def annotate(self, name: str, notes: dict[str, str]) -> None:
        """Keep the notes in the Job's folder."""
        with contextlib.suppress(OSError):  # the folder is gone, or the disk is full: they are for people to look at
            (self.folder / name / "notes.json").write_text(json.dumps(notes, ensure_ascii=False), encoding="utf-8")

    def logs(
        self, name: str, *, follow: bool = False, since: float | None = None, tail: int | None = None
    ) -> Iterator[LogLine]:
        """The lines that the Job's processes printed; ``since`` goes by their own time stamps."""
        job = self.folder / name
        files = sorted(job.glob("out*.log"))
        readers = {f: _Tail(f) for f in files}
        first = [line for r in readers.values() for line in r.lines()]
        if since is not None:
            first = [line for line in first if _is_since(line.text, since)]
        yield from first[-tail:] if tail is not None else first
        while follow:
            ended = not self._alive(job)
            for file in sorted(job.glob("out*.log")):
                yield from readers.setdefault(file, _Tail(file)).lines()
            if ended:
                return
            time.sleep(FOLLOW_INTERVAL)

    # -- the folder

    def _alive(self, job: Path) -> bool:
        try:
            lock = os.open(job / "lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def _read_state(self, job: Path) -> dict[str, Any]:
        try:
            found = json.loads((job / "state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _status(self, job: Path, *, alive: bool) -> JobStatus:
        request = json.loads((job / "job.json").read_text(encoding="utf-8"))
        state = self._read_state(job)
        name = JobState(state.get("state", "pending"))
        reason = str(state.get("reason", ""))
        if not name.finished and not alive:
            name, reason = JobState.PENDING, "its supervisor was killed; submit the run again to go on"

        def time_of(value: Any) -> datetime | None:
            return datetime.fromisoformat(value) if value else None

        return JobStatus(
            name=request["name"],
            run=request["run"],
            component=request["component"],
            state=name,
            reason=reason,
            exit_code=state.get("exit_code"),
            attempt=request["attempt"],
            restarts=state.get("restarts", 0),
            shards=request["shards"],
            shards_done=len(state.get("done", [])),
            shards_failed=len(state.get("failed", [])),
            active=state.get("active", 0) if alive else 0,
            created=time_of(request["created"]),
            started=time_of(state.get("started")),
            finished=time_of(state.get("finished")),
        )


class _Tail:
    """Reads the whole lines that a file has gained since the last look."""

    def __init__(self, file: Path) -> None:
        self._file = file
        stem = file.stem.partition("-")[2]
        self._shard = int(stem) if stem else None
        self._at = 0

    def lines(self) -> list[LogLine]:
        with self._file.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._at += end
        text = data[:end].decode("utf-8", "replace")
        return [LogLine(readable(line), self._shard) for line in text.splitlines()]


def readable(line: str) -> str:
    """A stage's JSON log line as ``TIME LEVEL message``; any other line as it is."""
    try:
        record = load_json(line)
        return f"{record['time']} {record['level'].upper():<7} {record['message']}"
    except (ValueError, TypeError, KeyError, AttributeError):
        return line


def _is_since(line: str, seconds: float) -> bool:
    try:
        stamp = datetime.fromisoformat(line.split(" ", 1)[0])
    except ValueError:
        return True
    return (datetime.now(UTC) - stamp).total_seconds() <= seconds
