"""What a real cluster says to all that bugurt sends: without one image of ours, and without one pod that runs.

A pod whose image cannot be pulled is created, admitted, scheduled, counted, reported and deleted like any other.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli import manifests
from cli.clusters.base import JobRequest, JobState, job_name
from cli.clusters.kubernetes import KubernetesCluster
from cli.clusters.kubernetes_api import APPLY_PATCH, Access, ApiError
from cli.commands.install import apply_all
from cli.kustomize import KUEUE, kueue_version, objects, path_of
from jobs.specs import ConfigError
from tests.cli.fake_cluster import cluster_settings
from tests.cli.test_manifests import SETTINGS, SPECS, request
from tests.cli.worlds import bounded, write_templates
from tests.conftest import S3Server
from tests.e2e.project import EXPORT, Project
from tests.e2e.real import as_account, install_base, kubectl, own_namespace, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
NOWHERE = "registry.invalid/bugurt/stage:0"  # a name that no resolver may ever know
STRICT = {"dryRun": "All", "fieldValidation": "Strict"}
Object = dict[str, Any]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[Project]:
    """`bugurt install` in a namespace of our own; the bucket is on this machine, for no pod will read it."""
    folder = tmp_path_factory.mktemp("project")
    with own_namespace() as access:
        found = Project(folder, access, s3_server.env("acceptance"))
        del found.env["BUGURT_S3_BUCKET"], found.env["BUGURT_S3_PREFIX"]
        s3_server.make_bucket("acceptance")
        found.settle_in("acceptance", "registry.invalid/bugurt", "0")
        found.bugurt("install", "--s3-secret")
        yield found


@pytest.fixture
def cluster(installed: Project, tmp_path: Path) -> KubernetesCluster:
    """A client whose Jobs ask for little, and for an image that is nowhere."""
    return client(installed.access, tmp_path)


def client(access: Access, folder: Path, api: Any = None, **settings: Any) -> KubernetesCluster:
    place = folder / f"templates-{secrets.token_hex(3)}"
    place.mkdir()
    templates = write_templates(place, NOWHERE)
    chosen = cluster_settings(templates=templates, namespace=access.namespace, **settings)
    return KubernetesCluster(api or access.api, chosen, access.namespace)


def ask(component: Any, run: str | None = None, *, owner: str | None = None) -> JobRequest:
    """A request whose name nobody else uses."""
    run = run or f"e2e-{secrets.token_hex(3)}"
    ref = None if component == "driver" else f"{component}/0123456789abcdef0123"
    return JobRequest(
        name=job_name(run, component, ref, 1), run=run, component=component, spec={}, artifact=ref, owner=owner
    )


def reason_of(cluster: KubernetesCluster, request: JobRequest, begins: str, seconds: float = 120.0) -> str:
    """Create a Job and wait for the sentence that says why it waits."""
    cluster.create(request)

    def look() -> str | None:
        found = cluster.get(request.name)
        assert found is not None and found.state is JobState.PENDING, found
        return found.reason if found.reason.startswith(begins) else None

    return str(wait_for(f"the sentence “{begins} …”", look, seconds))


def kueue_version_of(access: Access) -> str:
    """The version that bugurt would talk to Kueue in; empty where it is not installed."""
    try:
        return kueue_version(access.api.request("GET", f"/apis/{KUEUE}"))
    except ApiError as error:
        assert error.status == 404
        return ""


def settings_named(name: str, namespace: str) -> Any:
    return cluster_settings(**{**SETTINGS[name], "namespace": namespace})


# -- the server accepts everything


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", SPECS)
def test_every_job_and_its_pod_are_accepted(installed: Project, name: str, settings: str) -> None:
    """Validation, pod security and whatever else is installed, on the Jobs and on the pods that they would make."""
    access = installed.access
    job, *more = manifests.render(
        request(name), settings_named(settings, access.namespace), namespace=access.namespace, owner_uid="0" * 8
    )
    pod = {"apiVersion": "v1", "kind": "Pod", **json.loads(json.dumps(job["spec"]["template"]))}
    pod["metadata"] |= {"name": "e2e-pod", "namespace": access.namespace}
    for of_the_cluster in ("runtimeClassName", "priorityClassName"):
        pod["spec"].pop(of_the_cluster, None)  # classes that this cluster need not have
    access.api.request("POST", f"/apis/batch/v1/namespaces/{access.namespace}/jobs", query=STRICT, body=job)
    access.api.request("POST", f"{installed.core}/pods", query=STRICT, body=pod)
    for thing in more:
        access.api.request("POST", f"{installed.core}/configmaps", query=STRICT, body=thing)


@pytest.mark.parametrize("component", manifests.COMPONENTS)
def test_the_templates_are_accepted_as_they_lie_there(installed: Project, component: Any) -> None:
    path = f"/apis/batch/v1/namespaces/{installed.access.namespace}/jobs"
    installed.access.api.request("POST", path, query=STRICT, body=manifests.load_template(component))


@pytest.mark.parametrize("overlays", [[], ["dev"], ["kueue-roles"], ["kueue"]], ids=lambda v: "+".join(v) or "base")
@pytest.mark.parametrize("hub", [False, True])
def test_everything_installed_is_accepted(installed: Project, overlays: list[str], hub: bool) -> None:
    access = installed.access
    version = kueue_version_of(access)
    if "kueue" in overlays and not version:
        pytest.skip("Kueue is not installed")
    for thing in objects(cluster_settings(hub=hub), access.namespace, overlays):
        if thing["apiVersion"].startswith(KUEUE):
            thing["apiVersion"] = f"{KUEUE}/{version}"
        query = {**STRICT, "fieldManager": "bugurt-e2e", "force": "true"}
        access.api.request("PATCH", path_of(thing), query=query, body=thing, content_type=APPLY_PATCH)


def test_the_secrets_of_the_example_are_accepted(installed: Project) -> None:
    text = (manifests.builtin_folder() / "secrets.example.yaml").read_text(encoding="utf-8")
    for thing in yaml.safe_load_all(text):
        thing["metadata"] |= {"name": f"{thing['metadata']['name']}-e2e", "namespace": installed.access.namespace}
        installed.access.api.request("POST", f"{installed.core}/secrets", query=STRICT, body=thing)


def test_kubectl_applies_what_is_printed(installed: Project) -> None:
    program = [*kubectl(), "apply", "--dry-run=server", "-n", installed.access.namespace, "-f", "-"]
    submit = ("submit", "pipeline", "--source", str(EXPORT), "--profile", "bugurt", "--model", "scratch:tiny")
    queue = ("--queue",) if kueue_version_of(installed.access) else ()
    printed = [
        installed.bugurt("install", "--dev", *queue, "--dry-run"),
        installed.bugurt(*submit, "--dry-run"),
        installed.bugurt(*submit, "--set", "generate.shards=3", "--force", "--dry-run"),
        installed.bugurt("submit", "scrape", "--source", "@made_up_channel", "--dry-run"),
    ]
    for text in printed:
        done = subprocess.run(program, input=text, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "would violate PodSecurity" not in done.stderr
        assert "unknown field" not in done.stderr


@pytest.mark.parametrize("folder", ["base", "overlays/dev", "overlays/hub", "overlays/kueue-roles", "overlays/kueue"])
def test_kubectl_applies_the_folders(installed: Project, folder: str, tmp_path: Path) -> None:
    import shutil

    program = kubectl()
    if folder.endswith("kueue") and not kueue_version_of(installed.access):
        pytest.skip("Kueue is not installed")
    shutil.copytree(manifests.builtin_folder(), tmp_path / "k8s")
    mine = tmp_path / "k8s" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(f"namespace: {installed.access.namespace}\nresources: [../{folder}]\n")
    command = [*program, "apply", "--dry-run=server", "-k", str(mine)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "would violate PodSecurity" not in done.stderr


def test_install_twice_changes_nothing(installed: Project) -> None:
    first = json.loads(installed.bugurt("install", "--dev", "--json"))
    assert {d["what"] for d in first} <= {"created", "unchanged", "kept", "changed"}, first
    again = json.loads(installed.bugurt("install", "--dev", "--json"))
    assert {d["what"] for d in again} <= {"unchanged", "kept"}, again


def test_doctor_finds_nothing_against_the_cluster(installed: Project) -> None:
    """But the images, which are nowhere, and the Service of a server that need not be there."""
    found = json.loads(installed.bugurt("doctor", "--json", code=None))
    about = {
        "cluster",
        "namespace",
        "pod security",
        "permissions",
        "accounts",
        "secret",
        "jobs",
        "queue",
        "gpu",
        "room",
    }
    seen = [f for f in found if f["check"] in about]
    assert {"cluster", "namespace", "pod security", "permissions", "accounts", "jobs"} <= {f["check"] for f in seen}
    assert not [f for f in seen if f["result"] == "fail"], seen


# -- the smallest rights that serve


def may(access: Access, account: str, verb: str, resource: str, group: str = "") -> bool:
    resource, _, sub = resource.partition("/")
    asked = {"namespace": access.namespace, "verb": verb, "group": group, "resource": resource}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{access.namespace}:{account}",
            "resourceAttributes": {**asked, **({"subresource": sub} if sub else {})},
        },
    }
    answer = access.api.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body=body)
    return bool(answer["status"]["allowed"])


def test_accounts_may_what_they_need_and_no_more(installed: Project) -> None:
    access = installed.access
    for verb in ("create", "get", "list", "watch", "patch"):
        # The server's own picture of the Roles follows what was installed a moment ago.
        wait_for(f"the right to {verb} Jobs", lambda v=verb: may(access, "bugurt-driver", v, "jobs", "batch"), 30)
        assert not may(access, "bugurt-stage", verb, "jobs", "batch"), verb
    for resource in ("pods", "events"):
        assert may(access, "bugurt-driver", "list", resource)
    forbidden = [("get", "secrets"), ("list", "secrets"), ("create", "pods"), ("get", "pods/log"), ("list", "nodes")]
    for account in ("bugurt-driver", "bugurt-stage"):
        assert not [f for f in forbidden if may(access, account, *f)]
    assert not may(access, "bugurt-driver", "delete", "jobs", "batch")


def test_a_driver_lives_by_its_own_rights(installed: Project, cluster: KubernetesCluster, tmp_path: Path) -> None:
    """All that a driver calls, with the token that its pod would have."""
    run = f"e2e-{secrets.token_hex(3)}"
    driver = cluster.create(ask("driver", run))
    inside = client(installed.access, tmp_path, as_account(installed.access, "bugurt-driver"))
    child = inside.create(ask("preprocess", run, owner=driver.name))
    assert inside.create(ask("preprocess", run, owner=driver.name)).created == child.created  # adopted
    inside.annotate(child.name, {"artifact": "dataset/0123456789abcdef0123"})
    assert next(iter(inside.watch(child.name))).name == child.name
    assert {j.component for j in inside.list(run)} == {"driver", "preprocess"}
    sentence = f"the image {NOWHERE} cannot be pulled: "
    wait_for("the sentence", lambda: (inside.get(child.name) or child).reason.startswith(sentence), 120)
    with pytest.raises(ConfigError, match="not allowed"):
        inside.delete(child.name)
    cluster.delete(driver.name)
    wait_for("the child's end", lambda: cluster.get(child.name) is None, 120)


# -- one Job, and its end


def test_asking_twice_makes_one_job_and_a_deleted_one_is_made_anew(cluster: KubernetesCluster) -> None:
    wanted = ask("preprocess")
    first, again = cluster.create(wanted), cluster.create(wanted)
    assert first.created == again.created and len(cluster.list(wanted.run)) == 1
    uid = cluster._call("reading", "GET", f"{cluster._jobs}/{wanted.name}")["metadata"]["uid"]
    cluster.delete(wanted.name)
    cluster.create(wanted)
    assert cluster._call("reading", "GET", f"{cluster._jobs}/{wanted.name}")["metadata"]["uid"] != uid
    cluster.delete(wanted.name)
    bounded(f"Job {wanted.name} to be gone", lambda: cluster.watch(wanted.name), 120)
    assert cluster.get(wanted.name) is None
    wait_for("the pods' end", lambda: not cluster.pods(wanted.name), 60)


# -- sentences of causes that need no image


def test_an_image_that_cannot_be_pulled(cluster: KubernetesCluster) -> None:
    reason_of(cluster, ask("preprocess"), f"the image {NOWHERE} cannot be pulled: ")


def test_a_gpu_that_no_node_has(installed: Project, tmp_path: Path) -> None:
    greedy = client(installed.access, tmp_path, preprocess={"gpu": 64})
    assert "tainted (s)" not in reason_of(greedy, ask("preprocess"), "no node has 64 free GPUs (nvidia.com/gpu)")


def test_more_memory_than_a_node_has(installed: Project, tmp_path: Path) -> None:
    greedy = client(installed.access, tmp_path, preprocess={"memory": "900Ti"})
    reason_of(greedy, ask("preprocess"), "no node has 900Ti of memory free")


def test_more_disk_than_a_node_has(installed: Project, tmp_path: Path) -> None:
    greedy = client(installed.access, tmp_path, preprocess={"disk": "900Ti"})
    reason_of(greedy, ask("preprocess"), "no node has 900Ti of ephemeral-storage free")


def test_a_pod_that_pod_security_refuses(installed: Project, tmp_path: Path) -> None:
    careless = client(installed.access, tmp_path)
    path = Path(careless.settings.cluster.templates or "") / "preprocess.yaml"
    path.write_text(path.read_text().replace("runAsNonRoot: true", "runAsNonRoot: false"))
    manifests._read_template.cache_clear()
    assert "runAsNonRoot" in reason_of(careless, ask("preprocess"), "pod security refuses the pod: ")


def test_a_job_suspended_by_hand(cluster: KubernetesCluster) -> None:
    made = cluster.create(ask("preprocess"))
    path = f"{cluster._jobs}/{made.name}"
    cluster._call("suspending", "PATCH", path, body={"spec": {"suspend": True}},
                  content_type="application/merge-patch+json")  # fmt: skip
    found = wait_for("its state", lambda: (s := cluster.get(made.name)) and s.state is JobState.SUSPENDED and s, 60)
    assert found.reason.startswith("suspended by hand")


def test_a_missing_account_and_a_full_quota(tmp_path: Path) -> None:
    """In a namespace of their own, as a quota hinders everybody."""
    with own_namespace() as access:
        cluster = client(access, tmp_path)
        begins = f"ServiceAccount bugurt-stage is missing in namespace {access.namespace}"
        reason_of(cluster, ask("preprocess"), begins)
        install_base(access)
        core = f"/api/v1/namespaces/{access.namespace}"
        quota = {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "team"},
            "spec": {"hard": {"pods": "0"}},
        }
        access.api.request("POST", f"{core}/resourcequotas", body=quota)
        wait_for("the quota", lambda: access.api.request("GET", f"{core}/resourcequotas/team").get("status"), 60)
        begins = f"the ResourceQuota team of namespace {access.namespace} is full: "
        reason_of(cluster, ask("generate"), begins)


def test_what_others_have_changed_is_kept(installed: Project) -> None:
    """A conflict of server-side apply is told, and not fought over."""
    path = f"/apis/networking.k8s.io/v1/namespaces/{installed.access.namespace}/networkpolicies/bugurt-telegram"
    query = {"fieldManager": "somebody-else", "force": "true"}
    theirs = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "bugurt-telegram"}}
    theirs["spec"] = {"podSelector": {}, "egress": [{"ports": [{"protocol": "TCP", "port": 1}]}]}
    installed.access.api.request("PATCH", path, query=query, body=theirs, content_type=APPLY_PATCH)
    ours = [o for o in objects(cluster_settings(), installed.access.namespace) if path_of(o) == path]
    assert [d["what"] for d in apply_all(installed.access, ours, force=False)] == ["kept"]
    assert [d["what"] for d in apply_all(installed.access, ours, force=True)] == ["changed"]
