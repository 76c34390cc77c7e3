"""What may happen between us and an API server: busy, gone, restarted, forgetful, closed, slow."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cli.clusters.base import JobState, LogLine
from cli.clusters.kubernetes import KubernetesCluster
from cli.clusters.kubernetes_api import HttpApi, connect
from cli.sending import finish
from jobs.specs import BugurtError, ConfigError, TemporaryError
from tests.cli.api_server import TOKEN, ApiServer, serve
from tests.cli.fake_cluster import FakeCluster, cluster_settings, request_for
from tests.cli.worlds import WireWorld
from tests.conftest import ROOT

JOB = request_for("train")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[ApiServer, KubernetesCluster]]:
    """A server and a client of it."""
    place = WireWorld(tmp_path, "")
    with serve(place.plane) as server:
        place._url = server.url
        yield server, place.cluster(cluster_settings())


def watch_through(cluster: KubernetesCluster) -> list[JobState]:
    return [s.state for s in cluster.watch(JOB.name)]


def test_kubectl_is_told_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    """Its own context may be another one than that of the settings."""
    cluster = FakeCluster(settings=cluster_settings(context="kind-kind"))
    sent: Any = SimpleNamespace(record=SimpleNamespace(run="mine"), how="new", plans=[])
    finish(cast(Any, None), cluster, sent, wait=False)
    hint = "kubectl get jobs,pods --context kind-kind -n bugurt -l app.kubernetes.io/instance=mine"
    assert hint in "".join(capsys.readouterr())


# -- plain requests


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(world: Any, status: int) -> None:
    server, cluster = world
    server.fault("POST", "status", times=2, status=status)
    assert cluster.create(JOB).state is JobState.PENDING
    assert sum(call.startswith("POST") for call in server.seen) == 3


def test_retry_after_is_obeyed(world: Any) -> None:
    server, cluster = world
    server.fault("POST", "status", status=429, headers={"Retry-After": "1"})
    before = time.monotonic()
    cluster.create(JOB)
    assert time.monotonic() - before >= 1.0


def test_a_server_that_stays_busy_is_given_up_in_time(world: Any) -> None:
    server, cluster = world
    server.fault("jobs", "status", times=1000, status=503, message="etcd is having a nap")
    before = time.monotonic()
    with pytest.raises(TemporaryError, match="reading Job run-a-train-0123abcd: the cluster answered 503: etcd is"):
        cluster.get(JOB.name)
    assert time.monotonic() - before < 5.0  # the client's patience is 3 s


def test_an_answer_that_is_lost_makes_no_second_job(world: Any) -> None:
    server, cluster = world
    server.fault("POST", "lost")
    cluster.create(JOB)  # created, not heard; asked again: 409; adopted
    assert [call.split(" ")[0] for call in server.seen][:3] == ["POST", "POST", "GET"]
    assert list(server.plane.jobs()) == [JOB.name]


def test_a_connection_that_is_cut_is_made_anew(world: Any) -> None:
    server, cluster = world
    cluster.create(JOB)
    server.fault("GET", "refuse", times=2)
    assert cluster.get(JOB.name) is not None


@pytest.mark.parametrize(
    ("status", "message", "sentence"),
    [
        (
            403,
            'jobs.batch is forbidden: User "me" cannot create',
            "creating Job run-a-train-0123abcd: not allowed: jobs",
        ),
        (422, "Job.batch is invalid: spec.template: Required value", "creating Job run-a-train-0123abcd: Job.batch is"),
    ],
)
def test_a_refusal_is_one_sentence_and_final(world: Any, status: int, message: str, sentence: str) -> None:
    server, cluster = world
    server.fault("POST", "status", times=1000, status=status, message=message)
    with pytest.raises(ConfigError, match=sentence):
        cluster.create(JOB)
    assert len(server.seen) == 1


def test_a_quota_on_jobs_is_worth_another_try(world: Any) -> None:
    server, cluster = world
    server.fault("POST", "status", status=403, message="exceeded quota: team, requested: count/jobs.batch=1")
    with pytest.raises(TemporaryError, match="exceeded quota: team"):
        cluster.create(JOB)


def test_a_proxys_page_is_told_apart(world: Any) -> None:
    server, cluster = world
    server.fault("GET", "garbage")
    with pytest.raises(ConfigError, match="does not answer like a Kubernetes API server"):
        cluster.get(JOB.name)


def test_a_missing_namespace_names_the_remedy(world: Any) -> None:
    server, cluster = world
    server.plane.namespaces.clear()
    with pytest.raises(ConfigError, match="no namespace 'bugurt' in this cluster; `bugurt install` makes it"):
        cluster.create(JOB)


def test_long_listings_come_page_by_page(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server, cluster = world
    monkeypatch.setattr("cli.clusters.kubernetes.PAGE", 3)
    for number in range(8):
        cluster.create(request_for("train", name=f"run-a-train-{number}"))
    server.seen.clear()
    assert len(cluster.list("run-a")) == 8
    assert sum("/jobs?" in call for call in server.seen) == 3
    server.fault("continue=", "status", status=410, message="the continue parameter is too old")
    assert len(cluster.list("run-a")) == 8  # begun anew


# -- watches


@pytest.mark.parametrize("kind", ["drop", "expire"])
@pytest.mark.parametrize("lines", [0, 1, 2])
def test_a_watch_survives(world: Any, kind: str, lines: int) -> None:
    server, cluster = world
    cluster.create(JOB)
    server.fault("watch=true", kind, times=3, lines=lines)
    states = watch_through(cluster)
    assert states[-1] is JobState.SUCCEEDED
    assert len(server.plane.runs) == 1


@pytest.mark.parametrize("status", [410, 429, 500, 503])
def test_a_watch_that_is_refused_is_begun_anew(world: Any, status: int) -> None:
    server, cluster = world
    cluster.create(JOB)
    server.fault("watch=true", "status", times=3, status=status)
    assert watch_through(cluster)[-1] is JobState.SUCCEEDED


def test_a_forgetful_server_costs_no_change(world: Any) -> None:
    server, cluster = world
    cluster.create(JOB)
    seen = []
    for status in cluster.watch(JOB.name):
        seen.append(status.state)
        server.plane.compact()  # each time, what the watch was begun with is forgotten
    assert seen[-1] is JobState.SUCCEEDED


def test_a_server_that_restarts_in_the_middle(tmp_path: Path) -> None:
    """Connections refused for a while, then the same world again at the same address."""
    place = WireWorld(tmp_path, "")
    with serve(place.plane) as server:
        place._url = server.url
        cluster = place.cluster(cluster_settings())
        cluster.create(JOB)
        server.fault(".", "refuse", times=3)
        server.fault("watch=true", "drop", times=2, lines=1)
        assert watch_through(cluster)[-1] is JobState.SUCCEEDED


def test_a_watch_that_is_forbidden_says_so(world: Any) -> None:
    server, cluster = world
    cluster.create(JOB)
    server.fault("watch=true", "status", status=403, message='User "me" cannot watch resource "jobs"')
    with pytest.raises(ConfigError, match="watching Job run-a-train-0123abcd: not allowed"):
        watch_through(cluster)


# -- logs


def test_a_log_that_breaks_off_is_taken_up_where_it_stopped(world: Any) -> None:
    server, cluster = world
    lines = [f"line {n}" for n in range(20)]
    cluster.create(request_for("train", spec={"log": lines}))
    assert watch_through(cluster)[-1] is JobState.SUCCEEDED
    server.fault("/log", "drop", times=2, lines=7)
    assert list(cluster.logs(JOB.name)) == [LogLine(text) for text in lines]


def test_a_followed_log_that_breaks_off_repeats_nothing(world: Any) -> None:
    server, cluster = world
    lines = [f"line {n}" for n in range(20)]
    cluster.create(request_for("train", spec={"log": lines}))
    server.fault("/log", "drop", times=3, lines=5)
    assert [line.text for line in cluster.logs(JOB.name, follow=True)] == lines


def test_a_followed_log_that_ends_before_its_pod_is_taken_up_again(world: Any) -> None:
    """A kubelet that is started again ends the logs it gives, in good order, and goes on with the pods."""
    server, cluster = world
    server.plane.hold("train")
    cluster.create(request_for("train", spec={"log": ["a", "b"]}))
    server.fault("/log", "end", times=2)
    lines = cluster.logs(JOB.name, follow=True)
    threading.Thread(target=release_after_logs, args=(server, 3), daemon=True).start()
    assert [line.text for line in lines] == ["a", "b"]


def release_after_logs(server: ApiServer, count: int) -> None:
    """Let the pods end once a log has been asked for so many times."""
    deadline = time.monotonic() + 60
    while sum("/log" in call for call in server.seen) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    server.plane.release("train")


def test_a_log_that_cannot_be_read_does_not_hide_the_others(world: Any) -> None:
    server, cluster = world
    cluster.create(request_for("generate", spec={"log": ["here"]}, shards=3))
    for _ in cluster.watch(request_for("generate").name):
        pass
    server.fault("generate-0123abcd-1-.*/log", "status", times=100, status=403, message="no logs of node-1 for you")
    found = list(cluster.logs(request_for("generate").name))
    assert [line for line in found if line.text == "here"] == [LogLine("here", 0), LogLine("here", 2)]
    assert [line.shard for line in found if "no logs of node-1" in line.text] == [1]


def test_leaving_a_followed_log_leaves_no_reader(world: Any) -> None:
    import threading

    server, cluster = world
    server.plane.hold("train")
    cluster.create(request_for("train", spec={"log": ["x"]}))
    lines = cluster.logs(JOB.name, follow=True)
    reader = threading.Thread(target=lambda: next(lines, None), daemon=True)  # nothing comes: it waits
    reader.start()
    server.plane.release("train")
    reader.join(10)
    lines.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while any(t.name.startswith("log run-a") for t in threading.enumerate()):
        assert time.monotonic() < deadline, "a reader is left behind"
        time.sleep(0.05)


# -- finding the cluster


def test_contexts_and_namespaces_as_kubectl_has_them(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = world
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
    here = connect()
    assert (here.context, here.namespace, here.api.host) == ("here", "bugurt", server.url)
    assert connect(namespace="other").namespace == "other"
    assert connect("nowhere").namespace == "elsewhere"
    assert here.api.request("GET", "/version")["minor"] == "36"
    cluster = KubernetesCluster.from_settings(cluster_settings(namespace=None, owner="me"))
    assert cluster.namespace == "bugurt" and cluster.list() == []
    server.kubeconfig(tmp_path, namespace=None)
    assert connect().namespace == "bugurt"


def test_a_context_that_is_not_there_is_named_with_those_that_are(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(world[0].kubeconfig(tmp_path)))
    with pytest.raises(ConfigError, match=r"no context 'there' in .*; it has here, nowhere"):
        connect("there")


def test_no_kubeconfig_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"there is no kubeconfig: .* is missing and KUBECONFIG is not set; copy the cluster's"
    ):
        connect()


@pytest.mark.parametrize("text", ["", "[]", "contexts: 3", "current-context: x", "{"])
def test_a_broken_kubeconfig_is_one_sentence(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(ConfigError) as caught:
        connect()
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_inside_the_cluster_the_pods_own_account_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kubernetes.config import incluster_config

    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    (tmp_path / "token").write_text("first")
    import certifi

    (tmp_path / "ca.crt").write_text(Path(certifi.where()).read_text(encoding="utf-8"))
    (tmp_path / "namespace").write_text("team-a\n")
    monkeypatch.setattr("cli.clusters.kubernetes_api.SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    access = connect()
    assert (access.context, access.namespace, access.api.host) == ("in-cluster", "team-a", "https://10.0.0.1:443")


def test_a_token_that_is_refused(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(world[0].kubeconfig(tmp_path, token="wrong")))
    cluster = KubernetesCluster.from_settings(cluster_settings(owner="me"))
    with pytest.raises(ConfigError, match="refuses the credentials; log in to it again"):
        cluster.list()


#: What RBAC says, with the words of k8s.io/apiserver's responsewriters.
REFUSED = 'jobs.batch is forbidden: User "system:serviceaccount:bugurt:bugurt-driver" cannot list resource "jobs"'


@pytest.mark.parametrize(("status", "message"), [(401, "Unauthorized"), (403, REFUSED)])
@pytest.mark.parametrize("call", ["GET /apis/batch", "watch=true"])
def test_a_driver_outlasts_a_server_that_does_not_know_it_yet(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, status: int, message: str
) -> None:
    """One that has just started refuses everybody until it has read the accounts and roles: no end of a run."""
    server, cluster = world
    cluster.create(JOB)
    inside = KubernetesCluster(server_api(server, outlast_refusals=True), cluster_settings(), "bugurt")
    server.fault(call, "status", times=2, status=status, message=message)
    assert watch_through(inside)[-1] is JobState.SUCCEEDED
    server.fault("GET /apis/batch", "status", times=1000, status=status, message=message)
    with pytest.raises(ConfigError, match=r"refuses the credentials|not allowed"):  # but not for ever
        inside.get(JOB.name)


def test_a_driver_does_not_wait_for_a_quota(world: Any) -> None:
    server, _ = world
    inside = KubernetesCluster(server_api(server, outlast_refusals=True), cluster_settings(), "bugurt")
    server.fault("POST", "status", times=1000, status=403, message='jobs "x" is forbidden: exceeded quota: team')
    with pytest.raises(TemporaryError, match="exceeded quota"):
        inside.create(JOB)
    assert sum(seen.startswith("POST") for seen in server.seen) == 1


def server_api(server: ApiServer, **options: Any) -> HttpApi:
    """A client of a server with options of its own."""
    from kubernetes.client import Configuration

    configuration = Configuration()
    configuration.host = server.url
    configuration.api_key["BearerToken"] = f"Bearer {TOKEN}"
    return HttpApi(configuration, patience=2.0, **options)


def test_a_handshake_that_is_cut_off_is_no_bad_certificate(tmp_path: Path) -> None:
    """A balancer whose API server restarts takes the connection and closes it: that passes."""
    from kubernetes.client import Configuration

    with socket.create_server(("127.0.0.1", 0)) as listener:
        begun = threading.Event()

        def close_them() -> None:
            begun.set()
            with contextlib.suppress(OSError):  # the listener is closed at the end
                while True:
                    peer, _ = listener.accept()
                    peer.recv(65_536)
                    peer.close()

        threading.Thread(target=close_them, daemon=True).start()
        begun.wait(5)
        configuration = Configuration()
        configuration.host = f"https://127.0.0.1:{listener.getsockname()[1]}"
        cluster = KubernetesCluster(HttpApi(configuration, patience=0.5), cluster_settings(), "bugurt")
        with pytest.raises(TemporaryError, match="is out of reach"):
            cluster.get(JOB.name)


def test_a_certificate_that_is_not_to_be_trusted_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ssl

    import urllib3
    from kubernetes.client import Configuration

    configuration = Configuration()
    configuration.host = "https://127.0.0.1:9"
    api = HttpApi(configuration, patience=60.0)

    def refuse(*_: Any, **__: Any) -> None:
        raise urllib3.exceptions.SSLError(ssl.SSLCertVerificationError(1, "self-signed certificate"))

    monkeypatch.setattr(api._pool, "request", refuse)
    with pytest.raises(ConfigError, match=r"is not to be trusted: .*self-signed"):
        KubernetesCluster(api, cluster_settings(), "bugurt").get(JOB.name)


def test_a_cluster_that_is_not_there(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(world[0].kubeconfig(tmp_path)))
    access = connect("nowhere")
    access.api._patience = 0.5  # type: ignore[attr-defined]
    cluster = KubernetesCluster(access.api, cluster_settings(), "bugurt")
    with pytest.raises(TemporaryError, match=r"the cluster at http://127.0.0.1:9 is out of reach"):
        cluster.list()


def test_errors_are_ours_and_short(world: Any) -> None:
    server, cluster = world
    server.fault(".", "status", times=1000, status=418, message="x" * 10_000)
    with pytest.raises(BugurtError) as caught:
        cluster.list()
    assert len(str(caught.value)) < 1000


# -- size


def test_the_status_of_200_shards_takes_less_than_a_second(world: Any) -> None:
    """Of the processor, the server's part of it included: other tests are at work on this machine, too."""
    server, cluster = world
    cluster.settings = cluster_settings(generate={"parallelism": 200, "gpu": 0})
    request = request_for("generate", shards=200)
    cluster.create(request)
    server.plane.hold("generate")
    server.plane.settle(5)
    cluster.get(request.name)  # connections are open now
    before = time.process_time()
    found = cluster.list("run-a")
    took = time.process_time() - before
    assert (found[0].shards, found[0].active, found[0].state) == (200, 200, JobState.RUNNING)
    assert took < 1.0
    server.plane.faults.clear()
    server.plane.fault("generate", "exit", code=75, times=60)
    server.plane.release("generate")
    server.plane.settle(3)
    before = time.process_time()
    found = cluster.list("run-a")
    assert time.process_time() - before < 1.0
    assert found[0].restarts >= 60


