"""What a submission finds, adopts, and says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cli.clusters.base import JobRequest, JobState, JobStatus, LogLine
from cli.driver import Driver
from cli.runs import load_record, load_status
from cli.settings import Settings
from cli.submission import Submitted, plan, record_for, submit, unfinished_run
from jobs.artifacts import ArtifactStore
from jobs.specs import DataError, NotFoundError, RunSpec, ScrapeSpec

SOURCE = "source/" + "a" * 20


class Recorder:
    """A cluster that only remembers what was asked of it; nothing runs."""

    kind = "recorder"

    def __init__(self) -> None:
        self.jobs: dict[str, JobState] = {}
        self.created: list[JobRequest] = []

    def create(self, request: JobRequest) -> JobStatus:
        self.created.append(request)
        self.jobs.setdefault(request.name, JobState.RUNNING)
        status = self.get(request.name)
        assert status is not None
        return status

    def get(self, name: str) -> JobStatus | None:
        state = self.jobs.get(name)
        return None if state is None else JobStatus(name=name, run="r", component="driver", state=state)

    def render(self, request: JobRequest) -> list[dict[str, Any]]:
        return []

    def list(self, run: str | None = None) -> list[JobStatus]:
        return [s for s in map(self.get, self.jobs) if s is not None]

    def watch(self, name: str) -> Iterator[JobStatus]:
        yield from ()

    def delete(self, name: str) -> None:
        self.jobs.pop(name, None)

    def annotate(self, name: str, notes: dict[str, str]) -> None:
        return None

    def logs(
        self, name: str, *, follow: bool = False, since: float | None = None, tail: int | None = None
    ) -> Iterator[LogLine]:
        yield from ()


def send(store: ArtifactStore, cluster: Recorder, spec: RunSpec, **options: Any) -> Submitted:
    record, before = record_for(
        store,
        Settings(owner="me"),
        spec,
        label="x",
        source="x",
        force=options.pop("force", False),
        name=options.pop("name", None),
    )
    return submit(store, cluster, record, before, plan(store, record.spec))


@pytest.fixture
def spec() -> RunSpec:
    return RunSpec(scrape=ScrapeSpec(source=SOURCE))


def test_asking_twice_makes_one_run(store: ArtifactStore, spec: RunSpec) -> None:
    cluster = Recorder()
    first, second = send(store, cluster, spec), send(store, cluster, spec)
    assert (first.how, second.how) == ("new", "adopted")
    assert first.record.run == second.record.run and len({r.name for r in cluster.created}) == 1


def test_a_run_that_failed_gets_another_attempt(store: ArtifactStore, spec: RunSpec) -> None:
    cluster = Recorder()
    first = send(store, cluster, spec)
    cluster.jobs[cluster.created[-1].name] = JobState.FAILED
    again = send(store, cluster, spec)
    assert again.how == "again" and again.record.attempt == 2 and again.record.run == first.record.run
    assert cluster.created[-1].name == f"{first.record.run}-driver-2"
    assert load_record(store, first.record.run).attempt == 2


def test_what_is_there_is_found_and_starts_nothing(store: ArtifactStore, spec: RunSpec) -> None:
    cluster = Recorder()
    assert spec.scrape is not None
    store.writer(spec.scrape.ref()).commit(stage="scrape", spec={}, run="earlier", counts={"posts": 3})
    found = send(store, cluster, spec)
    assert found.how == "found" and cluster.created == []
    status = load_status(store, found.record.run)
    assert status.state == "succeeded" and status.stages["scrape"].made_by == "earlier"
    forced = send(store, cluster, spec, force=True)
    assert forced.how == "new" and forced.record.run != found.record.run and forced.record.force


def test_what_was_made_before_its_input_was_made_again_is_said_to_be(store: ArtifactStore, spec: RunSpec) -> None:
    assert spec.scrape is not None
    ref = spec.scrape.ref()
    source = store.writer(SOURCE).commit(stage="upload", spec={}, run="one")
    store.writer(ref).commit(
        stage="scrape", spec={}, run="one", inputs={"source": SOURCE}, made_from={"source": source.created}
    )
    [found] = plan(store, spec)
    assert found.why == "made by run one from the same spec and inputs"
    store.writer(SOURCE).commit(stage="upload", spec={}, run="two")
    [found] = plan(store, spec)
    assert found.found is not None
    assert f"before run two made {SOURCE} again (--force makes this one again, too)" in found.why


@pytest.mark.parametrize("name", ["nothing", "../../etc", "", "Имя С Пробелами", "a/b"])
def test_a_run_that_is_none_is_told_in_the_same_words(store: ArtifactStore, name: str) -> None:
    with pytest.raises(NotFoundError, match=r"there is no run .*; `bugurt runs` lists them"):
        load_record(store, name)


def test_a_damaged_manifest_can_be_made_again_by_force(store: ArtifactStore, spec: RunSpec) -> None:
    assert spec.scrape is not None
    ref = spec.scrape.ref()
    store.bucket.put_bytes(f"{ref}/manifest.json", b"{")
    with pytest.raises(DataError, match=r"is damaged.*--force makes it again"):
        plan(store, spec)
    [found] = plan(store, spec, force=True)
    assert found.found is None
    assert store.resolve(ref) == ref
    for force in (True, False):
        record, _ = record_for(store, Settings(), spec, label="x", source="x", force=force, name=None)
        driver = Driver(store, Recorder(), record)
        if force:
            assert driver.find("scrape", spec.scrape, ref) is None
        else:
            with pytest.raises(DataError, match="is damaged"):
                driver.find("scrape", spec.scrape, ref)
    store.remove(ref)
    assert plan(store, spec)[0].found is None


def test_the_nearest_artefact_explains_what_is_missing(store: ArtifactStore, spec: RunSpec) -> None:
    assert spec.scrape is not None
    (nothing,) = plan(store, spec)
    assert "there is no posts artefact yet" in nothing.why
    near = spec.scrape.model_copy(update={"limit": 5})
    far = spec.scrape.model_copy(update={"limit": 5, "chat": "другой", "min_id": 4})
    for other in (far, near):
        store.writer(other.ref()).commit(stage="scrape", spec=other.model_dump(mode="json"), inputs=other.inputs())
    (item,) = plan(store, spec)
    assert item.found is None and near.ref() in item.why and "limit 5 → None" in item.why


def test_a_name_that_means_another_run_gets_a_number(store: ArtifactStore, spec: RunSpec) -> None:
    cluster = Recorder()
    other = RunSpec(scrape=ScrapeSpec(source=SOURCE, limit=2))
    assert send(store, cluster, spec, name="mine").record.run == "mine"
    assert send(store, cluster, other, name="mine").record.run == "mine-2"


def test_a_live_channel_is_not_scraped_twice_at_once(store: ArtifactStore) -> None:
    from datetime import UTC, datetime

    cluster = Recorder()
    live = RunSpec(scrape=ScrapeSpec(channel="@name"))
    assert live.scrape is not None
    pinned = live.model_copy(
        update={"scrape": live.scrape.model_copy(update={"as_of": datetime(2026, 1, 1, tzinfo=UTC)})}
    )
    assert unfinished_run(store, live) is None
    sent = send(store, cluster, pinned)
    found = unfinished_run(store, live)
    assert found is not None and found.run == sent.record.run


def test_two_submissions_at_the_same_moment_end_in_one_record(store: ArtifactStore, spec: RunSpec) -> None:
    cluster = Recorder()
    barrier = threading.Barrier(4)
    runs: list[str] = []

    def go() -> None:
        barrier.wait()
        runs.append(send(store, cluster, spec).record.run)

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(runs)) == 1 and len({r.name for r in cluster.created}) == 1


def test_a_driver_of_an_earlier_attempt_does_not_have_the_last_word(store: ArtifactStore) -> None:
    """Two machines that submitted the same run have a driver each; the run's status is that of the later one."""
    spec = RunSpec(scrape=ScrapeSpec(source=SOURCE))
    first = send(store, Recorder(), spec).record
    second = send(store, Recorder(), spec).record
    assert (first.run, first.attempt, second.attempt) == (second.run, 1, 2)
    earlier, later = (Driver(store, Recorder(), record) for record in (first, second))
    earlier.save()
    assert load_status(store, first.run).attempt == 1
    later.status.state = "succeeded"
    later.save()
    earlier.status.state = "failed"
    earlier.save()
    found = load_status(store, first.run)
    assert (found.attempt, found.state) == (2, "succeeded")
