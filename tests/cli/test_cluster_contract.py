"""What every cluster must do, said once: run in memory, over HTTP, and (marker ``cluster``) in a real cluster."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from cli.clusters.base import JobRequest, JobState, LogLine, job_name
from cli.clusters.kubernetes import KubernetesCluster
from jobs.specs import Interrupted, SpecError
from tests.cli.api_server import serve
from tests.cli.worlds import MemoryWorld, WireWorld, World, bounded, json_line

REF = "model/0123456789abcdef0123"


REAL = [pytest.mark.cluster, pytest.mark.timeout(1800)]  # an image may have to be pulled first


@pytest.fixture(params=["memory", "wire", pytest.param("real", marks=REAL)])
def world(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[World]:
    """Each test in each world."""
    folder = tmp_path / "templates"
    folder.mkdir()
    if request.param == "memory":
        yield MemoryWorld(folder)
    elif request.param == "wire":
        first = WireWorld(folder, "")
        with serve(first.plane) as server:
            first._url = server.url
            yield first
    else:
        from tests.e2e.real import real_world

        with real_world(folder) as found:
            yield found


@pytest.fixture
def cluster(world: World) -> KubernetesCluster:
    """A client with usual settings."""
    return world.cluster(world.settings())


def ask(world: World, component: str = "preprocess", *, attempt: int = 1, **spec: Any) -> JobRequest:
    """A request for a Job that does what ``spec`` says; see ``worlds.PROGRAM``."""
    shards = spec.pop("shards", 1)
    owner = spec.pop("owner", None)
    ref = None if component == "driver" else REF
    return JobRequest(
        name=job_name(world.run, component, ref, attempt),
        run=world.run,
        component=component,  # type: ignore[arg-type]
        spec=spec,
        attempt=attempt,
        shards=shards,
        owner=owner,
        artifact=ref,
    )


def finish(cluster: KubernetesCluster, name: str) -> Any:
    """The last status of a Job, as somebody sees it who watches."""
    return bounded(f"the end of Job {name}", lambda: cluster.watch(name))[-1]


def test_a_job_runs_to_its_end(world: World, cluster: KubernetesCluster) -> None:
    made = cluster.create(ask(world))
    assert (made.run, made.component, made.attempt, made.shards) == (world.run, "preprocess", 1, 1)
    assert made.state in (JobState.PENDING, JobState.RUNNING)
    last = finish(cluster, made.name)
    assert (last.state, last.exit_code, last.reason, last.shards_done) == (JobState.SUCCEEDED, 0, "", 1)
    assert last.created <= last.started <= last.finished
    assert cluster.get(made.name) == last
    assert cluster.list(world.run) == [last]


def test_asking_twice_makes_one_job(world: World, cluster: KubernetesCluster) -> None:
    first = cluster.create(ask(world))
    again = world.cluster(world.settings()).create(ask(world))
    assert (again.name, again.created) == (first.name, first.created)
    assert len(cluster.list(world.run)) == 1
    finish(cluster, first.name)
    assert cluster.create(ask(world)).state is JobState.SUCCEEDED  # a finished one is adopted, not done again
    assert len(cluster.pods(first.name)) == 1


def test_bad_data_fails_at_once_and_says_why(world: World, cluster: KubernetesCluster) -> None:
    cluster.create(ask(world, log=["reading", json_line("the export is empty")], exit=65))
    last = finish(cluster, ask(world).name)
    assert (last.state, last.exit_code, last.reason) == (JobState.FAILED, 65, "the export is empty")
    assert len(cluster.pods(last.name)) == 1


def test_a_passing_trouble_is_tried_again_and_given_up(world: World, cluster: KubernetesCluster) -> None:
    cluster.create(ask(world, log=[json_line("the disk is full")], exit=75))
    last = finish(cluster, ask(world).name)
    assert (last.state, last.exit_code, last.restarts) == (JobState.FAILED, 75, 2)
    assert last.reason == "gave up after 2 tries: the disk is full"


def test_a_lost_shard_does_not_take_the_others_along(world: World, cluster: KubernetesCluster) -> None:
    request = ask(world, "generate", shards=4, exit_of={"2": 65}, log=[json_line("a broken prompt")])
    cluster.create(request)
    last = finish(cluster, request.name)
    assert (last.state, last.shards, last.shards_done, last.shards_failed) == (JobState.FAILED, 4, 3, 1)
    assert last.reason == "1 of 4 shards failed: a broken prompt"
    assert last.exit_code == 65


def test_bad_configuration_of_one_shard_stops_all(world: World, cluster: KubernetesCluster) -> None:
    request = ask(world, "generate", shards=2, exit=78, log=[json_line("the credentials are refused")])
    cluster.create(request)
    last = finish(cluster, request.name)
    assert (last.state, last.exit_code, last.shards_done) == (JobState.FAILED, 78, 0)
    assert last.reason == "the credentials are refused"


def test_logs_of_shards_carry_their_index(world: World, cluster: KubernetesCluster) -> None:
    request = ask(world, "generate", shards=3, log=["a", "b", "c"])
    cluster.create(request)
    # From before the first pod to after the last.
    followed = bounded("the end of the log", lambda: cluster.logs(request.name, follow=True))
    for shard in range(3):
        assert [line.text for line in followed if line.shard == shard] == ["a", "b", "c"]
    later = list(cluster.logs(request.name))
    assert sorted(later, key=str) == sorted(followed, key=str)
    assert len(list(cluster.logs(request.name, tail=2))) == 2


def test_logs_of_a_plain_job_have_no_index(world: World, cluster: KubernetesCluster) -> None:
    request = ask(world, log=["раз", "два"])
    cluster.create(request)
    finish(cluster, request.name)
    assert list(cluster.logs(request.name)) == [LogLine("раз"), LogLine("два")]
    assert list(cluster.logs(request.name, tail=1)) == [LogLine("два")]
    assert list(cluster.logs("there-is-none")) == []


def test_deleting_stops_and_removes(world: World, cluster: KubernetesCluster) -> None:
    made = cluster.create(ask(world, seconds=600, log=["on and on"]))
    if isinstance(world, MemoryWorld):
        world.plane.hold("preprocess")
    world.until(lambda: cluster.get(made.name).state is JobState.RUNNING)  # type: ignore[union-attr]
    cluster.delete(made.name)
    for status in bounded(f"Job {made.name} to be gone", lambda: cluster.watch(made.name)):
        assert not status.state.finished  # it is gone, not failed
    assert cluster.get(made.name) is None
    cluster.delete(made.name)
    if isinstance(world, MemoryWorld):
        world.plane.release("preprocess")
    again = cluster.create(ask(world))
    assert finish(cluster, again.name).state is JobState.SUCCEEDED


def test_a_job_that_is_being_deleted_is_not_adopted(world: World, cluster: KubernetesCluster) -> None:
    first = cluster.create(ask(world, seconds=2))
    uid = cluster._find("reading", "GET", f"{cluster._jobs}/{first.name}")["metadata"]["uid"]  # type: ignore[index]
    cluster.delete(first.name)
    again = cluster.create(ask(world))
    assert cluster._find("reading", "GET", f"{cluster._jobs}/{again.name}")["metadata"]["uid"] != uid  # type: ignore[index]
    assert finish(cluster, again.name).state is JobState.SUCCEEDED


def test_notes_are_left_on_the_job(world: World, cluster: KubernetesCluster) -> None:
    made = cluster.create(ask(world))
    cluster.annotate(made.name, {"artifact": REF, "example.org/posts": "12"})
    marks = cluster._find("reading", "GET", f"{cluster._jobs}/{made.name}")["metadata"]["annotations"]  # type: ignore[index]
    assert (marks["bugurt.dev/artifact"], marks["example.org/posts"]) == (REF, "12")
    cluster.annotate("there-is-none", {"artifact": REF})


def test_children_go_with_their_driver(world: World, cluster: KubernetesCluster) -> None:
    driver = cluster.create(ask(world, "driver", seconds=600))
    if isinstance(world, MemoryWorld):
        world.plane.hold("driver")
        world.plane.hold("preprocess")
    child = cluster.create(ask(world, owner=driver.name, seconds=600))
    found = cluster._find("reading", "GET", f"{cluster._jobs}/{child.name}")
    owner = found["metadata"]["ownerReferences"][0]  # type: ignore[index]
    assert (owner["name"], owner["controller"], owner["kind"]) == (driver.name, False, "Job")
    cluster.delete(driver.name)
    world.until(lambda: cluster.get(child.name) is None)


def test_a_cancelled_run_makes_no_more_jobs(world: World, cluster: KubernetesCluster) -> None:
    with pytest.raises(Interrupted, match="was cancelled"):
        cluster.create(ask(world, owner=f"{world.run}-driver"))
    assert cluster.list(world.run) == []


def test_people_with_other_prefixes_do_not_meet(world: World, cluster: KubernetesCluster) -> None:
    made = cluster.create(ask(world))
    other = world.cluster(world.settings(prefix="other-team", owner="Мария <m@example.org>"))
    assert other.list() == []
    with pytest.raises(SpecError, match="of another bucket or prefix"):
        other.create(ask(world))
    assert finish(cluster, made.name).state is JobState.SUCCEEDED


def test_people_with_other_prefixes_do_not_cancel_each_other(world: World, cluster: KubernetesCluster) -> None:
    """A name is all that `cancel` has of a run whose Job was never made: it may be a colleague's."""
    driver = cluster.create(ask(world, "driver", seconds=600))
    if isinstance(world, MemoryWorld):
        world.plane.hold("driver")
    other = world.cluster(world.settings(prefix="other-team"))
    assert other.get(driver.name) is None
    other.delete(driver.name)
    with pytest.raises(Interrupted, match="was cancelled"):
        other.create(ask(world, owner=driver.name))  # nor does it make Jobs that go with a colleague's
    found = cluster.get(driver.name)
    assert found is not None and found.reason != "is being stopped"
    cluster.delete(driver.name)
    world.until(lambda: cluster.get(driver.name) is None)


