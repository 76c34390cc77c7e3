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
from cli.clusters.kubernetes_api import Access
from cli.commands import doctor, install
from cli.image_checks import check_image, is_loopback
from cli.settings import Settings
from jobs.specs import ConfigError, TemporaryError
from tests.cli.api_server import ApiServer, serve
from tests.cli.fake_cluster import ControlPlane, cluster_settings
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


def add_node(plane: ControlPlane, name: str, gpus: int = 0) -> None:
    has = {
        "cpu": "8",
        "memory": "32Gi",
        "ephemeral-storage": "100Gi",
        **({"nvidia.com/gpu": str(gpus)} if gpus else {}),
    }
    status = {"allocatable": has, "conditions": [{"type": "Ready", "status": "True"}]}
    plane._add("nodes", {"metadata": {"name": name, "namespace": ""}, "spec": {}, "status": status})


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


def test_pods_that_are_larger_than_each_node_are_told(plane: ControlPlane) -> None:
    """With what the templates ask for, a cluster for trials takes no pod of train, and says so only when it waits."""
    assert look(plane)["room"][:2] == ("ok", "each stage fits on a node (2 nodes)")
    settings = cluster_settings(train={"memory": "33Gi"})
    result, text, todo = look(plane, settings)["room"]
    assert (result, text) == ("warn", "train asks for 33Gi of memory, no node has more than 32.0Gi")
    assert todo == "set memory in [cluster.train], or add larger nodes"
    assert "disk in [cluster.generate]" in look(plane, cluster_settings(generate={"disk": "101Gi"}))["room"][2]
    assert "no node has more than 8" in look(plane, cluster_settings(scrape={"cpu": "8500m"}))["room"][1]


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


def test_images_without_a_registry_are_told(plane: ControlPlane) -> None:
    result, text, todo = look(plane, cluster_settings())["images"]
    assert result == "warn" and "has no registry" in text and "kind load" in todo


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
