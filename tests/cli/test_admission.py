"""The rules of an API server that the fake holds everything to: each refuses what breaks it, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from cli.clusters.base import JobState
from cli.manifests import COMPONENTS, load_template
from jobs.specs import ConfigError
from tests.cli.admission import job_errors, meta_errors, pod_errors, restricted_errors
from tests.cli.fake_cluster import FakeCluster, cluster_settings, request_for
from tests.cli.test_manifests import all_jobs, render

Object = dict[str, Any]


def pod_of(job: Object) -> Object:
    found: Object = job["spec"]["template"]["spec"]
    return found


def stage_of(job: Object) -> Object:
    found: Object = pod_of(job)["containers"][0]
    return found


@pytest.mark.parametrize(("name", "job"), list(all_jobs()), ids=lambda v: v if isinstance(v, str) else "")
def test_all_that_is_made_is_accepted(name: str, job: Object) -> None:
    assert job_errors(job) == []
    assert restricted_errors(pod_of(job)) == []


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_templates_are_jobs_themselves(component: Any) -> None:
    job = load_template(component)
    assert job_errors(job) == []
    assert restricted_errors(pod_of(job)) == []


def put(*path: Any, value: Any) -> Callable[[Object], None]:
    """Set a value inside of a Job."""

    def change(job: Object) -> None:
        place: Any = job
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


RULES = ("spec", "podFailurePolicy", "rules")
STAGE = ("spec", "template", "spec", "containers", 0)
#: what is done to a valid Job of 25 shards -> what the server says
BROKEN: dict[str, tuple[Callable[[Object], None], str]] = {
    "a name in capitals": (put("metadata", "name", value="Run-A"), "metadata.name"),
    "a name too long for a shard's host": (put("metadata", "name", value="a" * 61), "invalid DNS label"),
    "a label of a sentence": (put("metadata", "labels", "note", value="two words"), "a valid label"),
    "a label too long": (put("metadata", "labels", "note", value="x" * 64), "a valid label"),
    "a number for a label": (put("spec", "template", "metadata", "labels", "n", value=1), "a valid label"),
    "too large annotations": (put("metadata", "annotations", "spec", value="x" * 262_145), "Too long"),
    "an owner without a uid": (put("metadata", "ownerReferences", 0, "uid", value=""), "uid: Required"),
    "restarts": (put("spec", "template", "spec", "restartPolicy", value="OnFailure"), 'only "Never"'),
    "no restart policy": (put("spec", "template", "spec", "restartPolicy", value=None), "restartPolicy: Required"),
    "replaced while it goes": (put("spec", "podReplacementPolicy", value="TerminatingOrFailed"), '"Failed"'),
    "not indexed": (put("spec", "completionMode", value="NonIndexed"), "requires indexed completion mode"),
    "no such mode": (put("spec", "completionMode", value="Sorted"), "Unsupported value"),
    "more may fail than there are": (put("spec", "maxFailedIndexes", value=26), "less than or equal to completions"),
    "codes out of order": (put(*RULES, 0, "onExitCodes", "values", value=[78, 64]), "must be ordered"),
    "a code twice": (put(*RULES, 0, "onExitCodes", "values", value=[64, 64]), "duplicates"),
    "success as a failure": (put(*RULES, 0, "onExitCodes", "values", value=[0, 64]), "must not be 0"),
    "no code": (put(*RULES, 0, "onExitCodes", "values", value=[]), "at least one value"),
    "another container": (put(*RULES, 0, "onExitCodes", "containerName", value="main"), "one of the container"),
    "no such action": (put(*RULES, 0, "action", value="Retry"), "Unsupported value"),
    "a rule for nothing": (put(*RULES, 0, value={"action": "FailJob"}), "specifying one of"),
    "a condition without a status": (put(*RULES, 2, "onPodConditions", 0, value={"type": "X"}), "status: Required"),
    "no image": (put(*STAGE, "image", value=" "), "image: Required"),
    "no such pull policy": (put(*STAGE, "imagePullPolicy", value="Sometimes"), "imagePullPolicy"),
    "a number for a variable": (put(*STAGE, "env", 0, "value", value=1), "must be a string"),
    "a variable too large to start": (put(*STAGE, "env", 0, "value", value="x" * 131_072), "128 KiB"),
    "a mount of nothing": (put(*STAGE, "volumeMounts", 0, "name", value="none"), "Not found"),
    "two mounts at one place": (put(*STAGE, "volumeMounts", 0, "mountPath", value="/work"), "must be unique"),
    "more asked for than allowed": (put(*STAGE, "resources", "requests", "memory", value="99Gi"), "memory limit"),
    "memory in words": (put(*STAGE, "resources", "limits", "memory", value="12 GB"), "quantities must match"),
    "a GPU without a limit": (put(*STAGE, "resources", "requests", "nvidia.com/gpu", value=1), "limit must be set"),
    "half a GPU": (put(*STAGE, "resources", "limits", "nvidia.com/gpu", value=0.5), "must be an integer"),
    "a service with a dot": (put("spec", "template", "spec", "subdomain", value="a.b"), "subdomain"),
    "a toleration of all and one": (
        put("spec", "template", "spec", "tolerations", 0, "value", value="x"),
        "value must be empty",
    ),
    "a volume of two kinds": (
        put("spec", "template", "spec", "volumes", 0, "configMap", value={"name": "x"}),
        "one volume type",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_a_rule_is_refused(name: str) -> None:
    change, sentence = BROKEN[name]
    job = copy.deepcopy(render("generate-shards"))
    change(job)
    errors = job_errors(job)
    assert any(sentence in e for e in errors), errors


def test_a_shards_failure_needs_a_limit_for_each() -> None:
    job = copy.deepcopy(render("generate-shards"))
    del job["spec"]["backoffLimitPerIndex"]
    assert {e.partition(":")[0] for e in job_errors(job)} == {
        "spec.backoffLimitPerIndex",
        "spec.podFailurePolicy.rules[1].action",
    }


INSECURE: dict[str, tuple[Callable[[Object], None], str]] = {
    "root": (put(*STAGE, "securityContext", "runAsUser", value=0), "runAsUser=0"),
    "may be root": (put("spec", "template", "spec", "securityContext", "runAsNonRoot", value=False), "runAsNonRoot"),
    "may gain privileges": (
        put(*STAGE, "securityContext", "allowPrivilegeEscalation", value=True),
        "allowPrivilegeEscalation",
    ),
    "capabilities": (put(*STAGE, "securityContext", "capabilities", value={}), "unrestricted capabilities"),
    "no seccomp": (put("spec", "template", "spec", "securityContext", "seccompProfile", value={}), "seccompProfile"),
    "the node's network": (put("spec", "template", "spec", "hostNetwork", value=True), "host namespaces"),
    "the node's disk": (
        put("spec", "template", "spec", "volumes", 0, value={"name": "tmp", "hostPath": {"path": "/"}}),
        "restricted volume types",
    ),
}


@pytest.mark.parametrize("name", INSECURE)
def test_what_is_not_restricted_is_refused(name: str) -> None:
    change, sentence = INSECURE[name]
    job = copy.deepcopy(render("train"))
    change(job)
    errors = restricted_errors(pod_of(job))
    assert len(errors) == 1 and sentence in errors[0]


def test_names_that_are_names() -> None:
    assert list(meta_errors({"name": "a.b-c", "labels": {"app.kubernetes.io/name": "", "x": "1.0_a"}})) == []
    assert list(meta_errors({"labels": {"-bad/name": "x"}})) and list(meta_errors({"labels": {"a/b c": "x"}}))
    assert pod_errors({"containers": []}) == ["spec.containers: Required value"]


def test_the_fake_refuses_as_a_server_does(tmp_path: Any) -> None:
    from tests.cli.worlds import write_templates

    write_templates(tmp_path)
    text = (tmp_path / "train.yaml").read_text(encoding="utf-8")
    (tmp_path / "train.yaml").write_text(text.replace("- 64\n", "- 99\n", 1), encoding="utf-8")
    cluster = FakeCluster(settings=cluster_settings(templates=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"Job.batch .* is invalid: .*must be ordered"):
        cluster.create(request_for("train"))


def test_a_pod_that_pod_security_refuses_is_told(tmp_path: Any) -> None:
    from tests.cli.worlds import write_templates

    write_templates(tmp_path)
    text = (tmp_path / "train.yaml").read_text(encoding="utf-8")
    (tmp_path / "train.yaml").write_text(text.replace("runAsNonRoot: true", "runAsNonRoot: false"), encoding="utf-8")
    cluster = FakeCluster(settings=cluster_settings(templates=str(tmp_path)))
    made = cluster.create(request_for("train"))  # a Job is taken: it is its pods that are looked at
    cluster.plane.settle(5)
    found = cluster.get(made.name)
    assert found is not None and found.state is JobState.PENDING
    assert found.reason.startswith("pod security refuses the pod: ") and "runAsNonRoot != true" in found.reason


def test_a_job_deleted_without_a_word_leaves_its_pods() -> None:
    """Why each deletion says how: the default of batch/v1 is to orphan."""
    cluster = FakeCluster()
    cluster.plane.hold("train")
    made = cluster.create(request_for("train"))
    cluster.plane.settle(5)
    cluster.plane.request("DELETE", f"/apis/batch/v1/namespaces/bugurt/jobs/{made.name}")
    cluster.plane.settle(5)
    assert cluster.get(made.name) is None and len(cluster.pods(made.name)) == 1
    again = cluster.create(request_for("train", name="run-b-train-0123abcd"))
    cluster.plane.settle(5)
    cluster.delete(again.name)
    cluster.plane.settle(5)
    assert cluster.pods(again.name) == []
