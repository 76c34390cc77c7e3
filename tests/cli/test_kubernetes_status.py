"""Why a Job waits or failed: sentences for objects as real API servers give them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cli.clusters.base import JobRequest, JobState, job_name
from cli.clusters.kubernetes_status import count_indexes, job_status, pod_failure, said
from tests.cli.fake_cluster import ControlPlane, FakeCluster, cluster_settings

Object = dict[str, Any]


def job(*conditions: Object, **spec: Any) -> Object:
    status = spec.pop("status", {})
    labels = {"app.kubernetes.io/instance": "run-a", "app.kubernetes.io/component": "train", **spec.pop("labels", {})}
    meta = {"name": "run-a-train-01234567", "namespace": "bugurt", "labels": labels, "uid": "u"}
    return {"metadata": meta, "spec": {"backoffLimit": 4, **spec}, "status": {"conditions": list(conditions), **status}}


def pod(phase: str = "Pending", *, state: Object | None = None, conditions: Any = (), **status: Any) -> Object:
    container = {"name": "stage", "image": "registry.example.org/team/train:1.0", "state": state or {}}
    resources = {"requests": {"memory": "24Gi", "cpu": "4"}, "limits": {"memory": "24Gi", "nvidia.com/gpu": 1}}
    return {
        "metadata": {
            "name": "run-a-train-01234567-x7x2k",
            "namespace": "bugurt",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app.kubernetes.io/component": "train"},
        },
        "spec": {"containers": [{"name": "stage", "resources": resources}], "nodeSelector": {"disk": "ssd"}},
        "status": {
            "phase": phase,
            "conditions": list(conditions),
            "containerStatuses": [container] if state else [],
            **status,
        },
    }


def condition(kind: str, reason: str = "", message: str = "", status: str = "True") -> Object:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def waiting(reason: str, message: str = "") -> Object:
    return {"waiting": {"reason": reason, "message": message}}


def ended(code: int, reason: str = "Error", message: str = "") -> Object:
    return {
        "terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": "2026-01-01T00:05:00Z"}
    }


def event(thing: Object, reason: str, message: str, at: str = "2026-01-01T00:01:00Z") -> Object:
    return {
        "involvedObject": {"name": thing["metadata"]["name"]},
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
    }


def unschedulable(message: str) -> Object:
    return pod(conditions=[condition("PodScheduled", "Unschedulable", message, "False")])


#: name -> (pod, events on it, the sentence)
WAITING: dict[str, tuple[Object, list[tuple[str, str]], str]] = {
    "no free gpu, in the words of newer schedulers": (
        unschedulable(
            "0/5 nodes are available: 1 node(s) had untolerated taint(s), 4 Insufficient nvidia.com/gpu. "
            "no new claims to deallocate, preemption: 0/5 nodes are available: 5 Preemption is not helpful for "
            "scheduling."
        ),
        [],
        "no node has 1 free GPU (nvidia.com/gpu); 1 of 5 tainted: see `tolerations` in [cluster]",
    ),
    "only tainted nodes, in the words of newer schedulers": (
        unschedulable("0/1 nodes are available: 1 node(s) had untolerated taint(s). preemption: 0/1 nodes are …"),
        [],
        "all nodes have taints that the pod does not tolerate: see `tolerations` in [cluster]",
    ),
    "no free gpu": (
        unschedulable(
            "0/5 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, "
            "4 Insufficient nvidia.com/gpu. preemption: 0/5 nodes are available: 1 Preemption is not helpful for "
            "scheduling, 4 No preemption victims found for incoming pod."
        ),
        [],
        "no node has 1 free GPU (nvidia.com/gpu); 1 of 5 tainted (node-role.kubernetes.io/control-plane): "
        "see `tolerations` in [cluster]",
    ),
    "gpu and memory": (
        unschedulable("0/3 nodes are available: 1 Insufficient memory, 3 Insufficient nvidia.com/gpu."),
        [],
        "no node has 1 free GPU (nvidia.com/gpu); 1 lack memory",
    ),
    "no memory": (
        unschedulable("0/2 nodes are available: 2 Insufficient memory. preemption: not eligible"),
        [],
        "no node has 24Gi of memory free",
    ),
    "no cpu": (unschedulable("0/2 nodes are available: 2 Insufficient cpu."), [], "no node has 4 CPU free"),
    "no disk": (
        unschedulable("0/2 nodes are available: 2 Insufficient ephemeral-storage."),
        [],
        "no node has enough of ephemeral-storage free",
    ),
    "selector": (
        unschedulable("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."),
        [],
        "no node matches the node selector disk=ssd: see `node_selector` in [cluster.train]",
    ),
    "taints": (
        unschedulable("0/1 nodes are available: 1 node(s) had untolerated taint {dedicated: db}."),
        [],
        "all nodes have taints that the pod does not tolerate: see `tolerations` in [cluster]",
    ),
    "no nodes": (unschedulable("no nodes available to schedule pods"), [], "the cluster has no node that takes pods"),
    "volume": (
        unschedulable("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
        [],
        "no node takes the pod: 0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
    ),
    "gate": (
        pod(conditions=[condition("PodScheduled", "SchedulingGated", "", "False")]),
        [],
        "a scheduling gate holds the pod back",
    ),
    "image, back-off": (
        pod(state=waiting("ImagePullBackOff", 'Back-off pulling image "registry.example.org/team/train:1.0"')),
        [
            (
                "Failed",
                'Failed to pull image "registry.example.org/team/train:1.0": failed to pull and unpack image: '
                "failed to resolve reference: registry.example.org/team/train:1.0: not found",
            )
        ],
        "the image registry.example.org/team/train:1.0 cannot be pulled: there is no such image or tag: "
        "build and push it (make images), or set `registry` and `tag` in [cluster]",
    ),
    "image, credentials": (
        pod(
            state=waiting("ErrImagePull", "pull access denied, repository does not exist or may require authorization")
        ),
        [],
        "the image registry.example.org/team/train:1.0 cannot be pulled: there is no such image or tag: "
        "build and push it (make images), or set `registry` and `tag` in [cluster], and `image_pull_secret` if it is "
        "private",
    ),
    "image, forbidden": (
        pod(state=waiting("ErrImagePull", "unexpected status from HEAD request: 403 Forbidden")),
        [],
        "the image registry.example.org/team/train:1.0 cannot be pulled: the registry refuses access; "
        "set cluster.image_pull_secret",
    ),
    "image, registry": (
        pod(state=waiting("ErrImagePull", "dial tcp: lookup registry.example.org: no such host")),
        [],
        "the image registry.example.org/team/train:1.0 cannot be pulled: the registry is out of reach: "
        "dial tcp: lookup registry.example.org: no such host",
    ),
    "image, name": (
        pod(state=waiting("InvalidImageName", 'Failed to apply default image tag "UPPER": invalid reference format')),
        [],
        "the image registry.example.org/team/train:1.0 cannot be pulled: that is no image's name; "
        "look at cluster.registry and cluster.tag",
    ),
    "image, never": (
        pod(state=waiting("ErrImageNeverPull", "Container image is not present with pull policy of Never")),
        [],
        "the node does not have the image registry.example.org/team/train:1.0 and is told not to pull it: import it "
        "into the node again (docs/cluster.md), or set `registry` in [cluster]",
    ),
    "secret": (
        pod(state=waiting("CreateContainerConfigError", 'secret "bugurt-s3" not found')),
        [],
        "Secret bugurt-s3 is missing in namespace bugurt; `bugurt install --s3-secret` makes it",
    ),
    "telegram secret": (
        pod(state=waiting("CreateContainerConfigError", 'secret "bugurt-telegram" not found')),
        [],
        "Secret bugurt-telegram is missing in namespace bugurt; `bugurt login` makes it",
    ),
    "key": (
        pod(state=waiting("CreateContainerConfigError", "couldn't find key TOKEN in Secret bugurt/own")),
        [],
        "Secret bugurt/own has no key TOKEN",
    ),
    "root": (
        pod(
            state=waiting(
                "CreateContainerConfigError", "container has runAsNonRoot and image will run as root (pod: x)"
            )
        ),
        [],
        "the image wants to run as root, which the pod forbids: container has runAsNonRoot and image will run as root "
        "(pod: x)",
    ),
    "runtime": (
        pod(state=waiting("CreateContainerError", "context deadline exceeded")),
        [],
        "the container cannot start (CreateContainerError): context deadline exceeded",
    ),
    "mount": (
        pod(state=waiting("ContainerCreating")),
        [("FailedMount", 'MountVolume.SetUp failed for volume "templates": configmap "own" not found')],
        'a volume cannot be mounted: MountVolume.SetUp failed for volume "templates": configmap "own" not found',
    ),
    "mount, certificates": (
        pod(state=waiting("ContainerCreating")),
        [("FailedMount", 'MountVolume.SetUp failed for volume "bugurt-ca": configmap "bugurt-ca" not found')],
        'a volume cannot be mounted: MountVolume.SetUp failed for volume "bugurt-ca": configmap "bugurt-ca" not found; '
        "`bugurt install` makes it",
    ),
    "sandbox": (
        pod(state=waiting("ContainerCreating")),
        [("FailedCreatePodSandBox", "failed to setup network for sandbox")],
        "the node cannot set up the pod: failed to setup network for sandbox",
    ),
    "sandbox, container toolkit": (
        pod(state=waiting("ContainerCreating")),
        [
            (
                "FailedCreatePodSandBox",
                "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to get sandbox runtime: no "
                'runtime for "nvidia" is configured',
            )
        ],
        "the node cannot set up the pod: Failed to create pod sandbox: rpc error: code = Unknown desc = failed to get "
        'sandbox runtime: no runtime for "nvidia" is configured; install NVIDIA\'s container toolkit on the node and '
        "start k3s (or containerd) again",
    ),
    "taints and selector": (
        unschedulable(
            "0/3 nodes are available: 1 node(s) had untolerated taint {dedicated: db}, 2 node(s) didn't match Pod's "
            "node affinity/selector."
        ),
        [],
        "no node matches the node selector disk=ssd: see `node_selector` in [cluster.train]; 1 of 3 tainted "
        "(dedicated: db): see `tolerations` in [cluster]",
    ),
    "gpu and selector": (
        unschedulable(
            "0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) didn't match Pod's node "
            "affinity/selector."
        ),
        [],
        "no node has 1 free GPU (nvidia.com/gpu); 2 of 3 do not match the node selector: "
        "see `node_selector` in [cluster.train]",
    ),
    "pulling": (
        pod(state=waiting("ContainerCreating")),
        [("Scheduled", "Successfully assigned"), ("Pulling", 'Pulling image "registry.example.org/team/train:1.0"')],
        'the node is pulling the image ("registry.example.org/team/train:1.0")',
    ),
    "starting": (pod(state=waiting("ContainerCreating")), [], ""),
}


@pytest.mark.parametrize("name", WAITING)
def test_why_a_pod_waits(name: str) -> None:
    thing, events, sentence = WAITING[name]
    found = job_status(job(status={"active": 1}), [thing], [event(thing, r, m) for r, m in events])
    assert (found.state, found.reason) == (JobState.PENDING, sentence)


def test_many_pods_that_wait_for_the_same_are_one_sentence() -> None:
    pods = [unschedulable("0/2 nodes are available: 2 Insufficient cpu.") for _ in range(3)]
    for number, thing in enumerate(pods):
        thing["metadata"]["name"] += str(number)
    found = job_status(job(status={"active": 4, "ready": 1}), [*pods, pod("Running")])
    assert (found.state, found.reason) == (JobState.RUNNING, "3 pods: no node has 4 CPU free")


FORBIDDEN = 'Error creating: pods "run-a-x" is forbidden: '

#: name -> (message of a FailedCreate event, sentence)
NOT_CREATED: dict[str, tuple[str, str]] = {
    "quota": (
        f"{FORBIDDEN}exceeded quota: team, requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=4, "
        "limited: requests.nvidia.com/gpu=4",
        "the ResourceQuota team of namespace bugurt is full: requested: requests.nvidia.com/gpu=1, "
        "used: requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=4",
    ),
    "pod security": (
        f'{FORBIDDEN}violates PodSecurity "restricted:latest": privileged (container "stage" must not be privileged)',
        'pod security refuses the pod: "restricted:latest": privileged (container "stage" must not be privileged)',
    ),
    "account": (
        f'{FORBIDDEN}error looking up service account bugurt/bugurt-stage: serviceaccount "bugurt-stage" not found',
        "ServiceAccount bugurt-stage is missing in namespace bugurt; `bugurt install` makes it",
    ),
    "priority": (
        f"{FORBIDDEN}no PriorityClass with name urgent was found",
        "there is no PriorityClass urgent",
    ),
    "limits": (
        f"{FORBIDDEN}failed quota: team: must specify limits.cpu for: stage",
        f"the namespace's quota wants more said: {FORBIDDEN}failed quota: team: must specify limits.cpu for: stage",
    ),
    "webhook": (
        "Error creating: Internal error occurred: failed calling webhook",
        "the pod cannot be created: Error creating: Internal error occurred: failed calling webhook",
    ),
}


@pytest.mark.parametrize("name", NOT_CREATED)
def test_why_a_job_has_no_pod(name: str) -> None:
    message, sentence = NOT_CREATED[name]
    thing = job()
    found = job_status(thing, [], [event(thing, "FailedCreate", message)])
    assert (found.state, found.reason) == (JobState.PENDING, sentence)


LOG = json.dumps({"time": "t", "level": "error", "message": "the dataset has no posts"})

#: name -> (pod, sentence, exit code)
FAILED: dict[str, tuple[Object, str, int | None]] = {
    "out of memory": (
        pod("Failed", state=ended(137, "OOMKilled")),
        "out of memory: the limit is 24Gi; raise `memory` in [cluster.train] or ask for smaller batches",
        137,
    ),
    "evicted": (
        pod(
            "Failed",
            state=ended(137),
            conditions=[condition("DisruptionTarget", "TerminationByKubelet", "The node was low on resource: memory.")],
            reason="Evicted",
            message="The node was low on resource: memory. Threshold quantity: 100Mi, available: 20Mi.",
        ),
        "evicted by its node: The node was low on resource: memory. Threshold quantity: 100Mi, available: 20Mi.",
        137,
    ),
    "drained": (
        pod("Failed", state=ended(143), conditions=[condition("DisruptionTarget", "EvictionByEvictionAPI", "")]),
        "it was evicted: its node is being drained",
        143,
    ),
    "displaced": (
        pod(
            "Failed",
            state=ended(143),
            conditions=[condition("DisruptionTarget", "PreemptionByScheduler", "default-scheduler: preempting")],
        ),
        "a pod of higher priority took its place (default-scheduler: preempting)",
        143,
    ),
    "lost node": (
        pod("Failed", conditions=[condition("DisruptionTarget", "DeletionByPodGC", "PodGC: node no longer exists")]),
        "its node is gone (PodGC: node no longer exists)",
        None,
    ),
    "bad data": (pod("Failed", state=ended(65, message=f"noise\n{LOG}\n")), "the dataset has no posts", 65),
    "no log": (pod("Failed", state=ended(64)), "exit code 64 (the spec is wrong)", 64),
    "sigkill": (pod("Failed", state=ended(137, message="step 12")), "exit code 137 (killed by SIGKILL)", 137),
    "no such program": (
        pod("Failed", state=ended(128, "StartError", 'exec: "python": executable file not found in $PATH')),
        'the container could not start: exec: "python": executable file not found in $PATH',
        128,
    ),
    "a node that was started again": (
        pod("Failed", state=ended(255, "Unknown")),
        "its node was started again or lost the container",
        255,
    ),
    "a container that the kubelet cannot find": (
        pod(
            "Failed",
            state=ended(
                137,
                "ContainerStatusUnknown",
                "The container could not be located when the pod was terminated",
            ),
        ),
        "its node was started again or lost the container",
        137,
    ),
    "devices": (
        pod(
            "Failed",
            reason="UnexpectedAdmissionError",
            message="Allocate failed due to requested number of devices unavailable for nvidia.com/gpu.",
        ),
        "UnexpectedAdmissionError: Allocate failed due to requested number of devices unavailable for nvidia.com/gpu.",
        None,
    ),
}


@pytest.mark.parametrize("name", FAILED)
def test_why_a_pod_failed(name: str) -> None:
    thing, sentence, code = FAILED[name]
    assert pod_failure(thing) == (sentence, code)
    again = job_status(job(status={"failed": 1}), [thing])
    assert (again.state, again.reason) == (JobState.PENDING, f"tries again after: {sentence}")
    running = pod("Running")
    running["metadata"]["creationTimestamp"] = "2026-01-01T01:00:00Z"
    assert job_status(job(status={"ready": 1}), [thing, running]).reason == f"goes on after a lost try: {sentence}"


POLICY = "Container stage for pod bugurt/{name} failed with exit code 65 matching FailJob rule at index 0"

#: name -> (condition, spec, pods, sentence, exit code)
JOB_FAILED: dict[str, tuple[Object, Object, list[Object], str, int | None]] = {
    "policy": (
        condition("Failed", "PodFailurePolicy", POLICY.format(name="run-a-train-01234567-x7x2k")),
        {},
        [FAILED["bad data"][0]],
        "the dataset has no posts",
        65,
    ),
    "policy, pod gone": (
        condition("Failed", "PodFailurePolicy", POLICY.format(name="gone")),
        {},
        [],
        "exit code 65 (the input data is wrong)",
        65,
    ),
    "retries": (
        condition("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"),
        {},
        [FAILED["out of memory"][0]],
        "gave up after 5 tries: " + FAILED["out of memory"][1],
        137,
    ),
    "retries, pods gone": (
        condition("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"),
        {},
        [],
        "gave up after 5 tries",
        None,
    ),
    "deadline": (
        condition("Failed", "DeadlineExceeded", "Job was active longer than specified deadline"),
        {"activeDeadlineSeconds": 7200},
        [],
        "it ran longer than its 7200 s (activeDeadlineSeconds)",
        None,
    ),
    "indexes": (
        condition("Failed", "FailedIndexes", "Job has failed indexes"),
        {"completionMode": "Indexed", "completions": 20},
        [FAILED["bad data"][0]],
        "3 of 20 shards failed: the dataset has no posts",
        65,
    ),
}


@pytest.mark.parametrize("name", JOB_FAILED)
def test_why_a_job_failed(name: str) -> None:
    cause, spec, pods, sentence, code = JOB_FAILED[name]
    found = job_status(job(cause, status={"failedIndexes": "0,4-5"}, **spec), pods)
    assert (found.state, found.reason, found.exit_code) == (JobState.FAILED, sentence, code)


QUEUE = {"kueue.x-k8s.io/queue-name": "gpu"}
QUOTA = (
    "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor a, 1 more needed"
)

#: name -> (workload, sentence)
SUSPENDED: dict[str, tuple[Object | None, str]] = {
    "not seen": (
        None,
        "waits in queue gpu; Kueue has not taken note of it yet: is Kueue installed and the queue there?",
    ),
    "no quota": (
        {"status": {"conditions": [condition("QuotaReserved", "Pending", QUOTA, "False")]}},
        f"waits in queue gpu for quota: {QUOTA}",
    ),
    "no queue": (
        {
            "status": {
                "conditions": [condition("QuotaReserved", "Inadmissible", "LocalQueue gpu doesn't exist", "False")]
            }
        },
        "queue gpu cannot take it: LocalQueue gpu doesn't exist",
    ),
    "preempted": (
        {
            "status": {
                "conditions": [
                    condition("QuotaReserved", "Pending", QUOTA, "False"),
                    condition("Evicted", "Preempted", "Preempted to accommodate a workload (UID: 1) due to priority"),
                ]
            }
        },
        "back in queue gpu: work of higher priority took its quota "
        "(Preempted to accommodate a workload (UID: 1) due to priority)",
    ),
    "stopped": (
        {"status": {"conditions": [condition("Evicted", "ClusterQueueStopped", "The ClusterQueue is stopped")]}},
        "back in queue gpu: the ClusterQueue was stopped (The ClusterQueue is stopped)",
    ),
    "deactivated": (
        {"spec": {"active": False}, "status": {"conditions": [condition("Evicted", "Deactivated", "by an admin")]}},
        "queue gpu has deactivated it: by an admin",
    ),
    "checks": (
        {
            "status": {
                "conditions": [condition("QuotaReserved", "QuotaReserved", "Quota reserved")],
                "admissionChecks": [{"name": "capacity", "state": "Pending"}],
            }
        },
        "has its quota in queue gpu and waits for admission: capacity is pending",
    ),
}


@pytest.mark.parametrize("name", SUSPENDED)
def test_why_a_queue_holds_a_job_back(name: str) -> None:
    workload, sentence = SUSPENDED[name]
    found = job_status(job(suspend=True, labels=QUEUE), [], [], workload)
    assert (found.state, found.reason) == (JobState.SUSPENDED, sentence)


def test_kueue_makes_no_workload_of_a_job_whose_priority_it_does_not_know() -> None:
    labels = {**QUEUE, "kueue.x-k8s.io/priority-class": "urgent"}
    assert job_status(job(suspend=True, labels=labels)).reason == (
        "waits in queue gpu; Kueue has not taken note of it yet: is Kueue installed, and the queue and the "
        "WorkloadPriorityClass urgent there?"
    )


def test_who_may_not_read_workloads_is_told_that() -> None:
    plane = ControlPlane(kueue=True)
    plane.queue_open = False
    plane.denied.add(("get", "workloads"))
    cluster = FakeCluster(plane=plane, settings=cluster_settings(queue="gpu"))
    name = job_name("mine", "train", None, 1)
    cluster.create(JobRequest(name=name, run="mine", component="train", spec={"stage": "train"}))
    plane.settle(3)
    found = cluster.get(name)
    assert found is not None and found.reason == (
        "waits in queue gpu; why is told only to who may read Kueue's Workloads (Role bugurt-user-kueue; the driver's "
        "is bugurt-driver-kueue)"
    )


def test_a_job_without_a_queue_was_suspended_by_hand_or_by_kueue() -> None:
    sentence = (
        'suspended by hand (`kubectl patch job run-a-train-01234567 -n bugurt -p \'{"spec":{"suspend":false}}\'` '
        "lets it go on), or by a Kueue that manages Jobs without a queue, too: "
    )
    remedy = "set `queue` in [cluster], or exempt the namespace from it"
    assert job_status(job(suspend=True)).reason == sentence + remedy
    # Setting a queue does not change the driver's Job: it is never queued.
    remedy = "give the driver a template with the queue's label (docs/cluster.md)"
    driver = job(suspend=True, labels={"app.kubernetes.io/component": "driver"})
    assert job_status(driver).reason == sentence + remedy


def test_a_retry_that_waits_names_both() -> None:
    thing = unschedulable("0/2 nodes are available: 2 Insufficient cpu.")
    found = job_status(job(status={"failed": 1}), [FAILED["bad data"][0], thing])
    assert found.reason == "no node has 4 CPU free (the try before: the dataset has no posts)"
    assert found.restarts == 1


def test_a_job_that_is_about_to_fail_says_why() -> None:
    """The controller decides (FailureTarget) before the last pod is gone (Failed): in between it waits for nothing."""
    message = (
        "Container stage for pod bugurt/run-a-train-01234567-x7x2k failed with exit code 65 matching FailJob rule at "
        "index 0"
    )
    decided = condition("FailureTarget", "PodFailurePolicy", message)
    status = {"failed": 1, "active": 0, "ready": 0, "terminating": 1}
    found = job_status(job(decided, status=status), [FAILED["bad data"][0], pod("Running")])
    assert found.state is JobState.RUNNING
    assert found.reason == "fails, and its pods are being stopped: the dataset has no posts"


def test_a_job_that_is_being_deleted_says_so() -> None:
    thing = job(status={"ready": 1})
    thing["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert job_status(thing).reason == "is being stopped"


@pytest.mark.parametrize(("text", "count"), [(None, 0), ("", 0), ("3", 1), ("0-4", 5), ("0,2-3,7", 4), ("1-", 1)])
def test_indexes_are_counted(text: str | None, count: int) -> None:
    assert count_indexes(text) == count


def test_the_last_word_of_a_log_that_was_cut() -> None:
    cut = 'ge": "cut in the middle"}\n' + json.dumps({"message": "the real word"}) + "\nNative stack trace"
    assert said(cut) == "the real word"
    assert said("Traceback\nValueError: no") == "ValueError: no"
    assert said(None) == ""
    assert len(said("x" * 10_000)) == 400
