"""A whole run in a real cluster, disturbed in every way that a cluster has."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.clusters.kubernetes import KubernetesCluster
from cli.clusters.kubernetes_api import Access, ApiError
from tests.e2e.real import images, own_namespace, port_forward, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]
EXPORT = ROOT / "examples" / "channel"
SMALL = 'cpu = "250m", memory = "2Gi", gpu = 0'


class Project:
    """A folder with a bugurt.toml, and the command line in it."""

    def __init__(self, folder: Path, access: Access, env: dict[str, str]) -> None:
        self.folder = folder
        self.access = access
        self.env = env
        self.core = f"/api/v1/namespaces/{access.namespace}"

    def bugurt(self, *args: str, code: int | None = 0, timeout: float = 1200) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", *args],
            cwd=self.folder,
            env={**os.environ, **self.env, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert code is None or done.returncode == code, f"bugurt {' '.join(args)}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def submit(self, name: str, *args: str) -> None:
        options = ("--source", str(EXPORT), "--profile", "bugurt", "--model", "scratch:tiny", "--name", name)
        self.bugurt("submit", "pipeline", *options, *args)

    def pods(self, run: str, component: str) -> list[dict[str, Any]]:
        chosen = f"app.kubernetes.io/instance={run},app.kubernetes.io/component={component}"
        found: list[dict[str, Any]] = self.access.api.request(
            "GET", f"{self.core}/pods", query={"labelSelector": chosen}
        )["items"]
        return found

    def running(self, run: str, component: str) -> dict[str, Any]:
        """A pod of a stage that runs."""

        def look() -> dict[str, Any] | None:
            pods = self.pods(run, component)
            return next((p for p in pods if p["status"]["phase"] == "Running"), None)

        found: dict[str, Any] = wait_for(f"a running pod of {component}", look, 900)
        return found

    def done(self, run: str, state: str = "succeeded") -> dict[str, Any]:
        """The run's status once it has ended."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = json.loads(self.bugurt("status", run, "--json", code=None) or "{}")
            if found.get("state") in ("succeeded", "failed", "cancelled"):
                return found
            return None

        found: dict[str, Any] = wait_for(f"the end of {run}", look, 1500)
        assert found["state"] == state, found
        return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """`bugurt install --dev` in a namespace of our own, and the bucket forwarded to here."""
    registry, tag = images()
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is needed to reach the bucket in the cluster")
    if not EXPORT.exists():
        pytest.skip("the sample export is not there")
    folder = tmp_path_factory.mktemp("project")
    with own_namespace() as access:
        (folder / "bugurt.toml").write_text(
            f'[s3]\nbucket = "bugurt"\nendpoint_in_cluster = "http://bugurt-bucket:9000"\n'
            f'[cluster]\nkind = "kubernetes"\nnamespace = "{access.namespace}"\n'
            f'registry = "{registry}"\ntag = "{tag}"\n'
            + "".join(f"{stage} = {{ {SMALL} }}\n" for stage in ("scrape", "preprocess", "train", "generate"))
        )
        found = Project(folder, access, {})
        found.bugurt("install", "--dev")
        assert "changed" not in found.bugurt("install", "--dev", "--json")
        data = access.api.request("GET", f"{found.core}/secrets/bugurt-s3")["data"]
        import base64

        found.env = {n: base64.b64decode(v).decode() for n, v in data.items()}
        with port_forward(kubectl, access.namespace, "bugurt-bucket", 9000) as url:
            found.env["BUGURT_S3_ENDPOINT"] = url
            yield found


def test_doctor_finds_everything_in_order(project: Project) -> None:
    found = json.loads(project.bugurt("doctor", "--json"))
    assert not [f for f in found if f["result"] == "fail"], found


