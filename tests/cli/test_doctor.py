"""``bugurt doctor`` and ``bugurt install``: what they find, what they say to do, what they leave as it is."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from cli import checks
from cli.cluster_checks import ClusterChecks
from cli.clusters.kubernetes_api import Access, ApiError
from cli.commands import doctor, install
from cli.image_checks import check_image, is_loopback
from cli.settings import Settings
from jobs.specs import ConfigError, TemporaryError
from tests.cli.api_server import ApiServer, serve
from tests.cli.fake_cluster import ControlPlane, cluster_settings
from tests.cli.test_manifests import authorities
from tests.conftest import S3Server

Findings = dict[str, tuple[str, str, str]]


def app() -> typer.Typer:
    root = typer.Typer()
    doctor.register(root)
    install.register(root)
    return root


def look(plane: ControlPlane, settings: Settings | None = None) -> Findings:
    """The cluster's findings by name: result, text, what to do."""
    found = ClusterChecks(settings or cluster_settings(registry="127.0.0.1:9/team"), Access(plane, "bugurt", "here"))
    return {f.check: (f.result, f.text, f.todo) for f in checks.run_checks(found.all())}


@pytest.fixture
def plane() -> ControlPlane:
    """A cluster with everything that `install` makes, two Secrets and a node with GPUs."""
    found = ControlPlane()
    settings = cluster_settings()
    from cli.kustomize import objects

    install.apply_all(Access(found, "bugurt", "here"), objects(settings, "bugurt"), force=False)
    for name in ("bugurt-s3", "bugurt-telegram"):
        found._add("secrets", {"kind": "Secret", "metadata": {"name": name, "namespace": "bugurt"}})
    add_node(found, "gpu-node", gpus=2)
    add_node(found, "cpu-node")
    service = {"metadata": {"name": "s3", "namespace": "data"}, "spec": {"ports": [{"port": 9000}]}}
    found._add("services", service)
    return found


def add_node(plane: ControlPlane, name: str, gpus: int = 0, **details: Any) -> None:
    """``details``: labels, taints, and the rest for the node's status."""
    has = {
        "cpu": "8",
        "memory": "32Gi",
        "ephemeral-storage": "100Gi",
        **({"nvidia.com/gpu": str(gpus)} if gpus else {}),
    }
    meta = {"name": name, "namespace": "", "labels": details.pop("labels", {})}
    spec = {"taints": details.pop("taints", [])}
    status = {"allocatable": has, "conditions": [{"type": "Ready", "status": "True"}], **details}
    plane._add("nodes", {"metadata": meta, "spec": spec, "status": status})


# -- the cluster


def test_a_cluster_that_is_ready(plane: ControlPlane) -> None:
    found = look(plane)
    bad = {k: v for k, v in found.items() if v[0] != "ok"}
    assert set(bad) == {"images"}  # the registry of this test is out of reach
    assert found["cluster"][1] == "context here, https://fake.invalid, Kubernetes v1.36.0"
    assert found["gpu"][1] == "2 on 1 of 2 nodes"
    assert found["pod security"][1] == "restricted"
    assert found["bucket in the cluster"][1] == "http://s3.data.svc:9000, a Service of this cluster"
    assert found["clock"][0] == "ok"


@pytest.mark.parametrize(("minor", "result"), [("32", "fail"), ("33", "ok"), ("33+", "ok"), ("", "warn")])
def test_the_version_is_looked_at(plane: ControlPlane, minor: str, result: str) -> None:
    plane.minor = minor
    assert look(plane)["cluster"][0] == result


def test_an_empty_cluster_names_every_remedy() -> None:
    found = look(ControlPlane(namespaces=()), cluster_settings(queue="bugurt"))
    assert found["namespace"] == ("fail", "there is no namespace bugurt", "bugurt install")
    assert found["accounts"][0] == "fail" and "RoleBinding bugurt-driver" in found["accounts"][1]
    assert found["queue"][0] == "fail" and "Kueue is not installed" in found["queue"][1]
    assert found["secret"][0] in ("fail", "warn")
    assert found["gpu"][0] == "fail" and found["gpu"][2].startswith("set gpu = 0 in [cluster.train]")


def test_permissions_are_asked_for_one_by_one(plane: ControlPlane) -> None:
    plane.denied = {("create", "jobs"), ("list", "events")}
    result, text, todo = look(plane)["permissions"]
    assert (result, text) == ("fail", "you may not: create jobs, list events")
    assert "bugurt-user" in todo


def test_what_may_not_be_seen_is_said_and_no_failure(plane: ControlPlane) -> None:
    plane.denied = {("get", k) for k in ("secrets", "nodes", "namespaces", "serviceaccounts", "roles", "services")}
    found = look(plane)
    for name in ("namespace", "secret", "gpu", "accounts", "bucket in the cluster"):
        assert found[name][0] == "warn", name
        assert "you may not" in found[name][1]


