"""The suite for real clusters, tried where there is none: on the control plane in memory, behind HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli.clusters.kubernetes_api import Access, ApiError
from tests.cli.api_server import serve
from tests.cli.fake_kubernetes import STILL_AT_WORK, ControlPlane, Runner, Task
from tests.cli.test_doctor import add_node
from tests.cli.worlds import bounded, run_task
from tests.conftest import ROOT
from tests.e2e import real, test_pipeline


@contextmanager
def passing_time(plane: ControlPlane) -> Iterator[None]:
    """A second of the plane's passes every 50 ms, as in a cluster that nobody watches."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.05):
            plane.tick()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5)


def at_work(plane: ControlPlane) -> Runner:
    """What ``worlds.PROGRAM`` does in a real cluster, for as long as its spec says by the plane's clock."""
    begun: dict[str, datetime] = {}

    def run(task: Task) -> int:
        began = begun.setdefault(task.pod, plane.now)
        if (plane.now - began).total_seconds() < task.spec.get("seconds", 0):
            return STILL_AT_WORK
        return run_task(task)

    return run


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("suite", "skips"),
    [
        (["tests/e2e/test_acceptance.py"], {"kubectl is not installed", "Kueue is not installed"}),
        (["tests/cli/test_cluster_contract.py", "-k", "real"], set()),
    ],
    ids=["acceptance", "contract"],
)
def test_the_suite_holds_on_the_fake(tmp_path: Path, suite: list[str], skips: set[str]) -> None:
    """It would be a pity to find its own mistakes on somebody's cluster."""
    plane = ControlPlane(namespaces=())
    plane.runner = at_work(plane)
    plane.accounts_needed = True
    add_node(plane, "node-1")
    plane.objects["nodes", "", "node-1"]["metadata"]["labels"] = {"kubernetes.io/hostname": "node-1"}
    env = {k: v for k, v in os.environ.items() if not k.startswith(("BUGURT_", "PYTEST_"))}
    with serve(plane) as server, passing_time(plane):
        # A path as people say it, from where they are.
        kubeconfig = os.path.relpath(server.kubeconfig(tmp_path), ROOT)
        env |= {"KUBECONFIG": kubeconfig, "HOME": str(tmp_path), "NO_COLOR": "1"}
        env |= {"BUGURT_E2E_CONTEXT": "here"}
        env["PATH"] = str(Path(sys.executable).parent)  # no kubectl: the fake does not tell its schema
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", *suite],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=880,
        )
    assert done.returncode == 0, done.stdout[-6000:]
    skipped = {line.rpartition(": ")[2] for line in done.stdout.splitlines() if line.startswith("SKIPPED")}
    assert skipped == skips


# -- its parts that a cluster would have to misbehave for


def test_a_watch_without_an_end_says_what_was_waited_for() -> None:
    over = threading.Event()

    def watch() -> Iterator[str]:
        yield "running"
        over.wait(60)

    with pytest.raises(AssertionError, match="the end of Job x: not within 0 s, last seen running"):
        bounded("the end of Job x", watch, 0.2)
    over.set()
    with pytest.raises(ApiError, match="gone"):
        bounded("the end", lambda: (_ for _ in ()).throw(ApiError(404, "NotFound", "gone")))


IMAGE = (("registry.example.org/team/train:1", ("python", "-c", "pass"), "IfNotPresent"),)


def test_an_image_that_takes_too_long_is_a_reason_to_skip_and_leaves_nothing() -> None:
    plane = ControlPlane()  # where no time passes
    name = real._probe(Access(plane, "bugurt", ""), IMAGE, None)
    reason = real._outcome(Access(plane, "bugurt", ""), name, time.monotonic() - 1)
    assert reason == "not pulled within 900 s"
    assert plane.objects["pods", "bugurt", name]["metadata"]["deletionTimestamp"]


