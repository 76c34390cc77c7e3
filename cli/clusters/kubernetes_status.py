"""Why a Job waits or failed, in one sentence: pure functions over API objects as plain dicts.

Sources: the Job's conditions, its pods' conditions and container statuses, events, and Kueue's Workload. Nothing
here talks to a cluster.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from cli.clusters.base import JobState, JobStatus
from cli.clusters.kubernetes_objects import (
    COMPONENT_LABEL,
    CONTAINER,
    PREFIX,
    RUN_LABEL,
    Object,
    holds,
    moment,
    one_line,
)
from cli.clusters.kubernetes_waits import why_pods_wait, why_suspended
from jobs.specs import load_json

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


def count_indexes(text: str | None) -> int:
    """How many indexes a list such as ``0,3-5`` of a Job's status names."""
    total = 0
    for part in (text or "").split(","):
        first, _, last = part.partition("-")
        if first.strip().isdigit():
            total += (int(last) if last.strip().isdigit() else int(first)) - int(first) + 1
    return total


def job_state(job: Object) -> JobState:
    """The state by the Job object alone."""
    if holds(job, "Complete"):
        return JobState.SUCCEEDED
    if holds(job, "Failed"):
        return JobState.FAILED
    status = job.get("status") or {}
    if (job.get("spec") or {}).get("suspend"):
        return JobState.SUSPENDED
    if status.get("ready") or status.get("succeeded") or holds(job, "SuccessCriteriaMet"):
        return JobState.RUNNING
    if holds(job, "FailureTarget"):  # decided; `Failed` comes when its last pod is gone
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
    ended = holds(job, "Complete") or holds(job, "Failed") or {}
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
        return why_suspended(job, workload), None
    if holds(job, "FailureTarget"):
        return f"fails, and its pods are being stopped: {_why_failed(job, pods, 'FailureTarget')[0]}", None
    waiting = why_pods_wait(job, pods, events)
    before = _last_failure(pods)
    if before is None:
        return waiting, None
    if waiting:
        return f"{waiting} (the try before: {before.sentence})", None
    if state is JobState.RUNNING and any((p.get("status") or {}).get("phase") == "Running" for p in pods):
        return f"goes on after a lost try: {before.sentence}", None
    return f"tries again after: {before.sentence}", None


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
    disruption = holds(pod, "DisruptionTarget")
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
    condition = holds(job, by) or {}
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