def test_secrets_are_looked_for_without_their_values(plane: ControlPlane) -> None:
    asked: list[str] = []
    request = plane.request

    def spy(method: str, path: str, **options: Any) -> Any:
        if "/secrets/" in path:
            asked.append(options["accept"])
        return request(method, path, **options)

    plane.request = spy  # type: ignore[method-assign]
    look(plane)
    assert asked and all("PartialObjectMetadata" in accept for accept in asked)


def test_what_admission_has_against_a_pod_is_told(plane: ControlPlane) -> None:
    plane.refusals["train"] = 'pods "doctor-train" is forbidden: maximum memory usage per Pod is 8Gi, but limit is 24Gi'
    found = look(plane)
    assert "maximum memory usage per Pod is 8Gi" in found["jobs train"][1]
    assert "jobs" not in found  # nobody says that all is well


def test_too_many_gpus_are_told(plane: ControlPlane) -> None:
    result, text, _ = look(plane, cluster_settings(train={"gpu": 4}))["gpu"]
    assert (result, text) == ("fail", "2 on 1 of 2 nodes; train asks for 4, no node has more than 2")
    assert look(plane, cluster_settings(train={"gpu": 0}))["gpu"][0] == "ok"


def test_on_k3s_a_gpu_wants_a_runtime_class(plane: ControlPlane) -> None:
    assert look(plane)["gpu"][0] == "ok"
    plane.objects["nodes", "", "cpu-node"]["status"]["nodeInfo"] = {"kubeletVersion": "v1.34.1+k3s1"}
    assert look(plane)["gpu"][0] == "ok"  # no GPU there
    plane.objects["nodes", "", "gpu-node"]["status"]["nodeInfo"] = {"kubeletVersion": "v1.34.1+k3s1"}
    result, text, todo = look(plane)["gpu"]
    assert (result, todo) == ("warn", 'runtime_class = "nvidia" in [cluster.train]')
    assert "on k3s a pod sees the GPU only with" in text
    assert look(plane, cluster_settings(train={"runtime_class": "nvidia"}))["gpu"][0] == "ok"
    assert look(plane, cluster_settings(train={"gpu": 0}))["gpu"][0] == "ok"


def test_a_node_counts_only_where_it_takes_the_pod(plane: ControlPlane) -> None:
    assert look(plane, cluster_settings(train={"node_selector": {"gpu": "a100"}}))["room"] == (
        "fail", "train: no node has the labels gpu=a100", "node_selector in [cluster.train]",
    )  # fmt: skip
    taint = {"key": "dedicated", "value": "ml", "effect": "NoSchedule"}
    add_node(plane, "large", labels={"gpu": "a100"}, taints=[taint])
    chosen = {"node_selector": {"gpu": "a100"}, "gpu": 0}
    result, text, todo = look(plane, cluster_settings(train=chosen))["room"]
    assert result == "fail" and "train: its pods do not tolerate" in text and "dedicated=ml:NoSchedule" in text
    assert todo == "tolerations in [cluster], or node_selector in [cluster.train]"
    for toleration in ({"operator": "Exists"}, {"key": "dedicated", "value": "ml"}, {**taint, "operator": "Equal"}):
        assert look(plane, cluster_settings(train=chosen, tolerations=[toleration]))["room"][0] == "ok"
    for toleration in ({"key": "dedicated", "value": "web"}, {**taint, "effect": "NoExecute"}):
        assert look(plane, cluster_settings(train=chosen, tolerations=[toleration]))["room"][0] == "fail"
    taint["effect"] = "PreferNoSchedule"
    plane.objects["nodes", "", "large"]["spec"]["taints"] = [
        taint, {"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"},
    ]  # fmt: skip
    assert look(plane, cluster_settings(train=chosen))["room"][0] == "ok"
    # Its size is another one's, which the pod may not use.
    plane.objects["nodes", "", "large"]["status"]["allocatable"]["memory"] = "8Gi"
    found = look(plane, cluster_settings(train=chosen))["room"]
    assert found[:2] == ("warn", "train asks for 24Gi of memory, no node that it may use has more than 8.0Gi")


def test_gpus_count_only_where_the_pod_may_go(plane: ControlPlane) -> None:
    taint = {"key": "dedicated", "value": "ml", "effect": "NoSchedule"}
    plane.objects["nodes", "", "gpu-node"]["spec"] = {"taints": [taint]}
    found = look(plane)
    assert found["room"][:2] == ("fail", "train asks for 1 GPU, and no node that has so many takes its pods")
    assert look(plane, cluster_settings(tolerations=[taint]))["room"][0] == "ok"
    assert look(plane, cluster_settings(train={"gpu": 0}))["room"][0] == "ok"
    # A large node without a GPU is no room for who needs one.
    plane.objects["nodes", "", "gpu-node"] |= {"spec": {}}
    plane.objects["nodes", "", "gpu-node"]["status"]["allocatable"]["cpu"] = "2"
    result, text, _ = look(plane)["room"]
    assert result == "warn" and "no node that it may use has more than 2" in text


