"""Which runs there are: the newest first, without the records of all, and whatever became of the markers."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cli import runs
from cli.garbage import collect
from cli.runs import MARKERS, RunRecord, all_markers, all_records, marked_run, marker, save_record
from jobs.artifacts import ArtifactStore
from jobs.specs import RunSpec, ScrapeSpec, TemporaryError
from tests.projects import Project

BEGUN = datetime(2026, 1, 1, tzinfo=UTC)


def record(number: int, *, minute: float | None = None, owner: str = "") -> RunRecord:
    """A run that was submitted so many minutes after the first; names do not sort as times do."""
    time = BEGUN + timedelta(minutes=number if minute is None else minute)
    return RunRecord(
        run=f"r-{number * 37 % 101:03d}",
        spec=RunSpec(scrape=ScrapeSpec(source="source/" + "a" * 20)),
        source="x",
        owner=owner,
        created=BEGUN,
        submitted=time,
        code_version="0",
    )


def markers(store: ArtifactStore) -> list[str]:
    paths = [info.path for info in store.bucket.list(MARKERS)]
    assert [path.removesuffix("/marker") for path in paths] == all_markers(store)
    return paths


def mark(store: ArtifactStore, path: str) -> None:
    store.bucket.put_bytes(f"{path}/marker", b"")


def listed(store: ArtifactStore) -> list[str]:
    return [found.run for found in all_records(store)]


@pytest.fixture(autouse=True)
def windows_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_WINDOW", 4)


@pytest.fixture
def twenty(store: ArtifactStore) -> list[RunRecord]:
    """Twenty saved runs, the newest first."""
    made = [record(n) for n in range(20)]
    for one in random.Random(0).sample(made, 20):
        save_record(store, one)
    return made[::-1]


@pytest.fixture
def reads(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are read from now on."""
    paths: list[str] = []
    get_bytes = store.bucket.get_bytes

    def noted(path: str, **rest: Any) -> bytes:
        paths.append(path)
        return get_bytes(path, **rest)

    monkeypatch.setattr(store.bucket, "get_bytes", noted)
    return paths


def test_the_newest_come_first_and_no_more_records_are_read_than_asked_for(
    store: ArtifactStore, twenty: list[RunRecord], reads: list[str]
) -> None:
    found = all_records(store)
    assert next(found) == twenty[0]
    assert len(reads) == 4
    assert [next(found) for _ in range(5)] == twenty[1:6]
    assert len(reads) == 8
    assert list(found) == twenty[6:]
    assert len(reads) == len(set(reads)) == 20


def test_microseconds_order_and_markers_sort_in_all_years() -> None:
    years = [datetime(year, 1, 1, tzinfo=UTC) for year in (1, 1969, 1970, 2026, 9999)]
    times = [*years[:4], years[3] + timedelta(microseconds=1), years[4]]
    paths = [marker(record(1).model_copy(update={"submitted": time})) for time in times]
    assert paths == sorted(paths, reverse=True) and len({len(p) for p in paths}) == 1
    assert {marked_run(p) for p in paths} == {record(1).run}
    naive = record(1).model_copy(update={"submitted": datetime(2026, 1, 1)})  # as a foreign hand writes it
    assert marker(naive) == paths[3]


def test_a_run_that_is_submitted_again_is_the_newest_and_is_shown_once(
    store: ArtifactStore, twenty: list[RunRecord], reads: list[str]
) -> None:
    again = twenty[15].model_copy(update={"submitted": BEGUN + timedelta(hours=1), "attempt": 2})
    save_record(store, again)
    assert len(markers(store)) == 21
    assert list(all_records(store)) == [again, *(r for r in twenty if r.run != again.run)]
    assert len(reads) == 20


@pytest.mark.parametrize("lost", [1, 3, 20])
def test_a_run_without_a_marker_keeps_its_place(store: ArtifactStore, twenty: list[RunRecord], lost: int) -> None:
    store.bucket.delete(random.Random(lost).sample(markers(store), lost))
    store.bucket.put_bytes("runs/by-hand/scrape/log.txt", b"")  # no run at all
    assert list(all_records(store)) == twenty


