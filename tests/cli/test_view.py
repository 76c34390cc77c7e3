"""What ``bugurt status`` tells of a stage at work."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from cli.clusters.base import JobState, JobStatus
from cli.runs import RunRecord, StageStatus
from cli.view import _describe, _row
from jobs.artifacts import ArtifactStore
from jobs.specs import RunSpec, ScrapeSpec

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_training_shows_where_it_is_how_good_and_how_fast() -> None:
    report = {
        "done": 1200,
        "total": 20_000,
        "unit": "steps",
        "metrics": {
            "epoch": 1.25,
            "loss": 2.3456,
            "learning_rate": 0.001,
            "held_out_loss": 2.5,
            "best_step": 1000,
            "bits_per_character": 1.875,
            "tokens_per_second": 12345.6,
            "seconds_left": 3600,
            "memory_mib": 5120,
        },
    }
    assert _describe([report]) == (
        "1,200 of 20,000 steps, epoch 1.25, loss 2.346, held out loss 2.5, 1.875 bits/character, 12,346 tokens/s, "
        "5,120 MiB"
    )


def test_shards_are_summed() -> None:
    reports = [
        {"done": done, "total": 50, "unit": "posts", "metrics": {"passing": None, "posts_per_second": 12.5}}
        for done in (10, 20)
    ]
    assert _describe([*reports, {}]) == "30 of 100 posts, 12.5 posts/s"
    assert _describe([{}]) == ""


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.FAILED, JobState.SUCCEEDED])
def test_a_job_that_began_or_ended_does_not_wait(store: ArtifactStore, state: JobState) -> None:
    """The driver saw it pending and has not looked since."""
    record = RunRecord(run="cats", spec=RunSpec(scrape=ScrapeSpec(source="source/" + "a" * 20)), source="cats.json",
                       created=NOW, submitted=NOW, code_version="1")  # fmt: skip
    seen = StageStatus(state="waiting", job="cats-scrape", started=NOW)
    job = JobStatus(name="cats-scrape", run="cats", component="scrape", state=state)
    assert _row(store, record, "scrape", seen, job).state == "running"
    assert _row(store, record, "scrape", seen, replace(job, state=JobState.PENDING)).state == "waiting"