def test_a_pod_that_asks_for_a_whole_node_is_told(plane: ControlPlane) -> None:
    """The template's four cores on a node of four: what the node itself runs, and the driver, take some of them."""
    for name in ("cpu-node", "gpu-node"):
        plane.objects["nodes", "", name]["status"]["allocatable"]["cpu"] = "4"
    result, text, _ = look(plane)["room"]
    assert (result, text) == (
        "warn",
        "train asks for 4 of cpu, no node that it may use has more than 4, and its own pods take some of that",
    )
    assert look(plane, cluster_settings(train={"cpu": "3"}))["room"][0] == "ok"


def test_pods_that_are_larger_than_each_node_are_told(plane: ControlPlane) -> None:
    """With what the templates ask for, a cluster for trials takes no pod of train, and says so only when it waits."""
    assert look(plane)["room"][:2] == ("ok", "each stage fits on a node (2 nodes)")
    settings = cluster_settings(train={"memory": "33Gi"})
    result, text, todo = look(plane, settings)["room"]
    assert (result, text) == ("warn", "train asks for 33Gi of memory, no node that it may use has more than 32.0Gi")
    assert todo == "set memory in [cluster.train], or add larger nodes"
    assert "disk in [cluster.generate]" in look(plane, cluster_settings(generate={"disk": "101Gi"}))["room"][2]
    assert (
        "no node that it may use has more than 8" in look(plane, cluster_settings(scrape={"cpu": "8500m"}))["room"][1]
    )


def test_the_queue_is_looked_at(plane: ControlPlane) -> None:
    plane.kueue = True
    settings = cluster_settings(queue="gpu")
    assert look(plane, settings)["queue"][2] == "bugurt install --queue"
    queue = {"metadata": {"name": "gpu", "namespace": "bugurt"}, "spec": {"clusterQueue": "all"}, "status": {}}
    plane._add("localqueues", queue)
    assert look(plane, settings)["queue"][:2] == ("ok", "gpu of ClusterQueue all, 0 waiting")
    plane._condition(queue, "Active", "ClusterQueueIsInactive", "Can't submit new workloads", status="False")
    assert look(plane, settings)["queue"][0] == "fail"
    assert "`queue` in [cluster] would use it" in look(plane)["queue"][1]


def test_priority_classes_are_looked_for(plane: ControlPlane) -> None:
    settings = cluster_settings(train={"priority_class": "urgent"})
    result, text, todo = look(plane, settings)["priority"]
    assert (result, text) == ("fail", "train: there is no PriorityClass urgent")
    assert "kubectl create priorityclass urgent" in todo and "[cluster.train]" in todo
    plane._add("priorityclasses", {"metadata": {"name": "urgent", "namespace": ""}, "value": 1000})
    assert look(plane, settings)["priority"][0] == "ok"
    plane.denied = {("get", "priorityclasses")}
    assert look(plane, settings)["priority"] == ("warn", "train: PriorityClass urgent: you may not look at it", "")
    assert "priority" not in look(plane)
    plane.denied, plane.kueue = set(), True
    queued = cluster_settings(queue="gpu", train={"priority_class": "urgent"})
    result, text, todo = look(plane, queued)["priority"]  # another kind now
    assert (result, text) == ("fail", "train: there is no WorkloadPriorityClass urgent")
    assert "bugurt install --queue" in todo
    plane._add("workloadpriorityclasses", {"metadata": {"name": "urgent", "namespace": ""}, "value": 1000})
    assert look(plane, queued)["priority"][0] == "ok"
    driver = cluster_settings(queue="gpu", driver={"priority_class": "none"})
    assert look(plane, driver)["priority"][1] == "driver: there is no PriorityClass none"  # it is in no queue


