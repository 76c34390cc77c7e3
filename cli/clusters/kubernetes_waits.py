"""Why a Job does not run yet, in one sentence: it is suspended, or its pods wait. Pure functions, as in its status."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from cli.clusters.kubernetes_objects import COMPONENT_LABEL, QUEUE_LABEL, Object, conditions, holds, one_line
from cli.manifests import PRIORITY_LABEL

_IMAGE_REASONS = {
    "ImagePullBackOff",
    "ErrImagePull",
    "InvalidImageName",
    "RegistryUnavailable",
    "ImageInspectError",
    "SignatureValidationFailed",
}

#: Stands for a Workload that may not be read.
HIDDEN: dict[str, Any] = {}


def why_suspended(job: Object, workload: Object | None) -> str:
    """By a queue, or by hand. ``workload``: Kueue's, None where it made none, HIDDEN where it may not be read."""
    labels = job["metadata"].get("labels") or {}
    queue = labels.get(QUEUE_LABEL)
    if queue is None:
        name, namespace = job["metadata"]["name"], job["metadata"].get("namespace", "")
        patch = f'kubectl patch job {name} -n {namespace} -p \'{{"spec":{{"suspend":false}}}}\''
        # To exempt the namespace helps only where nothing is queued: Kueue then lets no Job with a queue go on there.
        remedy = "set `queue` in [cluster], or exempt the namespace from it"
        if labels.get(COMPONENT_LABEL) == "driver":
            remedy = "give the driver a template with the queue's label (docs/cluster.md)"
        by = f"by hand (`{patch}` lets it go on), or by a Kueue that manages Jobs without a queue, too"
        return f"suspended {by}: {remedy}"
    if workload is HIDDEN:
        roles = "Role bugurt-user-kueue; the driver's is bugurt-driver-kueue"
        return f"waits in queue {queue}; why is told only to who may read Kueue's Workloads ({roles})"
    if workload is None:
        # Kueue makes no Workload of a Job whose priority it does not know, and says so in its own log alone.
        wanted = labels.get(PRIORITY_LABEL)
        there = f", and the queue and the WorkloadPriorityClass {wanted} there" if wanted else " and the queue there"
        return f"waits in queue {queue}; Kueue has not taken note of it yet: is Kueue installed{there}?"
    if (workload.get("spec") or {}).get("active") is False:
        return f"queue {queue} has deactivated it: {_message(workload, 'Evicted') or 'its Workload is set inactive'}"
    reserved = conditions(workload).get("QuotaReserved") or {}
    evicted = holds(workload, "Evicted")
    if evicted is not None:
        return f"back in queue {queue}: {_why_evicted(workload, evicted)}"
    if reserved.get("status") == "True":
        checks = [
            f"{c.get('name')} is {str(c.get('state', '')).lower()}"
            for c in (workload.get("status") or {}).get("admissionChecks") or ()
            if c.get("state") != "Ready"
        ]
        return f"has its quota in queue {queue} and waits for admission{': ' if checks else ''}{', '.join(checks)}"
    if reserved.get("reason") == "Inadmissible":
        return f"queue {queue} cannot take it: {one_line(reserved.get('message'))}"
    message = one_line(reserved.get("message"))
    return f"waits in queue {queue} for quota{': ' if message else ''}{message}"


def _message(thing: Object, kind: str) -> str:
    return one_line((conditions(thing).get(kind) or {}).get("message"))


def _why_evicted(workload: Object, evicted: Object) -> str:
    words = {
        "Preempted": "work of higher priority took its quota",
        "PodsReadyTimeout": "its pods did not start in time",
        "AdmissionCheck": "an admission check took it back",
        "ClusterQueueStopped": "the ClusterQueue was stopped",
        "LocalQueueStopped": "the queue was stopped",
        "NodeFailures": "its node failed",
        "Deactivated": "it was deactivated",
    }
    reason = str(evicted.get("reason") or "")
    word = next((words[k] for k in words if reason.startswith(k)), reason or "it was evicted")
    detail = one_line(evicted.get("message")) or _message(workload, "Preempted")
    return f"{word} ({detail})" if detail else word


def why_pods_wait(job: Object, pods: Sequence[Object], events: Sequence[Object]) -> str:
    """What most of the pods wait for, or why there are none; empty where nothing is in the way."""
    by_object = _events_by_object(events)
    problems: Counter[str] = Counter()
    for pod in pods:
        sentence = _why_pod_waits(pod, by_object.get(pod["metadata"]["name"], ()))
        if sentence:
            problems[sentence] += 1
    living = [p for p in pods if (p.get("status") or {}).get("phase") in ("Pending", "Running")]
    if problems:
        sentence, count = problems.most_common(1)[0]
        return sentence if count == 1 or len(living) == 1 else f"{count} pods: {sentence}"
    if not living:
        for event in by_object.get(job["metadata"]["name"], ()):
            if event.get("reason") in ("FailedCreate", "FailedKillPod"):
                return _why_not_created(str(event.get("message") or ""), job["metadata"].get("namespace", ""))
    return ""


