"""A whole run in a real cluster, disturbed in every way that a cluster has."""

from __future__ import annotations

import base64
import json
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.clusters.kubernetes import KubernetesCluster
from cli.clusters.kubernetes_api import Access, ApiError
from cli.kustomize import KUEUE, kueue_version
from tests.e2e.project import EXPORT, Project
from tests.e2e.real import delete, kubectl, need_images, own_namespace, port_forward, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """`bugurt install --dev` in a namespace of our own, and the bucket forwarded to here."""
    program = kubectl()
    if not EXPORT.exists():
        pytest.skip("the sample export is not there")
    folder = tmp_path_factory.mktemp("project")
    with own_namespace() as access:
        if not _volumes(access):
            pytest.skip("the cluster has no default StorageClass, which the trial's S3 server needs for its volume")
        registry, tag = need_images(access)
        found = Project(folder, access)
        found.settle_in("bugurt", registry, tag)
        found.bugurt("install", "--dev")
        data = access.api.request("GET", f"{found.core}/secrets/bugurt-s3")["data"]
        found.env = {n: base64.b64decode(v).decode() for n, v in data.items()}
        _wait_for_the_bucket(access)
        with port_forward(program, access.namespace, "bugurt-bucket", 9000) as url:
            found.env["BUGURT_S3_ENDPOINT"] = url
            yield found


def _volumes(access: Access) -> bool:
    mark = "storageclass.kubernetes.io/is-default-class"
    classes = access.api.request("GET", "/apis/storage.k8s.io/v1/storageclasses").get("items") or []
    return any((c["metadata"].get("annotations") or {}).get(mark) == "true" for c in classes)


def _wait_for_the_bucket(access: Access) -> None:
    """Until the S3 server takes connections; else say what its pod says."""
    core = f"/api/v1/namespaces/{access.namespace}"
    path = f"/apis/apps/v1/namespaces/{access.namespace}/deployments/bugurt-bucket"
    try:
        wait_for("the S3 server", lambda: access.api.request("GET", path)["status"].get("availableReplicas"), 300)
    except AssertionError as error:
        chosen = {"labelSelector": "app.kubernetes.io/component=s3"}
        pods = access.api.request("GET", f"{core}/pods", query=chosen)["items"]
        claim = access.api.request("GET", f"{core}/persistentvolumeclaims/bugurt-bucket")["status"]
        raise AssertionError(f"{error}: its claim {claim}, its pods {[p['status'] for p in pods]}") from error


def test_doctor_finds_everything_in_order(project: Project) -> None:
    found = json.loads(project.bugurt("doctor", "--json", code=None))
    # The registry may be asked for images that were loaded into the nodes and are not in it.
    assert not [f for f in found if f["result"] == "fail" and f["check"] != "images"], found


def test_a_whole_run_and_the_same_again_on_one_machine(project: Project, tmp_path: Path) -> None:
    began = time.monotonic()
    project.submit("whole", "--count", "20", "--set", "train.max_steps=60")
    assert time.monotonic() - began < 30  # the command itself; the API's time is the cluster's
    status = project.done("whole")
    batch = next(s["artifact"] for s in status["stages"] if s["stage"] == "generate")
    cluster = KubernetesCluster(project.access.api, _settings(project), project.access.namespace)

    def over() -> Any:
        jobs = cluster.list("whole")  # the run has ended before its driver's pod has
        return jobs if all(j.state.finished for j in jobs) else None

    jobs = wait_for("the end of all Jobs", over, 120)
    assert {j.component for j in jobs} == {"driver", "scrape", "preprocess", "train", "generate"}
    assert all(j.exit_code == 0 for j in jobs), jobs
    theirs = _posts(project, batch)
    # The same pipeline as processes of this machine: the same ids, and (on CPUs of the same kind) the same posts.
    local = Project(tmp_path, project.access)
    local.submit("whole", "--count", "20", "--set", "train.max_steps=60", "--wait")
    status = json.loads(local.bugurt("status", "whole", "--json"))
    assert next(s["artifact"] for s in status["stages"] if s["stage"] == "generate") == batch
    ours = _posts(local, batch)
    assert len(ours) == len(theirs) == 20
    local.bugurt("down")