@pytest.mark.parametrize("default", [True, False], ids=["a queue called default", "Jobs without a queue held back"])
def test_a_driver_that_kueue_takes_is_told(plane: ControlPlane, default: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = plane.request

    def kueue(method: str, path: str, **options: Any) -> Any:
        answer = ask(method, path, **options)
        if method == "POST" and path.endswith("/jobs"):
            labels = answer["metadata"]["labels"]
            if default:
                labels.setdefault("kueue.x-k8s.io/queue-name", "default")
            answer["spec"]["suspend"] = True
        return answer

    plane.kueue = True
    monkeypatch.setattr(plane, "request", kueue)
    found = look(plane, cluster_settings(queue="gpu"))
    assert "jobs" not in found and "jobs train" not in found  # the stages are Kueue's, and named a queue
    result, text, todo = found["jobs driver"]
    if default:
        assert result == "warn" and "LocalQueue `default`" in text and "another name" in todo
    else:
        # In an exempt namespace Kueue would let no Job of the queue go on.
        assert result == "fail" and "manageJobsWithoutQueueName" in text and "Selector" not in todo
    assert "kueue.x-k8s.io/queue-name" in todo
    bare = look(plane)
    assert ("jobs train" in bare) is not default
    if not default:
        assert "cluster.queue" in bare["jobs train"][2]
        assert all("managedJobsNamespaceSelector" in bare[f"jobs {name}"][2] for name in ("driver", "train"))


def test_rights_on_queues_are_looked_for_where_there_is_a_queue(plane: ControlPlane) -> None:
    from cli.kustomize import objects

    plane.kueue = True
    assert look(plane)["accounts"][0] == "ok"
    settings = cluster_settings(queue="gpu")
    result, text, _ = look(plane, settings)["accounts"]
    assert result == "warn" and "cannot say why a run waits" in text
    install.apply_all(Access(plane, "bugurt", "here"), objects(settings, "bugurt"), force=False)
    assert look(plane, settings)["accounts"][0] == "ok"


@pytest.mark.parametrize(
    ("endpoint", "result"),
    [(None, "ok"), ("https://s3.eu-central-1.amazonaws.com", "ok"), ("http://minio.data.svc:9000", "warn")],
)
def test_pods_without_a_key_are_right_on_aws_alone(plane: ControlPlane, endpoint: str | None, result: str) -> None:
    settings = cluster_settings(s3_secret="", telegram_secret="bugurt-s3")  # so that the line is the only one
    s3 = settings.s3.model_copy(update={"endpoint": endpoint, "endpoint_in_cluster": None})
    checker = ClusterChecks(settings.model_copy(update={"s3": s3}), Access(plane, "bugurt", "here"))
    (first, *_) = checker.secrets()
    assert first.result == result
    assert "bugurt install --s3-secret" in first.todo or result == "ok"


def test_certificates_of_pods_are_compared_with_the_file(plane: ControlPlane, tmp_path: Path) -> None:
    from cli.kustomize import objects

    assert "certificates" not in look(plane)
    settings = cluster_settings(registry="127.0.0.1:9/team")
    path = tmp_path / "ca.pem"
    s3 = {"ca_bundle": str(path), "endpoint": "https://s3.example.org", "endpoint_in_cluster": None}
    settings = settings.model_copy(update={"s3": settings.s3.model_copy(update=s3)})
    assert look(plane, settings)["certificates"][:2] == (
        "fail", f"s3.ca_bundle: cannot read {path}: No such file or directory",
    )  # fmt: skip
    authorities(path)
    missing = look(plane, settings)["certificates"]
    assert missing[0] == "fail" and "ConfigMap bugurt-ca is missing" in missing[1] and missing[2] == "bugurt install"
    access = Access(plane, "bugurt", "here")
    done = install.apply_all(access, objects(settings, "bugurt"), force=False)
    assert [d["what"] for d in done if d["kind"] == "ConfigMap"] == ["created"]
    assert look(plane, settings)["certificates"][0] == "ok"
    authorities(path, 2)
    assert look(plane, settings)["certificates"] == (
        "warn", f"ConfigMap bugurt-ca is not what {path} holds", "bugurt install",
    )  # fmt: skip
    done = install.apply_all(access, objects(settings, "bugurt"), force=False)
    assert [d["name"] for d in done if d["what"] == "changed"] == ["bugurt-ca"]
    plane.denied = {("get", "configmaps")}
    assert look(plane, settings)["certificates"][0] == "warn"


@pytest.mark.parametrize(
    ("host", "what"),
    [
        ("192.168.1.20", "node box"),
        ("192.168.1.30", "Service minio-lb in namespace data"),
        ("s3.team.example.org", "Ingress minio in namespace data"),
        ("192.168.1.99", ""),
    ],
)
def test_an_address_that_is_rewritten_on_its_way_is_told(plane: ControlPlane, host: str, what: str) -> None:
    """Network policies see where a packet goes after kube-proxy has rewritten it, and know the address of before."""
    add_node(plane, "box", addresses=[{"type": "InternalIP", "address": "192.168.1.20"}])
    balancer = {"loadBalancer": {"ingress": [{"ip": "192.168.1.30"}]}}
    plane._add("services", {"metadata": {"name": "minio-lb", "namespace": "data"}, "spec": {}, "status": balancer})
    rules = {"rules": [{"host": "s3.team.example.org"}]}
    plane._add("ingresses", {"metadata": {"name": "minio", "namespace": "data"}, "spec": rules, "status": {}})
    settings = cluster_settings(registry="127.0.0.1:9/team")
    s3 = settings.s3.model_copy(update={"endpoint_in_cluster": f"http://{host}:30900"})
    settings = settings.model_copy(update={"s3": s3})
    result, text, todo = look(plane, settings)["bucket in the cluster"]
    if not what:
        assert result == "ok"
        return
    assert result == "warn" and f"is the address of {what}:" in text
    assert todo == 'set s3.endpoint_in_cluster = "http://SERVICE.NAMESPACE.svc:PORT"'
    plane.denied = {("get", kind) for kind in ("nodes", "services", "ingresses")}
    assert look(plane, settings)["bucket in the cluster"][0] == "ok"  # whoever may not look is not warned


@pytest.mark.parametrize(
    ("endpoint", "inside", "result", "text"),
    [
        ("http://127.0.0.1:9000", None, "fail", "means the pod itself"),
        ("http://localhost:9000", None, "fail", "means the pod itself"),
        ("http://127.0.0.1:9000", "http://s3.data.svc:9000", "ok", "a Service of this cluster"),
        ("http://127.0.0.1:9000", "http://s3.data.svc:9001", "fail", "has no port 9001"),
        ("http://127.0.0.1:9000", "http://minio.data.svc:9000", "fail", "no Service minio in namespace data"),
        ("https://s3.example.com", None, "ok", "pods are given https://s3.example.com"),
        (None, None, "ok", "AWS S3"),
    ],
)
def test_the_buckets_address_inside(
    plane: ControlPlane, endpoint: str | None, inside: str | None, result: str, text: str
) -> None:
    settings = cluster_settings()
    s3 = settings.s3.model_copy(update={"endpoint": endpoint, "endpoint_in_cluster": inside})
    found = look(plane, settings.model_copy(update={"s3": s3}))["bucket in the cluster"]
    assert found[0] == result and text in found[1]


def test_loopback_has_many_names() -> None:
    assert [is_loopback(h) for h in ("localhost", "127.8.0.1", "::1", "a.localhost", "10.0.0.1", "s3")] == [
        True, True, True, True, False, False,
    ]  # fmt: skip


# -- images


class Registry(BaseHTTPRequestHandler):
    """A registry with one image."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        known = {"/v2/team/train/manifests/1.0": 200, "/v2/team/closed/manifests/1.0": 401}
        self.send_response(known.get(self.path, 404))
        self.end_headers()


@pytest.fixture
def registry() -> Iterator[str]:
    """Its address."""
    server = HTTPServer(("127.0.0.1", 0), Registry)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_images_are_looked_for_in_their_registry(registry: str) -> None:
    assert check_image(f"{registry}/team/train:1.0", False).result == "ok"
    assert check_image(f"{registry}/team/train:2.0", False).result == "fail"
    closed = check_image(f"{registry}/team/closed:1.0", False)
    assert (closed.result, closed.todo) == ("warn", "set cluster.image_pull_secret")
    assert check_image("127.0.0.1:9/team/train:1.0", False).result == "warn"


def test_images_without_a_registry_are_looked_for_in_the_nodes(plane: ControlPlane) -> None:
    settings = cluster_settings(tag="1.0")
    result, text, todo = look(plane, settings)["images"]
    assert result == "warn" and "bugurt/train:1.0" in text and "on gpu-node, cpu-node" in text
    assert "k3s ctr images import" in todo and "kind load" in todo
    names = ("scrape", "preprocess", "train", "generate", "driver")
    for node in ("gpu-node", "cpu-node"):
        status = plane.objects["nodes", "", node]["status"]
        status["images"] = [{"names": [f"docker.io/bugurt/{name}:1.0"]} for name in names]
    assert look(plane, settings)["images"][0] == "ok"
    status["images"] = [{"names": [f"localhost/bugurt/{name}:1.0"]} for name in names]  # as podman saves them
    assert "on cpu-node" in look(plane, settings)["images"][1]  # where containerd does not look
    status["nodeInfo"] = {"containerRuntimeVersion": "cri-o://1.34.0"}
    assert look(plane, settings)["images"][0] == "ok"
    add_node(plane, "control-plane", taints=[{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}])
    assert look(plane, settings)["images"][0] == "ok"  # no pod of ours goes there
    plane.denied = {("get", "nodes")}
    assert look(plane, settings)["images"][0] == "warn"


def test_a_name_that_means_docker_hub_is_told(plane: ControlPlane) -> None:
    result, text, _ = look(plane, cluster_settings(registry="my-team"))["images"]
    assert result == "warn" and "has no registry, so nodes look for it at docker.io" in text


# -- the machine


def test_clocks_are_compared() -> None:
    def at(seconds: float) -> Any:
        return checks.check_clock(datetime.now(UTC) + timedelta(seconds=seconds), "the server")

    assert at(5).result == "ok"
    assert (at(90).result, at(90).text) == ("warn", "this machine is 90 s behind the server")
    assert at(-4000).result == "fail"


def test_packages_come_from_our_own_metadata() -> None:
    assert checks.missing_packages("cluster") == []
    found = {f.check: f for f in checks.check_packages(["scrape", "vllm"], needed=True)}
    assert found["packages scrape"].result == "ok"
    assert found["packages vllm"].todo == "pip install 'bugurt[vllm]'"


@pytest.mark.parametrize("missing", [False, True])
def test_a_gpu_that_generation_cannot_use_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    card = tmp_path / "0000:01:00.0" / "information"
    card.parent.mkdir()
    card.write_text("Model: \t\t NVIDIA GeForce RTX 4090\nIRQ:   \t\t 16\n")
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [card] if "nvidia" in str(self) else [])
    versions = {} if missing else {"nvidia-cublas-cu12": "12.9.1.4"}

    def version(name: str) -> str:
        if name not in versions:
            raise checks.metadata.PackageNotFoundError(name)
        return versions[name]

    def load(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(checks.metadata, "version", version)
    monkeypatch.setattr(checks.ctypes, "CDLL", load)
    first, *others = checks.check_local_gpu()
    assert (first.result, first.text) == ("ok", "NVIDIA GeForce RTX 4090")
    assert [(f.check, f.result, f.todo) for f in others] == (
        [("gpu generate", "warn", "pip install 'nvidia-cublas-cu12<13'")] if missing else []
    )
    monkeypatch.setattr(checks.ctypes, "CDLL", lambda name: None)  # the system has it
    assert [f.result for f in checks.check_local_gpu()] == ["ok"]


def test_an_error_of_one_check_does_not_end_the_others() -> None:
    def broken() -> Any:
        raise TemporaryError("the server is out of reach")

    def wrong() -> Any:
        raise ConfigError("no such bucket")

    found = list(checks.run_checks([("a", broken), ("b", wrong), ("c", lambda: [checks.ok("c", "well")])]))
    assert [(f.check, f.result) for f in found] == [("a", "fail"), ("b", "fail"), ("c", "ok")]
    assert found[0].todo == "try again when it is in reach"


def test_the_bucket_is_tried_and_left_clean(s3_server: S3Server, s3_env: dict[str, str], tmp_path: Path) -> None:
    settings = own_bucket(s3_env, tmp_path)
    found = {f.check: f for f in checks.check_bucket(settings)}
    assert {f.result for f in found.values()} == {"ok"}, found
    assert {"bucket", "bucket read, write", "bucket delete", "clock", "conditional writes"} <= set(found)
    from jobs.artifacts import ArtifactStore

    assert list(ArtifactStore.from_env(s3_env).bucket.list("")) == []


def own_bucket(env: dict[str, str], root: Path, **changes: str) -> Settings:
    from cli.settings import ClusterSection, S3Section

    values = {k.removeprefix("BUGURT_S3_").lower(): v for k, v in {**env, **changes}.items()}
    return Settings.model_construct(s3=S3Section(**values), cluster=ClusterSection(), root=root, owner=None)  # type: ignore[arg-type]


def test_a_bucket_that_is_not_there(s3_env: dict[str, str], tmp_path: Path) -> None:
    settings = own_bucket(s3_env, tmp_path, BUGURT_S3_BUCKET="never-made")
    found = list(checks.run_checks([("bucket", lambda: checks.check_bucket(settings))]))
    assert [(f.check, f.result) for f in found] == [("bucket", "fail")]
    assert "'never-made' does not exist" in found[0].text


# -- the commands


@pytest.fixture
def project(tmp_path: Path, s3_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """A project folder for a cluster behind HTTP, and a real bucket."""
    plane = ControlPlane(namespaces=())
    with serve(plane) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
        for name, value in s3_env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("BUGURT_S3_ENDPOINT_IN_CLUSTER", "http://bugurt-bucket:9000")
        (tmp_path / "bugurt.toml").write_text('[cluster]\nkind = "kubernetes"\nqueue = "team"\ntrain = { gpu = 0 }\n')
        monkeypatch.chdir(tmp_path)
        yield server


def run(*args: str) -> Any:
    return CliRunner().invoke(app(), list(args), catch_exceptions=False)


def test_install_twice_changes_nothing(project: ApiServer) -> None:
    project.plane.kueue = True
    add_node(project.plane, "node", gpus=1)
    first = run("install", "--queue", "--dev", "--json")
    assert first.exit_code == 0, first.output
    done = {(d["kind"], d["name"]): d["what"] for d in json.loads(first.stdout)}
    assert set(done.values()) == {"created"}
    assert ("Namespace", "bugurt") in done and ("ClusterQueue", "bugurt") in done and ("LocalQueue", "team") in done
    queue = project.plane.objects["clusterqueues", "", "bugurt"]
    quotas = {
        r["name"]: r["nominalQuota"] for g in queue["spec"]["resourceGroups"] for r in g["flavors"][0]["resources"]
    }
    assert quotas == {"cpu": "8", "memory": "32Gi", "ephemeral-storage": "100Gi", "nvidia.com/gpu": "1"}
    version = project.plane._version
    again = run("install", "--queue", "--dev", "--json")
    assert {d["what"] for d in json.loads(again.stdout)} <= {"unchanged", "kept"}
    assert project.plane._version == version  # not one object was touched


def test_what_its_controller_writes_is_no_change(project: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Deployment that is being rolled out has a new version every moment, and some of them other annotations."""
    run("install", "--dev")
    ask = project.plane.request

    def busy(method: str, path: str, **options: Any) -> Any:
        if method == "PATCH" and path.endswith("/deployments/bugurt-bucket"):
            found = project.plane.objects["deployments", "bugurt", "bugurt-bucket"]
            found["status"] = {"replicas": 1}
            found["metadata"]["annotations"] = {"deployment.kubernetes.io/revision": "1"}
            project.plane._touch("deployments", found)
        return ask(method, path, **options)

    monkeypatch.setattr(project.plane, "request", busy)
    assert {d["what"] for d in json.loads(run("install", "--dev", "--json").stdout)} <= {"unchanged", "kept"}


def test_the_dev_server_keeps_the_bucket_of_the_settings(project: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUGURT_S3_BUCKET", "mine")
    assert run("install", "--dev").exit_code == 0
    pod = project.plane.objects["deployments", "bugurt", "bugurt-bucket"]["spec"]["template"]["spec"]
    mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"bucket": "/data/mine", "tmp": "/tmp"}


def test_install_prints_what_it_would_send_and_sends_nothing(project: ApiServer) -> None:
    found = run("install", "--dry-run", "--queue")
    kinds = [o["kind"] for o in yaml.safe_load_all(found.stdout)]
    assert {"Namespace", "ServiceAccount", "Role", "RoleBinding", "NetworkPolicy", "ClusterQueue"} <= set(kinds)
    assert project.seen == []


def test_the_dev_secret_is_made_once_and_never_shown(project: ApiServer) -> None:
    shown = run("install", "--dev").output
    data = project.plane.objects["secrets", "bugurt", "bugurt-s3"]["data"]
    values = [base64.b64decode(v).decode() for v in data.values()]
    assert len(values) == 2 and all(len(v) >= 16 for v in values)
    shown += run("install", "--dev").output
    assert project.plane.objects["secrets", "bugurt", "bugurt-s3"]["data"] == data
    assert not any(v in shown for v in values)


def test_the_s3_secret_is_this_machines(project: ApiServer, s3_env: dict[str, str]) -> None:
    assert run("install", "--s3-secret").exit_code == 0
    data = project.plane.objects["secrets", "bugurt", "bugurt-s3"]["data"]
    assert base64.b64decode(data["BUGURT_S3_SECRET_ACCESS_KEY"]).decode() == s3_env["BUGURT_S3_SECRET_ACCESS_KEY"]


def test_what_others_have_changed_is_kept_unless_forced(project: ApiServer) -> None:
    run("install")
    project.plane.objects["networkpolicies", "bugurt", "bugurt-telegram"]["spec"]["egress"] = [{}]
    project.plane.foreign.add(("networkpolicies", "bugurt-telegram"))
    kept = {d["name"]: d for d in json.loads(run("install", "--json").stdout)}["bugurt-telegram"]
    assert kept["what"] == "kept" and "kubectl-edit" in kept["note"]
    forced = {d["name"]: d["what"] for d in json.loads(run("install", "--json", "--force").stdout)}
    assert forced["bugurt-telegram"] == "changed"


def test_rights_that_the_installer_lacks_are_left_out(project: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator of a namespace holds no right on Kueue's objects, so the server does not let them give any."""
    ask = project.plane.request

    def admin(method: str, path: str, **options: Any) -> Any:
        body = json.dumps(options.get("body") or {})
        if method == "PATCH" and "/roles/" in path and "kueue.x-k8s.io" in body:
            raise ApiError(403, "Forbidden", "is attempting to grant RBAC permissions not currently held")
        if method == "PATCH" and path.endswith("/rolebindings/bugurt-driver-kueue"):
            raise ApiError(404, "NotFound", 'roles.rbac.authorization.k8s.io "bugurt-driver-kueue" not found')
        return ask(method, path, **options)

    project.plane.kueue = True
    monkeypatch.setattr(project.plane, "request", admin)
    found = run("install", "--json")
    assert found.exit_code == 0, found.output
    done = {(d["kind"], d["name"]): d for d in json.loads(found.stdout)}
    for key in (("Role", "bugurt-driver-kueue"), ("RoleBinding", "bugurt-driver-kueue"), ("Role", "bugurt-user-kueue")):
        assert done[key]["what"] == "kept" and "why a run waits" in done[key]["note"]
    assert done["Role", "bugurt-driver"]["what"] == done["Role", "bugurt-user"]["what"] == "created"


def test_rights_on_queues_come_with_kueue(project: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUGURT_CLUSTER_QUEUE", "")
    run("install")
    assert ("roles", "bugurt", "bugurt-driver-kueue") not in project.plane.objects
    project.plane.kueue = True
    run("install")
    assert ("roles", "bugurt", "bugurt-driver-kueue") in project.plane.objects


def test_the_way_to_the_hub_is_closed_again(project: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUGURT_CLUSTER_HUB", "true")
    run("install")
    key = ("networkpolicies", "bugurt", "bugurt-hub")
    assert key in project.plane.objects
    monkeypatch.setenv("BUGURT_CLUSTER_HUB", "false")
    done = {d["name"]: d["what"] for d in json.loads(run("install", "--json").stdout)}
    assert done["bugurt-hub"] == "removed" and key not in project.plane.objects
    assert "bugurt-hub" not in run("install").stdout
    meta = {"name": "bugurt-hub", "namespace": "bugurt"}
    project.plane._add("networkpolicies", {"metadata": meta})  # somebody else's of that name
    run("install")
    assert key in project.plane.objects


def test_a_namespace_of_a_team_keeps_its_labels(project: ApiServer) -> None:
    """`restricted` holds for all pods of a namespace: those of others, who never asked for it, would be refused."""
    project.plane.namespaces.add("bugurt")
    project.plane._add("namespaces", {"metadata": {"name": "bugurt", "namespace": "", "labels": {"team": "a"}}})

    def labels() -> dict[str, str]:
        found: dict[str, str] = project.plane.objects["namespaces", "", "bugurt"]["metadata"]["labels"]
        return found

    for _ in range(2):
        done = {d["kind"]: d for d in json.loads(run("install", "--json").stdout)}
        assert done["Namespace"]["what"] == "kept" and labels() == {"team": "a"}
        assert (
            "kubectl label namespace bugurt pod-security.kubernetes.io/enforce=restricted" in done["Namespace"]["note"]
        )
    found = {f["check"]: f for f in json.loads(run("doctor", "--json").stdout)}
    assert found["pod security"]["todo"].startswith("kubectl label namespace bugurt")
    done = {d["kind"]: d for d in json.loads(run("install", "--json", "--force").stdout)}
    assert done["Namespace"]["what"] == "changed"
    assert labels()["pod-security.kubernetes.io/enforce"] == "restricted" and labels()["team"] == "a"
    done = {d["kind"]: d for d in json.loads(run("install", "--json").stdout)}
    assert done["Namespace"]["what"] == "unchanged"


def test_a_secret_that_nobody_would_read_is_not_made(project: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUGURT_CLUSTER_S3_SECRET", "")
    for options in (("--s3-secret",), ("--s3-secret", "--dry-run")):
        with pytest.raises(ConfigError, match=r"^--s3-secret: \[cluster\] s3_secret is empty, so no pod would read it"):
            run("install", *options)
    assert project.seen == []


def test_the_dev_server_reads_the_secret_of_the_settings(project: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUGURT_CLUSTER_S3_SECRET", "mine")
    run("install", "--dev")
    assert ("secrets", "bugurt", "mine") in project.plane.objects
    pod = project.plane.objects["deployments", "bugurt", "bugurt-bucket"]["spec"]["template"]["spec"]
    named = [e["valueFrom"]["secretKeyRef"]["name"] for e in pod["containers"][0]["env"] if "valueFrom" in e]
    assert named == ["mine", "mine"]


def test_install_without_kueue_fails_with_the_rest_done(project: ApiServer) -> None:
    found = run("install", "--queue", "--json")
    assert found.exit_code == 78
    done = {d["name"]: d["what"] for d in json.loads(found.stdout.partition("\nerror")[0])}
    assert done["bugurt-driver"] == "created" and done["bugurt-cpu"] == "fail"


def test_doctor_from_an_empty_cluster_to_a_ready_one(project: ApiServer) -> None:
    before = run("doctor", "--json")
    assert before.exit_code == 78
    missing = {f["check"] for f in json.loads(before.stdout) if f["result"] == "fail"}
    assert {"namespace", "accounts", "secret", "queue"} <= missing
    project.plane.kueue = True
    run("install", "--queue", "--dev")
    after = run("doctor", "--json")
    found = {f["check"]: f for f in json.loads(after.stdout)}
    assert after.exit_code == 0, after.stdout
    assert {"result", "check", "text", "todo"} == set(found["bucket"])
    table = run("doctor")
    assert table.exit_code == 0 and "RESULT" in table.stdout and "WHAT TO DO" in table.stdout


def test_doctor_of_an_unreachable_cluster_stops_there(project: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUGURT_CLUSTER_CONTEXT", "not-there")
    found = json.loads(run("doctor", "--json").stdout)
    assert found[-1]["check"] == "cluster" and "no context 'not-there'" in found[-1]["text"]


def test_doctor_of_one_machine(tmp_path: Path, s3_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in s3_env.items():
        monkeypatch.setenv(name, value)
    found = run("doctor", "--json")
    names = {f["check"] for f in json.loads(found.stdout)}
    assert {"settings", "python", "packages train", "disk", "gpu", "bucket", "clock"} <= names
    assert "cluster" not in names


def test_doctor_names_what_no_run_can_be_made_of(
    tmp_path: Path, s3_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in s3_env.items():
        monkeypatch.setenv(name, value)

    def settings(text: str) -> list[tuple[str, str]]:
        (tmp_path / "bugurt.toml").write_text(text, encoding="utf-8")
        found = json.loads(run("doctor", "--json").stdout)
        return [(f["result"], f["text"]) for f in found if f["check"] == "settings"][1:]

    assert settings("[train]\nepochs = 3\n[scrape]\nlimit = 10\n") == []
    wrong = settings(
        '[scrape]\nlimit = -1\n[train]\nepochs = -3\n[preprocess]\nprofile = "none"\n[generate]\nfoo = 1\n'
    )
    assert [result for result, _ in wrong] == ["fail"] * 4
    for sentence, words in zip(
        (t for _, t in wrong), ("scrape: limit", "train: epochs", "foo", "profile"), strict=True
    ):
        assert words in sentence
    ((result, text),) = settings('[train]\nmodel = "scratch:tiny"\n[preprocess]\nmodel = "scratch:small"\n')
    assert result == "fail"
    assert "must be the same" in text


def test_nothing_heavy_is_imported_for_help() -> None:
    code = (
        "import sys, cli.commands.doctor, cli.commands.install\n"
        "bad = {'kubernetes', 'boto3', 'rich', 'yaml', 'pydantic_settings', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