def _events_by_object(events: Iterable[Object]) -> dict[str, list[Object]]:
    """Events by the name of their object, the newest first."""
    found: dict[str, list[Object]] = {}
    for event in sorted(events, key=_event_time, reverse=True):
        found.setdefault((event.get("involvedObject") or {}).get("name", ""), []).append(event)
    return found


def _event_time(event: Object) -> str:
    series = event.get("series") or {}
    return str(
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or (event.get("metadata") or {}).get("creationTimestamp")
        or ""
    )


def _why_pod_waits(pod: Object, events: Sequence[Object]) -> str:
    status = pod.get("status") or {}
    if status.get("phase") not in ("Pending", None):
        return ""
    scheduled = conditions(pod).get("PodScheduled") or {}
    if scheduled.get("status") == "False":
        if scheduled.get("reason") == "SchedulingGated":
            return "a scheduling gate holds the pod back"
        return _why_unschedulable(str(scheduled.get("message") or ""), pod)
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
        if reason == "ErrImageNeverPull":
            return (
                f"the node does not have the image {container.get('image')} and is told not to pull it: import it into "
                "the node again (docs/cluster.md), or set `registry` in [cluster]"
            )
        if reason in _IMAGE_REASONS:
            return f"the image {container.get('image')} cannot be pulled: {_image_cause(reason, message, events)}"
        if reason == "CreateContainerConfigError":
            return _why_no_config(message, pod["metadata"].get("namespace", ""))
        if reason not in ("", "ContainerCreating", "PodInitializing"):
            return f"the container cannot start ({reason}): {one_line(message)}"
    for event in events:
        text = one_line(event.get("message"))
        if event.get("reason") in ("FailedMount", "FailedAttachVolume"):
            authority = 'configmap "bugurt-ca" not found' in text
            return f"a volume cannot be mounted: {text}{'; `bugurt install` makes it' if authority else ''}"
        if event.get("reason") == "FailedCreatePodSandBox":
            runtime = re.search(r"no runtime for \\*\"nvidia", text)
            remedy = "; install NVIDIA's container toolkit on the node and start k3s (or containerd) again"
            return f"the node cannot set up the pod: {text}{remedy if runtime else ''}"
        if event.get("reason") == "Pulling":
            return f"the node is pulling the image ({text.partition('image ')[2] or text})"
    return ""


def _image_cause(reason: str, message: str, events: Sequence[Object]) -> str:
    # "Back-off pulling image …" says nothing; the event of the try itself does.
    texts = [message, *(str(e.get("message") or "") for e in events if e.get("reason") == "Failed")]
    for text in texts:
        low = text.lower()
        if "not found" in low or "manifest unknown" in low or "does not exist" in low:
            private = ", and `image_pull_secret` if it is private" if "authorization" in low else ""
            remedy = f"build and push it (make images), or set `registry` and `tag` in [cluster]{private}"
            return f"there is no such image or tag: {remedy}"
        if any(
            word in low for word in ("unauthorized", "denied", "forbidden", "authentication required", "no basic auth")
        ):
            return "the registry refuses access; set cluster.image_pull_secret"
        if "no such host" in low or "timeout" in low or "connection refused" in low or "i/o timeout" in low:
            return f"the registry is out of reach: {one_line(text)}"
        if "toomanyrequests" in low or "rate limit" in low:
            return "the registry's rate limit is reached; it tries again by itself"
    if reason == "InvalidImageName":
        return "that is no image's name; look at cluster.registry and cluster.tag"
    return one_line(next((t for t in reversed(texts) if t), reason))


def _why_no_config(message: str, namespace: str) -> str:
    missing = re.search(r'(secret|configmap) "([^"]+)" not found', message)
    if missing:
        kind = {"secret": "Secret", "configmap": "ConfigMap"}[missing[1]]
        return f"{kind} {missing[2]} is missing in namespace {namespace}{_remedy(missing[2])}"
    key = re.search(r"couldn't find key (\S+) in (Secret|ConfigMap) (\S+)", message)
    if key:
        return f"{key[2]} {key[3]} has no key {key[1]}{_remedy(key[3])}"
    if "runAsNonRoot" in message:
        return f"the image wants to run as root, which the pod forbids: {one_line(message)}"
    return f"the container's configuration is wrong: {one_line(message)}"