def test_a_pull_secret_is_copied_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = ControlPlane(namespaces=("bugurt", "team"))
    access = Access(plane, "bugurt", "")
    kind, data = "kubernetes.io/dockerconfigjson", {".dockerconfigjson": "e30="}
    secret = {"metadata": {"name": "registry"}, "type": kind, "data": data}
    plane.request("POST", "/api/v1/namespaces/team/secrets", body=secret)
    real._copy_secret(access, "team/registry")
    copy = plane.objects["secrets", "bugurt", real.COPY]
    assert (copy["type"], copy["data"]) == (kind, data)
    with pytest.raises(pytest.fail.Exception, match=r"BUGURT_E2E_PULL_SECRET=registry: .* write NAMESPACE/NAME"):
        real._copy_secret(access, "registry")
    monkeypatch.setattr(real, "PULL_SECRET", "team/registry")
    pod = plane.objects["pods", "bugurt", real._probe(access, IMAGE, None)]
    assert pod["spec"]["imagePullSecrets"] == [{"name": real.COPY}]


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({}, ("bugurt", "Never")),
        ({"TAG": "1"}, ("bugurt", "Never")),
        ({"REGISTRY": "registry.example.org/team"}, ("registry.example.org/team", "IfNotPresent")),
    ],
)
def test_only_a_registry_that_was_named_is_asked(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], wanted: tuple[str, str]
) -> None:
    for name in ("REGISTRY", "TAG"):
        monkeypatch.delenv(f"BUGURT_E2E_{name}", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(f"BUGURT_E2E_{name}", value)
    registry, _, policy = real.images()
    assert (registry, policy) == wanted


def test_a_refused_queue_leaves_nothing_in_the_cluster() -> None:
    plane = ControlPlane(kueue=True)
    plane.denied = {("create", "clusterqueues")}
    project: Any = SimpleNamespace(access=Access(plane, "bugurt", ""), env={})
    with pytest.raises(ApiError, match="clusterqueues is forbidden"):
        test_pipeline.test_a_full_quota_is_told_and_waited_for(project)
    flavors = [o for (kind, _, _), o in plane.objects.items() if kind == "resourceflavors"]
    assert flavors and all(f["metadata"].get("deletionTimestamp") for f in flavors)


class Training:
    """A project in which a training says one thing before it is evicted and another one afterwards."""

    core = "/api/v1/namespaces/bugurt"

    def __init__(self, before: str, after: str) -> None:
        self.log, self.after = before, after
        self.access: Any = SimpleNamespace(api=self, namespace="bugurt")
        self.evicted: list[str] = []

    def request(self, method: str, path: str, *, body: Any) -> None:
        self.evicted.append(body["metadata"]["name"])
        self.log = self.after

    def submit(self, run: str, *args: str) -> None:
        assert "train.checkpoint_steps=200" in args

    def running(self, run: str, component: str) -> Any:
        return {"metadata": {"name": "first"}}

    def bugurt(self, *args: str, code: int | None = 0) -> str:
        return self.log

    def done(self, run: str) -> None:
        assert self.evicted == ["first"]

    def pods(self, run: str, component: str) -> list[Any]:
        return [{"metadata": {"name": "second"}, "status": {"phase": "Succeeded"}}]


KEPT = "a bigram model after 60 steps\ncheckpoint 100 is in the bucket\n"
RESUMED = "resuming at step 120, from runs/evicted/train/checkpoints/120\n"


def test_an_evicted_training_must_have_kept_a_checkpoint_and_have_gone_on_from_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def once(what: str, look: Any, seconds: float) -> Any:
        found = look()
        assert found, what
        return found

    monkeypatch.setattr(test_pipeline, "wait_for", once)
    evict: Any = test_pipeline.test_an_evicted_training_goes_on_where_it_was
    evict(Training(KEPT, RESUMED))
    with pytest.raises(AssertionError, match="a checkpoint in the bucket"):
        evict(Training("a bigram model after 60 steps\n0 checkpoints removed\n", RESUMED))
    with pytest.raises(AssertionError):
        evict(Training(KEPT, "a bigram model after 60 steps\n3 checkpoints removed\n"))


def test_the_words_that_it_waits_for_are_those_of_a_training() -> None:
    """Nobody would notice before the next real cluster."""
    train = ROOT / "jobs" / "train"
    assert 'log.info("checkpoint %d is in the bucket", step)' in (train / "checkpoints.py").read_text("utf-8")
    assert 'log.info("resuming at step %d, from %s",' in (train / "loop.py").read_text("utf-8")
