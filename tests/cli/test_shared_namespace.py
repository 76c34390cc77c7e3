"""People who share a namespace, each with a prefix of their own: the same work, the same names, and no harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.clusters.kubernetes import KubernetesCluster
from jobs.specs import ConfigError
from tests.cli.api_server import ApiServer, serve
from tests.cli.fake_cluster import FakeCluster, cluster_settings, request_for
from tests.cli.fake_kubernetes import ControlPlane
from tests.cli.worlds import WireWorld
from tests.conftest import clean_env
from tests.projects import POSTS, Project

TOML = '[s3]\nprefix = "{prefix}"\n[cluster]\nkind = "kubernetes"\n'


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with serve(ControlPlane()) as found:
        yield found


@pytest.fixture
def people(tmp_path: Path, s3_env: dict[str, str], server: ApiServer) -> tuple[Project, Project]:
    """Two folders with the same posts, the same bucket and the same namespace."""
    found = []
    del s3_env["BUGURT_S3_PREFIX"]
    for prefix in ("anna", "boris"):
        folder = tmp_path / prefix
        folder.mkdir()
        (folder / "posts.txt").write_text(POSTS, encoding="utf-8")
        (folder / "bugurt.toml").write_text(TOML.format(prefix=prefix))
        env = {**clean_env(), **s3_env, "KUBECONFIG": str(server.kubeconfig(folder))}
        found.append(Project(folder, env))
    return found[0], found[1]


def submit(*more: str) -> tuple[str, ...]:
    return ("submit", "pipeline", "--source", "posts.txt", "--model", "scratch:tiny", *more)


def test_the_same_work_of_two_people_has_two_names(people: tuple[Project, Project], server: ApiServer) -> None:
    anna, boris = people
    anna.ok(*submit())
    boris.ok(*submit())
    anna.ok(*submit())
    boris.ok(*submit())  # who asks twice means the same run
    assert len(server.plane.jobs()) == 2
    [mine], [theirs] = anna.json("runs"), boris.json("runs")
    assert mine["run"] != theirs["run"]
    boris.ok("cancel", theirs["run"])
    left = {n for n, job in server.plane.jobs().items() if not job["metadata"].get("deletionTimestamp")}
    assert left == {f"{mine['run']}-driver"}


def test_a_colleagues_run_of_the_same_name_is_not_cancelled(people: tuple[Project, Project], server: ApiServer) -> None:
    anna, boris = people
    anna.ok(*submit("--name", "sample"))
    assert "of another bucket or prefix" in boris.fails(64, *submit("--name", "sample"))
    assert "run sample cancelled" in boris.ok("cancel", "sample")
    driver = server.plane.jobs()["sample-driver"]
    assert not driver["metadata"].get("deletionTimestamp")
    boris.ok(*submit("--name", "sample"))  # the next attempt has a name of its own
    assert set(server.plane.jobs()) == {"sample-driver", "sample-driver-2"}
    anna.ok("cancel", "sample")
    assert driver["metadata"].get("deletionTimestamp")


def test_a_job_that_took_the_name_meanwhile_is_looked_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the deletion ours has gone, and a colleague's has come."""
    ours = FakeCluster()
    theirs = FakeCluster(plane=ours.plane, settings=cluster_settings(prefix="other"))
    request = request_for("driver")
    ours.create(request)
    find = ours._find_job

    def slow(doing: str, name: str) -> object:
        found = find(doing, name)
        if found is not None:
            ours.plane.request("DELETE", f"{ours._jobs}/{name}", body={"propagationPolicy": "Foreground"})
            ours.plane.settle()
            theirs.create(request)
        return found

    monkeypatch.setattr(ours, "_find_job", slow)
    ours.delete(request.name)
    job = ours.plane.jobs()[request.name]
    assert theirs.get(request.name) is not None and not job["metadata"].get("deletionTimestamp")


def test_a_server_that_refuses_each_deletion_is_not_asked_for_ever(tmp_path: Path) -> None:
    place = WireWorld(tmp_path, "")
    with serve(place.plane) as server:
        place._url = server.url
        cluster: KubernetesCluster = place.cluster(cluster_settings())
        cluster.create(request_for("driver"))
        server.fault("DELETE", "status", times=1000, status=409, message="a webhook forbids it")
        with pytest.raises(ConfigError, match="deleting Job run-a-driver-0123abcd: a webhook forbids it"):
            cluster.delete(request_for("driver").name)
