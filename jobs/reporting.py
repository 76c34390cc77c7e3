"""What a stage tells of itself while it runs: log lines, ``log.txt`` and ``progress.json`` in the bucket."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.s3 import without_signatures
from jobs.specs import BugurtError, DataError, load_json
from jobs.storage import Bucket
from jobs.streams import MIB

LOG_INTERVAL = 15.0  # seconds between uploads of the log
PROGRESS_INTERVAL = 2.0  # seconds between uploads of the progress
RATE_AFTER = 2.0  # seconds of work before its rate is told
MAX_LOG = 16 * MIB  # of log.txt; what is older than that is cut off

#: Variables whose values never appear in a log, whatever a library prints.
SECRET_VARIABLES = (
    "BUGURT_S3_SECRET_ACCESS_KEY",
    "BUGURT_S3_SESSION_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "BUGURT_TELEGRAM_SESSION",
    "BUGURT_TELEGRAM_API_HASH",
    "BUGURT_TELEGRAM_PHONE",
    "BUGURT_TELEGRAM_PASSWORD",
    "BUGURT_TELEGRAM_PROXY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
)


def redact(text: str) -> str:
    """Replace the values of secret variables by their names, and what would let others use a signed address."""
    text = without_signatures(text)
    for name in SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= 6:
            text = text.replace(value, f"[{name}]")
    return text


class _Lines(logging.Formatter):
    """``12:00:01 INFO  message`` for people."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        return redact(f"{clock} {record.levelname:<7} {record.getMessage()}")


class _Json(logging.Formatter):
    """One JSON object a line, for log collectors."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        message = redact(record.getMessage())  # before JSON escapes a quote or a backslash in a secret
        line = {"time": stamp, "level": record.levelname.lower(), "logger": record.name, "message": message}
        return json.dumps(line, ensure_ascii=False)


class _Utc(logging.Formatter):
    """Lines with a whole date, for the file that outlives the pod."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return redact(f"{stamp} {record.levelname:<7} {record.getMessage()}")


def configure_logging(*, debug: bool, file: Path | None = None) -> None:
    """Human lines on a terminal, JSON lines elsewhere (on standard error), and a copy in ``file``."""
    logging.raiseExceptions = False  # a full disk under log.txt must not print tracebacks
    root = logging.getLogger()
    root.handlers.clear()
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(_Lines() if sys.stderr.isatty() else _Json())
    root.addHandler(stream)
    if file is not None:
        copy = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
        copy.setFormatter(_Utc())
        root.addHandler(copy)
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)  # Python's own warnings become lines like all others
    for name in ("bugurt", "jobs", "cli"):
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.INFO)


class _Periodic:
    """Calls ``_tick`` at an interval in a thread of its own, and a last time when it is closed."""

    def __init__(self, interval: float, name: str) -> None:
        self._interval = interval
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def _loop(self) -> None:
        while not self._ended.wait(self._interval):
            self._guarded()

    def _guarded(self) -> None:
        try:
            self._tick()
        except (BugurtError, OSError) as error:
            # The work itself does not depend on it; a bucket that stays away stops the stage elsewhere.
            logging.getLogger("bugurt").debug("could not report: %s", error)

    def _tick(self) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        self._guarded()


class LogShipper(_Periodic):
    """Keeps ``log.txt`` in the bucket; a stage that is started again goes on where the last attempt stopped."""

    def __init__(self, bucket: Bucket, path: str, file: Path, interval: float = LOG_INTERVAL) -> None:
        super().__init__(interval, "log")
        self._bucket, self._path, self._file = bucket, path, file
        self._sent = -1
        try:
            self._before = bucket.get_bytes(path, max_size=2 * MAX_LOG)
        except DataError:  # none yet, or one that is not ours
            self._before = b""
        self._thread.start()

    def _tick(self) -> None:
        with self._file.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size == self._sent:
                return
            file.seek(max(0, size - MAX_LOG - 1))
            data = file.read()
        whole = self._before + data if size <= MAX_LOG else data
        if len(whole) > MAX_LOG:
            whole = whole[-MAX_LOG:].partition(b"\n")[2]
        self._bucket.put_bytes(self._path, whole)
        self._sent = size

    def close(self) -> None:
        """Send the rest."""
        self._end()


