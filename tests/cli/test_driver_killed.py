"""The driver is killed after every call that it makes, started again, and reaches the same end.

Every call means every call: to the API server and to the bucket, killed before and after it has had its effect. The
cluster is the real code on a control plane in memory; the bucket is in memory, too, for there are thousands of runs.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli.clusters.base import JobRequest, job_name
from cli.driver import drive
from cli.runs import RunRecord, RunStatus, load_status, save_record
from jobs.artifacts import ArtifactStore, Bucket, ObjectInfo
from jobs.specs import (
    FATAL_CODES,
    SPECS,
    ExitCode,
    GenerateSpec,
    NotFoundError,
    PreprocessSpec,
    RunSpec,
    ScrapeSpec,
    TrainSpec,
)
from tests.cli.fake_cluster import ControlPlane, Crash, FakeCluster, Task

SPEC = RunSpec(
    scrape=ScrapeSpec(channel="@made_up", as_of=datetime(2026, 1, 1, tzinfo=UTC)),
    preprocess=PreprocessSpec(),
    train=TrainSpec(),
    generate=GenerateSpec(count=8, shards=3),
)


FUNNEL = [
    {"step": "read", "dropped": 0, "changed": 0, "left": 9},
    {"step": "stub", "dropped": 1, "changed": 2, "left": 8},
]


class Killer:
    """Counts calls of all kinds and kills at one of them."""

    def __init__(self) -> None:
        self.calls = 0
        self.at: list[tuple[int, str]] = []
        self.armed = False

    def step(self, work: Callable[[], Any]) -> Any:
        if not self.armed:
            return work()
        self.calls += 1
        now = {when for number, when in self.at if number == self.calls}
        if "before" in now:
            raise Crash(f"before call {self.calls}")
        try:
            return work()
        finally:
            if "after" in now:  # whether the call came to a good end or not
                raise Crash(f"after call {self.calls}")


class MemoryBucket:
    """What the driver uses of ``jobs.storage.Bucket``."""

    def __init__(self, killer: Killer) -> None:
        self.objects: dict[str, bytes] = {}
        self._killer = killer

    def url(self, path: str) -> str:
        return f"s3://memory/{path}"

    def get_bytes(self, path: str, *, max_size: int = 0) -> bytes:
        def work() -> bytes:
            if path not in self.objects:
                raise NotFoundError(f"reading {path}: not there")
            return self.objects[path]

        return cast(bytes, self._killer.step(work))

    def put_bytes(self, path: str, data: bytes, *, content_type: str | None = None) -> None:
        self._killer.step(lambda: self.objects.__setitem__(path, data))

    def list(self, under: str = "") -> Iterator[ObjectInfo]:
        now = datetime.now(UTC)
        found = self._killer.step(lambda: sorted(p for p in self.objects if p.startswith(under)))
        return (ObjectInfo(p, len(self.objects[p]), now) for p in found)

    def delete(self, paths: Iterable[str]) -> int:
        return sum(self._killer.step(lambda p=p: self.objects.pop(p, None)) is not None for p in paths)


class KilledCluster(FakeCluster):
    """A FakeCluster whose API calls count."""

    def __init__(self, plane: ControlPlane, killer: Killer) -> None:
        super().__init__(plane=plane)
        request, stream = plane.request, plane.stream
        counted: Any = type("Counted", (), {})()
        counted.host = plane.host
        counted.request = lambda *a, **k: killer.step(lambda: request(*a, **k))
        counted.stream = lambda *a, **k: killer.step(lambda: stream(*a, **k))
        self.api = counted


class World:
    """A submitted run, and a driver that can be started as often as one likes."""

    def __init__(self, prepare: Callable[[ControlPlane], None] = lambda plane: None) -> None:
        self.killer = Killer()
        self.bucket = MemoryBucket(self.killer)
        self.store = ArtifactStore(cast(Bucket, self.bucket), show_progress=False)
        self.plane = ControlPlane(self.run_stage)
        self.plane.hold("driver")
        self.cluster = KilledCluster(self.plane, self.killer)
        now = datetime(2026, 1, 1, tzinfo=UTC)
        self.record = RunRecord(
            run="made-up", spec=SPEC, source="@made_up", created=now, submitted=now, code_version="0"
        )
        save_record(self.store, self.record)
        self.driver = job_name("made-up", "driver", None, 1)
        request = JobRequest(name=self.driver, run="made-up", component="driver", spec={"run": "made-up"})
        self.cluster.create(request)
        prepare(self.plane)

    def run_stage(self, task: Task) -> int:
        """A stage: commits its artefact; of several shards the last one does."""
        spec = SPECS[cast(Any, task.component)].model_validate(task.spec)
        assert not spec.missing_inputs()
        armed, self.killer.armed = self.killer.armed, False  # the stage is a process of its own
        try:
            for ref in spec.inputs().values():
                self.store.manifest(ref)
            shards = getattr(spec, "shards", 1)
            self.bucket.put_bytes(f"{spec.ref()}/part-{task.shard or 0}", b"x")
            if len(list(self.bucket.list(f"{spec.ref()}/part-"))) == shards:
                inputs = spec.inputs()
                writer = self.store.writer(spec.ref())
                if spec.stage == "preprocess":
                    writer.put_bytes("report.json", json.dumps({"funnel": FUNNEL}).encode())
                writer.commit(stage=spec.stage, spec=task.spec, inputs=inputs, counts={"posts": 8}, run="made-up")
        finally:
            self.killer.armed = armed
        return 0

    def drive(self, *kills: tuple[int, str]) -> tuple[int, int]:
        """Drive to the end, killed at these calls; returns the exit code and the times it was killed."""
        self.killer.at, self.killer.armed = list(kills), True
        killed = 0
        while True:
            try:
                code = drive(self.store, self.cluster, "made-up", owner=self.driver)
                self.killer.armed = False
                return code, killed
            except Crash:
                killed += 1

    def end(self) -> dict[str, Any]:
        """All that must be the same whatever happened on the way."""
        self.plane.settle()  # a driver that finds the artefact does not wait until its Job is over
        status: RunStatus = load_status(self.store, "made-up")
        stages = {n: (s.state, s.artifact, s.exit_code, s.job) for n, s in status.stages.items()}
        jobs = {
            name: [c["type"] for c in job["status"].get("conditions", [])] + [_note(job)]
            for name, job in self.plane.jobs().items()
        }
        ran = Counter((t.component, t.shard) for t in self.plane.runs)
        manifests = sorted(p for p in self.bucket.objects if p.endswith("/manifest.json"))
        return {
            "state": status.state,
            "message": status.message,
            "stages": stages,
            "jobs": jobs,
            "ran": ran,
            "manifests": manifests,
            # Without its times, which are those of the clock.
            "page": re.sub(rb"\d+", b"#", self.bucket.objects["runs/made-up/index.html"]),
        }


def _note(job: dict[str, Any]) -> str | None:
    found = job["metadata"]["annotations"].get("bugurt.dev/artifact")
    return str(found) if found is not None else None


def troubled(plane: ControlPlane) -> None:
    """A world in which things go wrong and come right again."""
    plane.fault("scrape", "exit", code=75)
    plane.fault("preprocess", "oom")
    plane.fault("train", "evict")
    plane.fault("train", "drain")
    plane.fault("generate", "exit", code=143, shard=1)


def failing(plane: ControlPlane) -> None:
    """A world in which preprocess finds bad data."""
    plane.fault("preprocess", "exit", code=65, message=json.dumps({"message": "no posts are left"}))


def calm_world(plane: ControlPlane) -> None:
    """A world in which all goes well."""


@pytest.mark.parametrize(("prepare", "code"), [(calm_world, 0), (troubled, 0), (failing, 65)])
def test_killed_at_every_call(prepare: Callable[[ControlPlane], None], code: int) -> None:
    calm = World(prepare)
    assert calm.drive() == (code, 0)
    wanted, calls = calm.end(), calm.killer.calls
    assert calls > (40 if code == 0 else 20)
    if code == 0:
        assert wanted["state"] == "succeeded" and len(wanted["manifests"]) == 4
        assert wanted["page"].count(b"<i>done</i>") == 4 and b"stub" in wanted["page"]
        assert set(wanted["ran"].values()) == {1} and len(wanted["ran"]) == 6  # three stages, and three shards
    for number in range(1, calls + 1):
        # In the long, troubled world in turns: there each step comes several times.
        for when in ("before", "after") if prepare is not troubled else (("before", "after")[number % 2],):
            world = World(prepare)
            assert world.drive((number, when)) == (code, 1)
            assert world.end() == wanted, (number, when)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(1, 250), st.sampled_from(["before", "after"])), max_size=25))
def test_killed_again_and_again(kills: list[tuple[int, str]]) -> None:
    calm = World(troubled)
    calm.drive()
    world = World(troubled)
    code, _ = world.drive(*kills)
    assert code == 0
    assert world.end() == calm.end()


BEFALLS = st.tuples(
    st.sampled_from(list(SPECS)),
    st.sampled_from(["evict", "oom", "drain", "exit", "exit", "exit"]),
    st.sampled_from([1, 64, 65, 70, 75, 78, 137, 143]),
    st.integers(1, 8),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(BEFALLS, max_size=5))
def test_whatever_befalls_the_jobs_the_account_is_true(faults: list[tuple[str, Any, int, int]]) -> None:
    """Either all is made, or one stage has failed: those before it are made, and nothing of those after it began."""

    def prepare(plane: ControlPlane) -> None:
        for component, kind, code, times in faults:
            plane.fault(component, kind, code=code, times=times)

    world = World(prepare)
    code, _ = world.drive()
    status = load_status(world.store, "made-up")
    states = [s.state for s in status.stages.values()]
    made = [s.artifact for s in status.stages.values() if s.state == "succeeded"]
    assert {p.removesuffix("/manifest.json") for p in world.end()["manifests"]} == set(made)
    assert all(job["status"].get("conditions") for name, job in world.plane.jobs().items() if name != world.driver)
    if code == 0:
        assert (status.state, states) == ("succeeded", ["succeeded"] * 4)
        return
    failed = states.index("failed")
    assert states == ["succeeded"] * failed + ["failed"] + ["waiting"] * (3 - failed)
    blamed = list(status.stages.values())[failed]
    assert status.state == "failed" and status.message and blamed.message and blamed.exit_code
    assert code == (blamed.exit_code if blamed.exit_code in FATAL_CODES else ExitCode.INTERNAL)
    later = list(SPECS)[failed + 1 :]
    assert not any(task.component in later for task in world.plane.runs)
    assert not any(f"-{stage}-" in name for name in world.plane.jobs() for stage in later)


def test_a_cancelled_run_starts_nothing_more() -> None:
    from jobs.specs import Interrupted

    world = World()
    world.cluster.delete(world.driver)
    with pytest.raises(Interrupted):
        world.drive()
    world.plane.settle()
    assert world.plane.jobs() == {}


def test_500_shards() -> None:
    """The load that is promised: one Job with 500 shards, 64 at a time."""
    world = World()
    spec = SPEC.model_copy(update={"generate": GenerateSpec(count=500, shards=500)})
    save_record(world.store, world.record.model_copy(update={"spec": spec}))
    world.cluster.settings = world.cluster.settings.model_copy(
        update={
            "cluster": world.cluster.settings.cluster.model_copy(
                update={"generate": world.cluster.settings.cluster.generate.model_copy(update={"parallelism": 64})}
            )
        }
    )
    world.plane.gpus = 1000
    assert world.drive() == (0, 0)
    assert Counter(t.component for t in world.plane.runs)["generate"] == 500
