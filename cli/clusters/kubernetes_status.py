"""Why a Job waits or failed, in one sentence: pure functions over API objects as plain dicts.

Sources: the Job's conditions, its pods' conditions and container statuses, events, and Kueue's Workload. Nothing
here talks to a cluster.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from cli.clusters.base import JobState, JobStatus
from jobs.specs import load_json

Object = Mapping[str, Any]

PREFIX = "bugurt.dev"
RUN_LABEL = "app.kubernetes.io/instance"
COMPONENT_LABEL = "app.kubernetes.io/component"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
CONTAINER = "stage"  # the name of the container that does the work, in every Job template
MAX_SENTENCE = 400

_IMAGE_REASONS = {
    "ImagePullBackOff",
    "ErrImagePull",
    "InvalidImageName",
    "ErrImageNeverPull",
    "RegistryUnavailable",
    "ImageInspectError",
    "SignatureValidationFailed",
}
_DISRUPTIONS = {
    "PreemptionByScheduler": "a pod of higher priority took its place",
    "DeletionByTaintManager": "its node was tainted: drained, or out of reach",
    "EvictionByEvictionAPI": "it was evicted: its node is being drained",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "its node stopped it",
}
_CODES = {
    64: "the spec is wrong",
    65: "the input data is wrong",
    70: "an internal error",
    75: "a passing trouble, worth another try",
    78: "the configuration or a credential is wrong",
    137: "killed by SIGKILL",
    139: "a crash of the program (SIGSEGV)",
    143: "interrupted by SIGTERM",
}


class Failure(NamedTuple):
    """How a pod ended: a sentence, and the container's exit code where there is one."""

    sentence: str
    code: int | None


def one_line(text: object) -> str:
    """Text without line breaks, of bounded length."""
    flat = " ".join(str(text or "").split())
    return flat if len(flat) <= MAX_SENTENCE else flat[: MAX_SENTENCE - 1] + "…"


def conditions(thing: Object) -> dict[str, Object]:
    """An object's conditions by their type."""
    return {c.get("type", ""): c for c in (thing.get("status") or {}).get("conditions") or ()}


def _holds(thing: Object, kind: str) -> Object | None:
    found = conditions(thing).get(kind)
    return found if found is not None and found.get("status") == "True" else None


def count_indexes(text: str | None) -> int:
    """How many indexes a list such as ``0,3-5`` of a Job's status names."""
    total = 0
    for part in (text or "").split(","):
        first, _, last = part.partition("-")
        if first.strip().isdigit():
            total += (int(last) if last.strip().isdigit() else int(first)) - int(first) + 1
    return total


