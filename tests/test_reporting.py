"""What a stage tells of itself: redaction, log.txt that is bounded, progress that is strict JSON."""

from __future__ import annotations

import json
import logging
import threading
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from jobs import reporting
from jobs.artifacts import ArtifactStore
from jobs.reporting import LogShipper, ProgressReporter, configure_logging, redact
from jobs.specs import TemporaryError
from jobs.storage import Bucket


@pytest.fixture
def bucket(store: ArtifactStore) -> Bucket:
    return store.bucket


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """Logging as a stage sets it up; afterwards as it was."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.raiseExceptions
    yield tmp_path / "log.txt"
    for handler in root.handlers:
        handler.close()
    root.handlers[:], root.level, logging.raiseExceptions = before
    logging.captureWarnings(False)


def progress(bucket: Bucket, **rest: Any) -> ProgressReporter:
    return ProgressReporter(bucket, "runs/r/s/progress.json", stage="s", run="r", shard=None, **rest)


def strict(bucket: Bucket) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found = json.loads(bucket.get_bytes("runs/r/s/progress.json"), parse_constant=refuse)
    assert isinstance(found, dict)
    return found


def test_values_of_secret_variables_become_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcdef/123+456")
    monkeypatch.setenv("BUGURT_TELEGRAM_PASSWORD", "x")  # too short to be told from ordinary text
    monkeypatch.setenv("HF_TOKEN", "")
    assert redact("key=abcdef/123+456, x, ") == "key=[AWS_SECRET_ACCESS_KEY], x, "
    signed = "GET https://host/b/k?X-Amz-Expires=900&X-Amz-Security-Token=a%2Fb%3D&X-Amz-Signature=0f0f failed"
    assert redact(signed) == (
        "GET https://host/b/k?X-Amz-Expires=900&X-Amz-Security-Token=[redacted]&X-Amz-Signature=[redacted] failed"
    )


def test_lines_for_collectors_and_for_the_file(
    log_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = 'p"a\\ss\nword'
    monkeypatch.setenv("BUGURT_TELEGRAM_PASSWORD", secret)
    configure_logging(debug=False, file=log_file)
    logging.getLogger("bugurt").info("ё «%s»", secret)
    logging.getLogger("jobs.train").debug("unseen")
    logging.getLogger("some.library").info("unseen")
    logging.getLogger("some.library").warning("seen\ntwo lines")
    warnings.warn("a library is old", UserWarning, stacklevel=1)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(e["level"], e["logger"]) for e in lines] == [
        ("info", "bugurt"),
        ("warning", "some.library"),
        ("warning", "py.warnings"),
    ]
    assert [e["message"] for e in lines[:2]] == ["ё «[BUGURT_TELEGRAM_PASSWORD]»", "seen\ntwo lines"]
    assert all(datetime.fromisoformat(e["time"]).utcoffset() is not None for e in lines)
    text = log_file.read_text(encoding="utf-8")
    assert "INFO    ё «[BUGURT_TELEGRAM_PASSWORD]»\n" in text
    assert "unseen" not in text


def test_a_line_that_cannot_be_written_disturbs_nobody(log_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(debug=False, file=log_file)
    logging.getLogger("bugurt").info("%d", "not a number")
    logging.getLogger("bugurt").info("lone \ud800 surrogate")
    assert "Traceback" not in capsys.readouterr().err


def test_the_log_goes_on_where_the_last_attempt_stopped(bucket: Bucket, tmp_path: Path) -> None:
    for attempt in ("первая\n", "вторая\n"):
        file = tmp_path / "log.txt"
        file.write_text("", encoding="utf-8")
        shipper = LogShipper(bucket, "log.txt", file, interval=60)
        file.write_text(attempt, encoding="utf-8")
        shipper.close()
    assert bucket.get_bytes("log.txt").decode() == "первая\nвторая\n"


def test_the_log_is_bounded_and_loses_its_oldest_lines(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "MAX_LOG", 1000)
    file = tmp_path / "log.txt"
    file.write_text("".join(f"строка {n}\n" for n in range(500)), encoding="utf-8")
    bucket.put_bytes("log.txt", b"x" * 5000)  # of somebody else
    LogShipper(bucket, "log.txt", file, interval=60).close()
    lines = bucket.get_bytes("log.txt").decode().splitlines()
    assert lines[-1] == "строка 499"
    assert lines == [f"строка {n}" for n in range(500 - len(lines), 500)]
    assert 40 < len(lines) < 60


def test_the_log_arrives_while_the_stage_runs(bucket: Bucket, tmp_path: Path) -> None:
    sent = threading.Event()
    original = bucket.put_bytes

    def put(path: str, data: bytes, **rest: Any) -> None:
        original(path, data, **rest)
        sent.set()

    bucket.put_bytes = put  # type: ignore[method-assign]
    file = tmp_path / "log.txt"
    file.write_text("one\n", encoding="utf-8")
    shipper = LogShipper(bucket, "log.txt", file, interval=0.05)
    assert sent.wait(20)
    assert bucket.get_bytes("log.txt") == b"one\n"
    shipper.close()
    assert "log" not in {t.name for t in threading.enumerate()}


def test_progress_is_strict_json_without_secrets(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.setenv("HF_TOKEN", 'tok"en-123')
    reporter = progress(bucket, interval=60)
    reporter.start()
    assert strict(bucket)["state"] == "running"
    reporter.update(
        message='with tok"en-123',
        done=3,
        total=10,
        unit="posts",
        loss=float("nan"),
        best=float("-inf"),
        rate=np.float32(0.5),  # type: ignore[arg-type]
        step=np.int64(7),  # type: ignore[arg-type]
        phase="warm",
    )
    reporter.update(done=4, phase=None)
    reporter.finish("failed", message="нет", exit_code=75, retry_after=None)
    found = strict(bucket)
    assert found["metrics"] == {"loss": None, "best": None, "rate": 0.5, "step": 7.0, "phase": None}
    assert (found["done"], found["total"], found["message"], found["exit_code"]) == (4, 10, "нет", 75)
    assert "retry_after" not in found
    assert datetime.fromisoformat(found["updated"]) >= datetime.fromisoformat(found["started"])
    assert "progress" not in {t.name for t in threading.enumerate()}


def test_an_attempt_is_counted_and_begins_afresh(bucket: Bucket) -> None:
    for number, before in enumerate((None, None, b"", b"[]", b'{"attempt": "x"}', b'{"attempt": 6}')):
        if before is not None:
            bucket.put_bytes("runs/r/s/progress.json", before)
        reporter = progress(bucket, interval=60)
        reporter.start()
        assert strict(bucket)["attempt"] == (1, 2, 1, 1, 1, 7)[number]
        reporter.finish("failed", exit_code=65)
    reporter = progress(bucket, interval=60)
    reporter.start()
    assert "exit_code" not in strict(bucket)
    reporter.finish("succeeded", artifact="posts/1")
    assert (strict(bucket)["message"], strict(bucket)["artifact"]) == ("done", "posts/1")


def test_equal_reports_are_sent_once_and_a_bucket_that_fails_stops_nothing(bucket: Bucket) -> None:
    reporter = progress(bucket, interval=60)
    reporter.start()
    calls: list[str] = []

    def fail(path: str, data: bytes, **rest: Any) -> None:
        calls.append(path)
        raise TemporaryError("away")

    original, bucket.put_bytes = bucket.put_bytes, fail  # type: ignore[method-assign]
    reporter._guarded()
    assert calls == []
    reporter.update(done=1)
    reporter._guarded()
    reporter._guarded()  # what was not sent is tried again
    assert len(calls) == 2
    bucket.put_bytes = original  # type: ignore[method-assign]
    reporter.finish("succeeded")
    assert strict(bucket)["done"] == 1