def test_the_server_accepts_all_that_is_printed(project: Project) -> None:
    options = ("--source", str(EXPORT), "--model", "scratch:tiny", "--set", "generate.shards=3", "--dry-run")
    for text in (project.bugurt("install", "--dev", "--dry-run"), project.bugurt("submit", "pipeline", *options)):
        done = subprocess.run(
            ["kubectl", "apply", "--dry-run=server", "-n", project.access.namespace, "-f", "-"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "would violate PodSecurity" not in done.stderr


def test_a_whole_run_and_the_same_again_on_one_machine(project: Project, tmp_path: Path) -> None:
    began = time.monotonic()
    project.submit("whole", "--count", "20", "--set", "train.max_steps=60")
    assert time.monotonic() - began < 30  # the command itself; the API's time is the cluster's
    status = project.done("whole")
    batch = next(s["artifact"] for s in status["stages"] if s["stage"] == "generate")
    jobs = KubernetesCluster(project.access.api, _settings(project), project.access.namespace).list("whole")
    assert {j.component for j in jobs} == {"driver", "scrape", "preprocess", "train", "generate"}
    assert all(j.exit_code == 0 for j in jobs)
    theirs = _posts(project, batch)
    # The same pipeline as processes of this machine: the same ids, and (on CPUs of the same kind) the same posts.
    local = Project(tmp_path, project.access, {})
    local.submit("whole", "--count", "20", "--set", "train.max_steps=60", "--wait")
    status = json.loads(local.bugurt("status", "whole", "--json"))
    assert next(s["artifact"] for s in status["stages"] if s["stage"] == "generate") == batch
    ours = _posts(local, batch)
    assert len(ours) == len(theirs) == 20
    local.bugurt("down")


def test_killed_pods_of_every_stage_and_a_killed_driver(project: Project) -> None:
    run = "killed"
    project.submit(run, "--count", "20", "--set", "train.max_steps=400", "--force")
    for component in ("scrape", "driver", "preprocess", "train", "driver", "generate"):
        pod = project.running(run, component)
        path = f"{project.core}/pods/{pod['metadata']['name']}"
        project.access.api.request("DELETE", path, query={"gracePeriodSeconds": "0"})
    project.done(run)


def test_an_evicted_training_goes_on_where_it_was(project: Project) -> None:
    run = "evicted"
    settings = ("--set", "train.max_steps=3000", "--set", "train.checkpoint_minutes=0.2", "--force")
    project.submit(run, "--count", "10", *settings)
    pod = project.running(run, "train")
    wait_for("progress of training", lambda: "step" in project.bugurt("logs", run, "train", code=None), 300)
    meta = {"name": pod["metadata"]["name"], "namespace": project.access.namespace}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}
    project.access.api.request("POST", f"{project.core}/pods/{meta['name']}/eviction", body=body)
    project.done(run)
    assert "checkpoint" in project.bugurt("logs", run, "train").lower()


def test_cancel_and_rerun(project: Project) -> None:
    run = "cancelled"
    project.submit(run, "--count", "10", "--set", "train.max_steps=100000", "--set", "train.seed=7")
    project.running(run, "train")
    project.bugurt("cancel", run)
    project.done(run, "cancelled")
    cluster = KubernetesCluster(project.access.api, _settings(project), project.access.namespace)
    wait_for("the Jobs' end", lambda: not cluster.list(run), 400)
    project.submit("cached", "--count", "10", "--set", "train.max_steps=60")
    found = {s["stage"]: s["state"] for s in project.done("cached")["stages"]}
    assert found["scrape"] == found["preprocess"] == "found"  # the first run made them


def test_a_full_quota_is_told_and_waited_for(project: Project) -> None:
    try:
        project.access.api.request("GET", "/apis/kueue.x-k8s.io")
    except ApiError:
        pytest.skip("Kueue is not installed")
    version = project.access.api.request("GET", "/apis/kueue.x-k8s.io")["preferredVersion"]["version"]
    root, name = f"/apis/kueue.x-k8s.io/{version}", f"bugurt-e2e-{secrets.token_hex(3)}"

    def queue(cpu: str) -> dict[str, Any]:
        resources = [
            {"name": n, "nominalQuota": cpu if n == "cpu" else "100Gi"} for n in ("cpu", "memory", "ephemeral-storage")
        ]
        group = {
            "coveredResources": [r["name"] for r in resources],
            "flavors": [{"name": name, "resources": resources}],
        }
        return {"namespaceSelector": {}, "resourceGroups": [group]}

    api = project.access.api
    flavor = {"apiVersion": f"kueue.x-k8s.io/{version}", "kind": "ResourceFlavor", "metadata": {"name": name}}
    api.request("POST", f"{root}/resourceflavors", body=flavor)
    body = {"apiVersion": f"kueue.x-k8s.io/{version}", "kind": "ClusterQueue", "metadata": {"name": name}}
    api.request("POST", f"{root}/clusterqueues", body={**body, "spec": queue("0")})
    local = {"apiVersion": f"kueue.x-k8s.io/{version}", "kind": "LocalQueue", "metadata": {"name": name}}
    api.request(
        "POST",
        f"{root}/namespaces/{project.access.namespace}/localqueues",
        body={**local, "spec": {"clusterQueue": name}},
    )
    project.env["BUGURT_CLUSTER_QUEUE"] = name
    try:
        project.submit("queued", "--count", "5", "--set", "train.max_steps=20", "--force")
        sentence = f"waits in queue {name} for quota"
        wait_for("the reason", lambda: sentence in project.bugurt("status", "queued"), 120)
        patch = {"spec": queue("8")}
        api.request("PATCH", f"{root}/clusterqueues/{name}", body=patch, content_type="application/merge-patch+json")
        project.done("queued")
    finally:
        del project.env["BUGURT_CLUSTER_QUEUE"]
        for kind in ("clusterqueues", "resourceflavors"):
            api.request("DELETE", f"{root}/{kind}/{name}")


def _settings(project: Project) -> Any:
    from tests.cli.fake_cluster import cluster_settings

    found = cluster_settings(prefix="", namespace=project.access.namespace)
    return found.model_copy(update={"s3": found.s3.model_copy(update={"bucket": "bugurt"})})


def _posts(project: Project, batch: str) -> list[str]:
    target = project.folder / f"pulled-{secrets.token_hex(3)}"
    project.bugurt("artifacts", "pull", batch, "-o", str(target))
    lines = [line for path in sorted(target.glob("part-*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line)["text"] for line in lines]