def moment(text: str | None) -> datetime | None:
    """An API server's time, or None."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


def job_state(job: Object) -> JobState:
    """The state by the Job object alone."""
    if _holds(job, "Complete"):
        return JobState.SUCCEEDED
    if _holds(job, "Failed"):
        return JobState.FAILED
    status = job.get("status") or {}
    if (job.get("spec") or {}).get("suspend"):
        return JobState.SUSPENDED
    if status.get("ready") or status.get("succeeded") or _holds(job, "SuccessCriteriaMet"):
        return JobState.RUNNING
    if _holds(job, "FailureTarget"):  # decided; `Failed` comes when its last pod is gone
        return JobState.RUNNING
    return JobState.PENDING


def job_status(
    job: Object, pods: Sequence[Object] = (), events: Sequence[Object] = (), workload: Object | None = None
) -> JobStatus:
    """A Job as the rest of the program sees it. Without pods and events the reason is what the Job itself tells."""
    meta, spec, status = job["metadata"], job.get("spec") or {}, job.get("status") or {}
    labels = meta.get("labels") or {}
    indexed = spec.get("completionMode") == "Indexed"
    completed = count_indexes(status.get("completedIndexes"))
    state = job_state(job)
    if state is JobState.PENDING and any((p.get("status") or {}).get("phase") == "Running" for p in pods):
        state = JobState.RUNNING
    reason, code = explain(job, state, pods, events, workload)
    attempt = (meta.get("annotations") or {}).get(f"{PREFIX}/attempt", "1")
    ended = _holds(job, "Complete") or _holds(job, "Failed") or {}
    return JobStatus(
        name=meta["name"],
        run=labels.get(RUN_LABEL, ""),
        component=labels.get(COMPONENT_LABEL, ""),
        state=state,
        reason=one_line(reason),
        exit_code=0 if state is JobState.SUCCEEDED else code,
        attempt=int(attempt) if attempt.isdigit() else 1,
        restarts=int(status.get("failed") or 0),
        shards=int(spec.get("completions") or 1) if indexed else 1,
        shards_done=completed if indexed else int(state is JobState.SUCCEEDED),
        shards_failed=count_indexes(status.get("failedIndexes")),
        active=int(status.get("active") or 0),
        created=moment(meta.get("creationTimestamp")),
        started=moment(status.get("startTime")),
        finished=moment(status.get("completionTime") or ended.get("lastTransitionTime")),
    )


def explain(
    job: Object, state: JobState, pods: Sequence[Object], events: Sequence[Object], workload: Object | None
) -> tuple[str, int | None]:
    """The sentence, and the exit code that decided a failure."""
    if state is JobState.SUCCEEDED:
        return "", None
    if state is JobState.FAILED:
        return _why_failed(job, pods)
    if job["metadata"].get("deletionTimestamp"):
        return "is being stopped", None
    if state is JobState.SUSPENDED:
        return _why_suspended(job, workload), None
    if _holds(job, "FailureTarget"):
        return f"fails, and its pods are being stopped: {_why_failed(job, pods, 'FailureTarget')[0]}", None
    waiting = _why_pods_wait(job, pods, events)
    before = _last_failure(pods)
    if before is None:
        return waiting, None
    if waiting:
        return f"{waiting} (the try before: {before.sentence})", None
    if state is JobState.RUNNING and any((p.get("status") or {}).get("phase") == "Running" for p in pods):
        return f"goes on after a lost try: {before.sentence}", None
    return f"tries again after: {before.sentence}", None


# -- suspended: a queue, or somebody by hand


def _why_suspended(job: Object, workload: Object | None) -> str:
    queue = (job["metadata"].get("labels") or {}).get(QUEUE_LABEL)
    if queue is None:
        return 'suspended by hand (spec.suspend); `kubectl patch job … -p \'{"spec":{"suspend":false}}\'` lets it go on'
    if workload is None:
        return f"waits in queue {queue}; Kueue has not taken note of it yet: is Kueue installed and the queue there?"
    if (workload.get("spec") or {}).get("active") is False:
        return f"queue {queue} has deactivated it: {_message(workload, 'Evicted') or 'its Workload is set inactive'}"
    reserved = conditions(workload).get("QuotaReserved") or {}
    evicted = _holds(workload, "Evicted")
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


# -- not running yet


def _why_pods_wait(job: Object, pods: Sequence[Object], events: Sequence[Object]) -> str:
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
        if reason in _IMAGE_REASONS:
            return f"the image {container.get('image')} cannot be pulled: {_image_cause(reason, message, events)}"
        if reason == "CreateContainerConfigError":
            return _why_no_config(message, pod["metadata"].get("namespace", ""))
        if reason not in ("", "ContainerCreating", "PodInitializing"):
            return f"the container cannot start ({reason}): {one_line(message)}"
    for event in events:
        text = one_line(event.get("message"))
        if event.get("reason") in ("FailedMount", "FailedAttachVolume"):
            return f"a volume cannot be mounted: {text}"
        if event.get("reason") == "FailedCreatePodSandBox":
            return f"the node cannot set up the pod: {text}"
        if event.get("reason") == "Pulling":
            return f"the node is pulling the image ({text.partition('image ')[2] or text})"
    return ""


def _image_cause(reason: str, message: str, events: Sequence[Object]) -> str:
    # "Back-off pulling image …" says nothing; the event of the try itself does.
    texts = [message, *(str(e.get("message") or "") for e in events if e.get("reason") == "Failed")]
    for text in texts:
        low = text.lower()
        if "not found" in low or "manifest unknown" in low or "does not exist" in low:
            return "there is no such image or tag"
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
    if reason == "ErrImageNeverPull":
        return "the template says `imagePullPolicy: Never` and the node does not have it"
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
        main = f"no node matches the node selector {_selector(pod)}"
    elif "untolerated taint" in message:
        main = "all nodes have taints that the pod does not tolerate"
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
        more.append(", ".join(f"{c}{of} tainted{f' ({t})' if t else ''}" for c, t in named))
    selector = re.search(r"(\d+) node\(s\) didn't match Pod's node affinity/selector", message)
    if selector and "selector" not in main:
        more.append(f"{selector[1]}{of} do not match the node selector")
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


# -- failed


def _terminated(pod: Object) -> tuple[Object, Object]:
    """The work's container status and how it ended (empty when it has not)."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    for status in sorted(statuses, key=lambda s: s.get("name") != CONTAINER):
        ended = (status.get("state") or {}).get("terminated") or (status.get("lastState") or {}).get("terminated")
        if ended:
            return status, ended
    return {}, {}