def test_killed_pods_of_every_stage_and_a_killed_driver(project: Project) -> None:
    run = "killed"
    project.submit(run, "--count", "20", "--set", "train.max_steps=400", "--force")
    killed = []
    for component in ("scrape", "driver", "preprocess", "train", "driver", "generate"):
        pod = project.running(run, component)
        if pod is None:
            continue  # it was quicker than we are
        path = f"{project.core}/pods/{pod['metadata']['name']}"
        # One second, then SIGKILL. With none at all the API server forgets a pod before its node has stopped it.
        project.access.api.request("DELETE", path, query={"gracePeriodSeconds": "1"})
        killed.append(component)
    assert killed.count("driver") == 2 and "train" in killed
    project.done(run)


def test_an_evicted_training_goes_on_where_it_was(project: Project) -> None:
    run = "evicted"
    # The first checkpoint comes after 100 steps, and most of the training after that.
    settings = ("--set", "train.max_steps=3000", "--set", "train.checkpoint_steps=200", "--force")
    project.submit(run, "--count", "10", *settings)
    pod = project.running(run, "train")
    assert pod is not None

    def kept() -> str | None:
        log = project.bugurt("logs", run, "train", code=None)
        return log if re.search(r"checkpoint \d+ is in the bucket", log) else None

    log = wait_for("a checkpoint in the bucket", kept, 600)
    assert "resuming at step" not in log
    meta = {"name": pod["metadata"]["name"], "namespace": project.access.namespace}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}
    project.access.api.request("POST", f"{project.core}/pods/{meta['name']}/eviction", body=body)
    project.done(run)
    assert re.search(r"resuming at step [1-9]\d*, from ", project.bugurt("logs", run, "train"))
    assert meta["name"] not in {p["metadata"]["name"] for p in project.pods(run, "train") if _succeeded(p)}


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
        version = kueue_version(project.access.api.request("GET", f"/apis/{KUEUE}"))
    except ApiError as error:
        assert error.status == 404, error
        pytest.skip("Kueue is not installed")
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
    body = {"apiVersion": f"kueue.x-k8s.io/{version}", "kind": "ClusterQueue", "metadata": {"name": name}}
    local = {"apiVersion": f"kueue.x-k8s.io/{version}", "kind": "LocalQueue", "metadata": {"name": name}}
    homes = f"{root}/namespaces/{project.access.namespace}/localqueues"
    try:
        api.request("POST", f"{root}/resourceflavors", body=flavor)
        api.request("POST", f"{root}/clusterqueues", body={**body, "spec": queue("0")})
        api.request("POST", homes, body={**local, "spec": {"clusterQueue": name}})
        project.env["BUGURT_CLUSTER_QUEUE"] = name
        project.submit("queued", "--count", "5", "--set", "train.max_steps=20", "--force")
        sentence = f"waits in queue {name} for quota"
        wait_for("the reason", lambda: sentence in project.bugurt("status", "queued"), 120)
        patch = {"spec": queue("8")}
        api.request("PATCH", f"{root}/clusterqueues/{name}", body=patch, content_type="application/merge-patch+json")
        project.done("queued")
    finally:
        project.env.pop("BUGURT_CLUSTER_QUEUE", None)
        for kind in ("clusterqueues", "resourceflavors"):  # they are the whole cluster's, and outlive the namespace
            delete(project.access, f"{root}/{kind}/{name}")


def _succeeded(pod: dict[str, Any]) -> bool:
    return bool(pod["status"].get("phase") == "Succeeded")


def _settings(project: Project) -> Any:
    from tests.cli.fake_cluster import cluster_settings

    found = cluster_settings(prefix="", namespace=project.access.namespace)
    return found.model_copy(update={"s3": found.s3.model_copy(update={"bucket": "bugurt"})})


def _posts(project: Project, batch: str) -> list[str]:
    target = project.folder / f"pulled-{secrets.token_hex(3)}"
    project.bugurt("artifacts", "pull", batch, "-o", str(target))
    lines = [line for path in sorted(target.glob("part-*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line)["text"] for line in lines]