def _remedy(name: str) -> str:
    if "telegram" in name:
        return "; `bugurt login` makes it"
    return "; `bugurt install --s3-secret` makes it" if "s3" in name else ""


_LACK = re.compile(r"(\d+) Insufficient ([\w./-]+)")


def _why_unschedulable(message: str, pod: Object) -> str:
    """The scheduler's message in words: ``0/3 nodes are available: 2 Insufficient nvidia.com/gpu, 1 node(s) …``."""
    lacks = {name.rstrip("."): int(count) for count, name in _LACK.findall(message)}
    gpu = next((n for n in lacks if n.endswith("/gpu")), None)
    total = re.match(r"0/(\d+) nodes", message)
    of = f" of {total[1]}" if total else ""
    if gpu is not None:
        asked = _asked(pod, gpu)
        main = f"no node has {asked} free GPU{'s' if asked != '1' else ''} ({gpu})"
    elif "memory" in lacks:
        main = f"no node has {_asked(pod, 'memory')} of memory free"
    elif "cpu" in lacks:
        main = f"no node has {_asked(pod, 'cpu')} CPU free"
    elif lacks:
        name = next(iter(lacks))
        main = f"no node has {_asked(pod, name)} of {name} free"
    elif "didn't match Pod's node affinity/selector" in message:
        main = f"no node matches the node selector {_selector(pod)}: see `node_selector` in {_section(pod)}"
    elif "untolerated taint" in message:
        main = "all nodes have taints that the pod does not tolerate: see `tolerations` in [cluster]"
    elif "no nodes available" in message:
        return "the cluster has no node that takes pods"
    else:
        return f"no node takes the pod: {one_line(message) or 'the scheduler has not said why'}"
    more = []
    others = {n: c for n, c in lacks.items() if n != gpu}
    if gpu is not None and others:
        more.append(", ".join(f"{c} lack {n}" for n, c in others.items()))
    # Older schedulers name the taint, `had untolerated taint {KEY: VALUE}`; newer ones do not: `taint(s)`.
    taints = re.findall(r"(\d+) node\(s\) had untolerated taint(?:\(s\)|s)? ?(?:\{([^}]*)\})?", message)
    if taints and "taints" not in main:
        named = ((count, taint.strip().rstrip(":")) for count, taint in taints)
        tainted = ", ".join(f"{c}{of} tainted{f' ({t})' if t else ''}" for c, t in named)
        more.append(f"{tainted}: see `tolerations` in [cluster]")
    selector = re.search(r"(\d+) node\(s\) didn't match Pod's node affinity/selector", message)
    if selector and "selector" not in main:
        more.append(f"{selector[1]}{of} do not match the node selector: see `node_selector` in {_section(pod)}")
    return f"{main}{'; ' if more else ''}{'; '.join(more)}"


def _asked(pod: Object, resource: str) -> str:
    for container in (pod.get("spec") or {}).get("containers") or ():
        resources = container.get("resources") or {}
        for side in ("requests", "limits"):
            if resource in (resources.get(side) or {}):
                return str(resources[side][resource])
    return "enough"


def _selector(pod: Object) -> str:
    wanted = (pod.get("spec") or {}).get("nodeSelector") or {}
    return ", ".join(f"{k}={v}" for k, v in wanted.items()) or "of the template"


def _section(pod: Object) -> str:
    return f"[cluster.{(pod['metadata'].get('labels') or {}).get(COMPONENT_LABEL, 'STAGE')}]"


def _why_not_created(message: str, namespace: str) -> str:
    """A FailedCreate event of the Job: the API server refused the pod."""
    quota = re.search(r"exceeded quota: ([^,]+), (.*)", message)
    if quota:
        return f"the ResourceQuota {quota[1]} of namespace {namespace} is full: {one_line(quota[2])}"
    if "violates PodSecurity" in message:
        return f"pod security refuses the pod: {one_line(message.partition('violates PodSecurity')[2])}"
    account = re.search(r'serviceaccount "([^"]+)" not found', message)
    if account:
        return f"ServiceAccount {account[1]} is missing in namespace {namespace}; `bugurt install` makes it"
    priority = re.search(r"no PriorityClass with name (\S+) was found", message)
    if priority:
        return f"there is no PriorityClass {priority[1]}"
    if "must specify" in message or "failed quota" in message:
        return f"the namespace's quota wants more said: {one_line(message)}"
    return f"the pod cannot be created: {one_line(message)}"