def test_markers_without_a_run_or_of_another_time_change_nothing(
    store: ArtifactStore, twenty: list[RunRecord], reads: list[str]
) -> None:
    chance = random.Random(1)
    for one in chance.sample(twenty, 8):  # later than their records
        mark(store, marker(one.model_copy(update={"submitted": BEGUN + timedelta(days=1)})))
    for one in chance.sample(twenty, 8):  # earlier
        mark(store, marker(one.model_copy(update={"submitted": BEGUN - timedelta(days=1)})))
    for path in (marker(record(50)), marker(record(51, minute=-9)), f"{MARKERS}what", f"{MARKERS}-", f"{MARKERS}0-Ы"):
        mark(store, path)
    assert list(all_records(store)) == twenty
    assert len(reads) == 22, "each once, and two that are not there"
    store.bucket.put_bytes(f"runs/{twenty[7].run}/run.json", b"{")
    assert list(all_records(store)) == [*twenty[:7], *twenty[8:]], "a damaged record is left out"


def test_a_kill_between_the_writes_leaves_what_was(
    store: ArtifactStore, twenty: list[RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_bytes = store.bucket.put_bytes
    new, again = record(30), twenty[15].model_copy(update={"submitted": BEGUN + timedelta(hours=1)})

    def killed(path: str, data: bytes, **rest: Any) -> None:
        if path.endswith("run.json"):
            raise TemporaryError("killed")
        put_bytes(path, data, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(store.bucket, "put_bytes", killed)
        for one in (new, again):
            with pytest.raises(TemporaryError, match="killed"):
                save_record(store, one)
    assert len(markers(store)) == 22, "the marker goes first"
    assert list(all_records(store)) == twenty
    save_record(store, again)
    save_record(store, new)
    assert list(all_records(store)) == [again, new, *(r for r in twenty if r.run != again.run)]
    assert len(markers(store)) == 22


def test_gc_removes_markers_that_are_of_no_use(store: ArtifactStore, twenty: list[RunRecord]) -> None:
    again = twenty[15].model_copy(update={"submitted": BEGUN + timedelta(hours=1)})
    save_record(store, again)
    coming = twenty[3].model_copy(update={"submitted": BEGUN + timedelta(hours=2)})
    mark(store, marker(coming))  # its record is on its way
    gone = twenty[9]
    store.bucket.delete([f"runs/{gone.run}/run.json"])
    before = set(markers(store))
    assert collect(store, 3600.0, dry_run=False).lines == []
    line = f"{MARKERS}  (2 of runs gone or submitted again)"
    assert collect(store, 0.0, dry_run=True).lines == [line]
    assert set(markers(store)) == before
    assert collect(store, 0.0, dry_run=False).lines == [line]
    assert before - set(markers(store)) == {f"{marker(gone)}/marker", f"{marker(twenty[15])}/marker"}
    assert listed(store) == [again.run, *(r.run for r in twenty if r.run not in (again.run, gone.run))]
    assert collect(store, 0.0, dry_run=False).lines == []


def test_limit_and_mine_go_on_until_enough_are_found(
    store: ArtifactStore, project: Project, s3_env: dict[str, str]
) -> None:
    project.env.update(s3_env, BUGURT_OWNER="me")
    for number in range(30):
        save_record(store, record(number, owner="me" if number in (2, 5, 6) else "you"))

    def shown(*options: str) -> list[str]:
        return [found["run"] for found in project.json("runs", *options)]

    assert shown("--limit", "7") == [record(n).run for n in range(29, 22, -1)]
    assert shown("--mine") == [record(n).run for n in (6, 5, 2)]
    assert shown("--mine", "--limit", "2") == [record(n).run for n in (6, 5)]
    assert len(shown()) == 30
    said = project.ok("open", "--no-browser")
    assert record(29).run in said