class ProgressReporter(_Periodic):
    """Keeps ``progress.json`` in the bucket. Its fields:

    ``state`` running, succeeded, failed or interrupted; ``stage``, ``run``, ``shard``; ``started``, ``updated``
    (UTC); ``attempt`` (1 for the first); ``message`` (one sentence); ``done``, ``total``, ``unit``; ``artifact``
    once it is committed; ``per_second``: units done, measured since this kind of work began; ``exit_code`` and
    ``retry_after`` (seconds) after a failure; ``metrics``: what the stage measures (loss, tokens a second, seconds
    left …).
    """

    def __init__(
        self, bucket: Bucket, path: str, *, stage: str, run: str, shard: int | None, interval: float = PROGRESS_INTERVAL
    ) -> None:
        super().__init__(interval, "progress")
        self._bucket, self._path = bucket, path
        self._lock = threading.Lock()
        self._sent: str | None = None
        self.started = False
        self._begun: tuple[str | None, float, float] | None = None  # unit, when, and how many were done then
        self._state: dict[str, Any] = {
            "stage": stage,
            "run": run,
            "shard": shard,
            "state": "running",
            "attempt": 1,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "message": "starting",
            "metrics": {},
        }

    def start(self) -> None:
        """Write the first report and go on in the background."""
        try:
            before = load_json(self._bucket.get_bytes(self._path))
            self._state["attempt"] = int(before.get("attempt", 0)) + 1
        except (DataError, ValueError, TypeError, AttributeError):
            self._state["attempt"] = 1
        self._tick()
        self._thread.start()
        self.started = True

    def update(
        self,
        *,
        message: str | None = None,
        done: float | None = None,
        total: float | None = None,
        unit: str | None = None,
        **metrics: float | int | str | None,
    ) -> None:
        """Change some fields; those that are left out stay. Cheap: the upload happens in the background."""
        given = {"message": message, "done": done, "total": total, "unit": unit}
        with self._lock:
            self._state.update({k: v for k, v in given.items() if v is not None})
            self._state["metrics"].update(metrics)
            if done is not None:
                self._measure(float(done), time.monotonic())

    def _measure(self, done: float, now: float) -> None:
        """The rate of what is counted; counting something else, or from the beginning, begins anew."""
        unit = self._state.get("unit")
        if self._begun is None or self._begun[0] != unit or done < self._begun[2]:
            self._begun = (unit, now, done)
            self._state.pop("per_second", None)
        elif now - self._begun[1] >= RATE_AFTER:
            self._state["per_second"] = round((done - self._begun[2]) / (now - self._begun[1]), 2)

    def finish(self, state: str, **fields: Any) -> None:
        """The last report."""
        with self._lock:
            self._state["state"] = state
            if state == "succeeded":
                self._state["message"] = "done"
            self._state.update({k: v for k, v in fields.items() if v is not None})
        self._end()

    def _tick(self) -> None:
        with self._lock:
            state = _plain(self._state)
        body = json.dumps(state, ensure_ascii=False, sort_keys=True)
        if body == self._sent:
            return
        state["updated"] = datetime.now(UTC).isoformat(timespec="seconds")
        data = json.dumps(state, ensure_ascii=False, sort_keys=True)
        self._bucket.put_bytes(self._path, data.encode("utf-8", "replace"))
        self._sent = body


def _plain(value: Any) -> Any:
    """The value as strict JSON, without secrets: NaN and infinities, which JSON has not, become null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, str):
        return redact(value)
    if value is None or isinstance(value, bool | int):
        return value
    try:
        number = float(value)  # numbers of numpy and torch, too
    except (TypeError, ValueError):
        return redact(str(value))
    return number if math.isfinite(number) else None