def _ended_at(pod: Object) -> str:
    return str(_terminated(pod)[1].get("finishedAt") or pod["metadata"].get("creationTimestamp") or "")


def said(message: str | None) -> str:
    """The last sentence of a container's log tail: the message of its last JSON line, or its last line."""
    lines = [line for line in (message or "").splitlines() if line.strip()]
    for line in reversed(lines):
        if line.lstrip().startswith("{"):
            try:
                found = load_json(line)
            except ValueError:
                continue  # the tail may begin in the middle of a line
            if isinstance(found, dict) and found.get("message"):
                return one_line(found["message"])
    return one_line(lines[-1]) if lines else ""


def pod_failure(pod: Object) -> Failure:
    """Why a pod ended before its work was done."""
    status = pod.get("status") or {}
    ended = _terminated(pod)[1]
    code = ended.get("exitCode")
    if ended.get("reason") == "OOMKilled":
        return Failure(f"out of memory: the limit is {_limit(pod)}; {_raise(pod)}", 137)
    disruption = _holds(pod, "DisruptionTarget")
    if status.get("reason") == "Evicted":
        return Failure(f"evicted by its node: {one_line(status.get('message'))}", code)
    if disruption is not None:
        word = _DISRUPTIONS.get(str(disruption.get("reason")), "it was disrupted")
        detail = one_line(status.get("message") or disruption.get("message"))
        return Failure(f"{word} ({detail})" if detail else word, code)
    if ended.get("reason") in ("ContainerCannotRun", "StartError"):
        return Failure(f"the container could not start: {one_line(ended.get('message'))}", code)
    if ended.get("reason") in ("Unknown", "ContainerStatusUnknown"):  # containerd's word, and the kubelet's
        return Failure("its node was started again or lost the container", code)
    if code:
        words = said(ended.get("message"))
        if code in (137, 143) and not words.startswith("interrupted"):
            words = ""  # the log's last line has nothing to do with it
        return Failure(words or f"exit code {code} ({_CODES.get(code, 'unknown')})", code)
    if status.get("reason"):  # UnexpectedAdmissionError, NodeShutdown, NodeLost, OutOfcpu …
        return Failure(f"{status['reason']}: {one_line(status.get('message'))}", None)
    return Failure("the pod failed without a word", None)


def _limit(pod: Object) -> str:
    for container in (pod.get("spec") or {}).get("containers") or ():
        if container.get("name") == CONTAINER:
            return str(((container.get("resources") or {}).get("limits") or {}).get("memory") or "that of its node")
    return "that of its node"


def _raise(pod: Object) -> str:
    component = (pod["metadata"].get("labels") or {}).get(COMPONENT_LABEL, "STAGE")
    return f"raise `memory` in [cluster.{component}] or ask for smaller batches"


def _last_failure(pods: Sequence[Object]) -> Failure | None:
    failed = [p for p in pods if (p.get("status") or {}).get("phase") == "Failed"]
    return pod_failure(max(failed, key=_ended_at)) if failed else None


def _why_failed(job: Object, pods: Sequence[Object], by: str = "Failed") -> tuple[str, int | None]:
    condition = _holds(job, by) or {}
    reason, message = condition.get("reason"), str(condition.get("message") or "")
    spec = job.get("spec") or {}
    named = re.search(r"for pod \S*?/(\S+) failed with exit code (\d+)", message)
    failed = [p for p in pods if (p.get("status") or {}).get("phase") == "Failed"]
    decider = next((p for p in failed if named and p["metadata"]["name"] == named[1]), None)
    last = pod_failure(decider) if decider else _last_failure(pods)
    code = int(named[2]) if named else (last.code if last else None)
    if last is None and code is not None:
        last = Failure(f"exit code {code} ({_CODES.get(code, 'unknown')})", code)
    if reason == "DeadlineExceeded":
        return f"it ran longer than its {spec.get('activeDeadlineSeconds', 0)} s (activeDeadlineSeconds)", code
    if reason == "PodFailurePolicy":
        return (last.sentence if last else one_line(message)), code
    cause = f": {last.sentence}" if last else ""
    if reason in ("FailedIndexes", "MaxFailedIndexesExceeded"):
        count = count_indexes((job.get("status") or {}).get("failedIndexes"))
        return f"{count} of {spec.get('completions')} shards failed{cause}", code
    if reason == "BackoffLimitExceeded":
        tries = int(spec.get("backoffLimit", 6)) + 1
        return (f"gave up after {tries} tries{cause}" if tries > 1 else (last.sentence if last else message)), code
    return (one_line(message) or str(reason or "the Job failed")) + cause, code