def test_a_missing_secret_is_named(world: World) -> None:
    cluster = world.cluster(world.settings(s3_secret="forgotten-s3"))
    made = cluster.create(ask(world))
    world.until(lambda: "forgotten-s3" in cluster.get(made.name).reason)  # type: ignore[union-attr]
    found = cluster.get(made.name)
    assert found is not None and found.state is JobState.PENDING
    assert found.reason.startswith("Secret forgotten-s3 is missing in namespace ")


def test_an_image_that_cannot_be_pulled_is_named(world: World) -> None:
    image = "registry.invalid/bugurt/preprocess:0"
    cluster = world.cluster(world.settings(preprocess={"image": image}))
    if isinstance(world, MemoryWorld):
        world.plane.fault("preprocess", "image")
    made = cluster.create(ask(world))
    reason = world.until(lambda: (found := cluster.get(made.name)) and found.reason.startswith("the image ") and found)
    assert image in reason.reason and reason.state is JobState.PENDING


def test_a_node_without_gpu_is_told(world: World) -> None:
    cluster = world.cluster(world.settings(preprocess={"gpu": 64}))
    made = cluster.create(ask(world))
    found = world.until(lambda: (s := cluster.get(made.name)) and "GPU" in s.reason and s)
    assert found.state is JobState.PENDING
    assert found.reason.startswith("no node has 64 free GPUs (nvidia.com/gpu)")


def test_watching_a_waiting_job_tells_why(world: World) -> None:
    cluster = world.cluster(world.settings(preprocess={"gpu": 64}))
    made = cluster.create(ask(world))
    reasons = (s.reason for s in itertools.islice(cluster.watch(made.name), 20))
    assert any("GPU" in r for r in reasons)