def test_only_what_is_used_of_the_kubernetes_package_is_loaded(world: Any, tmp_path: Path) -> None:
    server, _ = world
    code = (
        "import sys\n"
        "from cli.clusters.kubernetes_api import connect\n"
        "assert connect().api.request('GET', '/version')['major'] == '1'\n"
        "extras = {'kubernetes.dynamic', 'kubernetes.stream', 'kubernetes.watch', 'websocket'}\n"
        "assert not extras & set(sys.modules), extras & set(sys.modules)\n"
        "import kubernetes.watch\n"  # and the rest is there for whoever wants it
        "assert kubernetes.client.ApiClient and kubernetes.watch.Watch\n"
    )
    env = {**os.environ, "KUBECONFIG": str(server.kubeconfig(tmp_path)), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=60)


def test_the_driver_is_small(world: Any, tmp_path: Path) -> None:
    """All that the driver loads and does for a Job of 200 shards stays below 110 MiB."""
    server, _ = world
    server.plane.gpus = 1000
    code = (
        "from pathlib import Path\n"
        "from cli.clusters.kubernetes import KubernetesCluster\n"
        "from cli.driver import Driver\n"
        "from cli.settings import load\n"
        "from jobs.artifacts import ArtifactStore\n"
        "from tests.cli.fake_cluster import request_for\n"
        "store = ArtifactStore.from_env()\n"
        "cluster = KubernetesCluster.from_settings(load())\n"
        "cluster.create(request_for('generate', shards=200))\n"
        "*_, last = cluster.watch(request_for('generate').name)\n"
        "assert last.shards_done == 200, last\n"
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BUGURT_", "AWS_"))}
    env = {
        **kept,
        "KUBECONFIG": str(server.kubeconfig(tmp_path)),
        "PYTHONPATH": str(ROOT),
        "BUGURT_CLUSTER": '{"kind": "kubernetes", "namespace": "bugurt"}',
        "BUGURT_S3_BUCKET": "bucket",
        "BUGURT_S3_ENDPOINT": "http://127.0.0.1:9",
        "BUGURT_S3_ACCESS_KEY_ID": "key",
        "BUGURT_S3_SECRET_ACCESS_KEY": "secret",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 110 * 1024  # KiB; getrusage would count the parent's peak before the exec
