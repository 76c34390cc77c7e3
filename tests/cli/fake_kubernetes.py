"""A small control plane in memory: an API server, the Job controller, a scheduler, a kubelet and Kueue's outline.

It speaks the API of ``cli.clusters.kubernetes_api.Api`` (paths in, plain dicts out), so the real KubernetesCluster
runs on it in-process, or over a loopback HTTP server (``api_server.py``). Its clock is its own: time passes when
somebody watches or calls ``tick``, so tests neither sleep nor depend on speed.

The state machine follows the Job controller of Kubernetes 1.33 and later: podFailurePolicy rules in their order,
backoffLimit and backoffLimitPerIndex, podReplacementPolicy Failed, suspend, foreground deletion (and orphans where
nobody asks for another), owner references, TTL, pods that stay after their end, and an end in two steps: decided
(SuccessCriteriaMet, FailureTarget), then over (Complete, Failed). A pod takes one tick each to be scheduled, to start
and to end. What ``tests.cli.admission`` has against a Job or a pod is refused, with the server's status and reason.
"""

from __future__ import annotations

import json
import pickle
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from cli.clusters.kubernetes_api import APPLY_PATCH, ApiError
from cli.clusters.kubernetes_objects import COMPONENT_LABEL, QUEUE_LABEL, conditions
from cli.kustomize import quantity
from jobs.specs import BugurtError
from tests.cli.admission import job_errors, pod_errors, restricted_errors

Object = dict[str, Any]
JOB_NAME = "batch.kubernetes.io/job-name"
INDEX = "batch.kubernetes.io/job-completion-index"
IDLE_TICKS = 3  # ticks without an event after which a watch ends, as its timeoutSeconds would end it
ACCOUNT = "system:serviceaccount"
#: A Job's end is decided before it is over.
ENDS = {"SuccessCriteriaMet": "Complete", "FailureTarget": "Failed"}
STANDSTILL = 2000  # such ends in a row after which a test has surely lost its way


class Crash(BaseException):  # no `except Exception` may swallow it: it stands for SIGKILL
    """The client was killed at this API call."""


@dataclass
class Task:
    """What the runner is asked to execute: one container, with its environment as the kubelet resolves it."""

    component: str
    job: str
    pod: str
    shard: int | None
    tries: int  # pods of this Job (and index) so far, this one included
    env: dict[str, str]
    lines: list[str] = field(default_factory=list)

    @property
    def spec(self) -> dict[str, Any]:
        """The stage's spec."""
        found: dict[str, Any] = json.loads(self.env["BUGURT_SPEC"])
        return found

    def log(self, text: str) -> None:
        """Write a line of the container's log."""
        self.lines.append(text)


#: Executes a container and returns its exit code (None is 0); a BugurtError ends it as in ``jobs.stage``.
Runner = Callable[[Task], int | None]
STILL_AT_WORK = -1  # what a runner may answer instead of an exit code, to be asked again a moment later

FaultKind = Literal["exit", "evict", "oom", "drain", "image", "start", "admission"]


@dataclass
class Fault:
    """Something that befalls the next ``times`` pods of a component (and shard). ``image`` lasts until healed."""

    component: str
    kind: FaultKind
    times: int = 1
    shard: int | None = None
    code: int = 1
    message: str = ""
    image_message: str = 'failed to pull and unpack image "{image}": not found'


def _copy(thing: Any) -> Any:
    """A deep copy of plain data: several times as fast as copy.deepcopy."""
    return pickle.loads(pickle.dumps(thing, -1))


def expand(value: str, known: Mapping[str, str]) -> str:
    """Expand ``$(NAME)`` and ``$$`` as the kubelet does (k8s.io/kubernetes/third_party/forked/golang/expansion)."""

    def replace(match: re.Match[str]) -> str:
        text = match[0]
        if text == "$$":
            return "$"
        return known.get(text[2:-1], text)

    return re.sub(r"\$\$|\$\([^()]*\)", replace, value)


class ControlPlane:
    """All objects of a cluster, and what moves them. See the module's docstring."""

    def __init__(
        self,
        runner: Runner | None = None,
        *,
        namespaces: tuple[str, ...] = ("bugurt",),
        gpus: int = 8,
        secrets: Mapping[str, Mapping[str, str]] | None = None,
        kueue: bool = False,
    ) -> None:
        """``gpus``: of the one node. ``secrets``: by name; by default those that the templates want, empty."""
        self.host = "https://fake.invalid"
        self.runner: Runner = runner or (lambda task: 0)
        self._at_work: dict[str, Task] = {}  # by pod
        self.gpus = gpus
        self.secrets = dict(secrets if secrets is not None else {"bugurt-s3": {}, "bugurt-telegram": {}})
        self.kueue = kueue
        self.queue_open = True
        self.quota_message: str | None = None  # a full ResourceQuota's words, while it is full
        self.namespaces = set(namespaces)
        self.minor = "36"
        self.accounts_needed = False  # whether a pod without its ServiceAccount is refused
        self._no_account_yet: dict[str, int] = {}  # ticks until a namespace has its account `default`
        self.refusals: dict[str, str] = {}  # admission's words against a component's pods
        self.denied: set[tuple[str, str]] = set()  # (verb, plural) that the user may not
        self.foreign: set[tuple[str, str]] = set()  # (plural, name) that somebody else has changed
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.logs: dict[str, list[tuple[str, str]]] = {}
        self.calls: list[str] = []
        self.runs: list[Task] = []
        self.faults: list[Fault] = []
        self.held: set[str] = set()
        self.lock = threading.RLock()
        self._version = 100
        self._compacted = 0
        self._history: list[tuple[int, str, str, str, Object]] = []
        self._judged: set[str] = set()  # uids of failed pods that have been counted
        self._crash: tuple[int, str] | None = None
        self._idle = 0
        self._serial = 0

    # -- for tests

    def crash_after(self, calls: int | None, when: Literal["before", "after"] = "after") -> None:
        """Raise Crash at the n-th API call from now, before or after it has had its effect; None: never."""
        self._crash = None if calls is None else (len(self.calls) + calls, when)

    def fault(self, component: str, kind: FaultKind, **details: Any) -> Fault:
        """Let something befall the next pods of a component; see Fault."""
        found = Fault(component, kind, **details)
        self.faults.append(found)
        return found

    def heal(self, kind: FaultKind) -> None:
        """End the lasting faults of a kind."""
        self.faults = [f for f in self.faults if f.kind != kind]

    def hold(self, component: str) -> None:
        """Keep a component's pods running until ``release``."""
        self.held.add(component)

    def release(self, component: str) -> None:
        """Let them end."""
        self.held.discard(component)

    def settle(self, ticks: int = 200) -> None:
        """Let time pass until nothing changes any more, or for so many ticks."""
        for _ in range(ticks):
            before = self._version
            self.tick()
            if self._version == before:
                return

    def jobs(self) -> dict[str, Object]:
        """All Jobs by name."""
        return {name: o for (kind, _, name), o in self.objects.items() if kind == "jobs"}

    def pods_of(self, job: str) -> list[Object]:
        """A Job's pods in their order."""
        return [o for (k, _, _), o in self.objects.items() if k == "pods" and _job_of(o) == job]

    def preempt(self, job: str) -> None:
        """Kueue takes a Job's quota away: it is suspended, its pods go, and it queues again."""
        with self.lock:
            self.queue_open = False
            found = self.jobs()[job]
            workload = self._workload(found)
            message = "Preempted to accommodate a workload of higher priority"
            self._condition(workload, "Evicted", "Preempted", message)
            self._condition(workload, "QuotaReserved", "Pending", message, status="False")
            found["spec"]["suspend"] = True
            self._touch("jobs", found)
            self.tick()

    def pass_time(self, seconds: float) -> None:
        """Move the clock without moving anything else, then look at everything once."""
        with self.lock:
            self.now += timedelta(seconds=seconds)
            self.tick()

    # -- the API

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        """One API call."""
        with self.lock:
            self._count(f"{method} {path}", "before")
            apply = content_type == APPLY_PATCH
            answer = self._answer(method, path, dict(query or {}), _copy(body), apply=apply)
            self._count(None, "after")
            return _copy(answer)

    def stream(self, path: str, *, query: Mapping[str, str] | None = None, read_timeout: float | None = None) -> _Lines:
        """A watch or a log."""
        with self.lock:
            self._count(f"GET {path} (stream)", "before")
            wanted = dict(query or {})
            lines = self._log(path, wanted) if path.endswith("/log") else self._watch(path, wanted)
            self._count(None, "after")
            return _Lines(lines)

    def _count(self, call: str | None, when: str) -> None:
        if call is not None:
            self.calls.append(call)
        if self._crash is not None and self._crash[1] == when and len(self.calls) >= self._crash[0]:
            self._crash = None
            raise Crash(f"killed {when} call {len(self.calls)}: {self.calls[-1]}")

    def _place(self, path: str) -> tuple[str, str, str | None]:
        root = r"/(?:api/v1|apis/[\w.-]+/\w+)"
        match = re.fullmatch(root + r"/namespaces/([\w.-]+)/(\w+)(?:/([\w.-]+))?", path)
        if match is not None:
            return match[2], match[1], match[3]
        match = re.fullmatch(root + r"/(\w+)(?:/([\w.-]+))?", path)
        if match is not None:
            return match[1], "", match[2]
        raise ApiError(404, "NotFound", f"the server could not find the requested resource {path}")

    def _answer(self, method: str, path: str, query: dict[str, str], body: Any, *, apply: bool = False) -> Object:
        if path == "/version":
            return {"major": "1", "minor": self.minor, "gitVersion": f"v1.{self.minor}.0"}
        if path.endswith("/selfsubjectaccessreviews"):
            asked = body["spec"]["resourceAttributes"]
            return {"status": {"allowed": (asked["verb"], asked["resource"]) not in self.denied}}
        if path == "/apis/kueue.x-k8s.io":
            if not self.kueue:
                raise ApiError(404, "NotFound", "the server could not find the requested resource")
            return {"preferredVersion": {"version": "v1beta2"}}
        if path.endswith("/subjectaccessreviews"):
            asked = body["spec"]["resourceAttributes"]
            return {"status": {"allowed": self.may(body["spec"]["user"], asked)}}
        account = re.fullmatch(r"/api/v1/namespaces/([\w.-]+)/serviceaccounts/([\w.-]+)/token", path)
        if account is not None:
            if ("serviceaccounts", account[1], account[2]) not in self.objects:
                raise ApiError(404, "NotFound", f'serviceaccounts "{account[2]}" not found')
            return {"status": {"token": f"{ACCOUNT}:{account[1]}:{account[2]}"}}
        evicted = re.fullmatch(r"/api/v1/namespaces/([\w.-]+)/pods/([\w.-]+)/eviction", path)
        if evicted is not None:
            return self.evict(evicted[1], evicted[2])
        kind, namespace, name = self._place(path)
        if ({"PATCH": "patch", "POST": "create", "GET": "get", "DELETE": "delete"}[method], kind) in self.denied:
            raise ApiError(403, "Forbidden", f'{kind} is forbidden: User "me" cannot {method.lower()} resource')
        if apply:
            return self._apply(kind, namespace, str(name), body, query)
        if method == "POST":
            return self._post(kind, namespace, body, dry="dryRun" in query)
        if name is None:
            # Without a namespace: those of all namespaces.
            here = [o for key, o in self.objects.items() if key[0] == kind and namespace in ("", key[1])]
            items = [o for o in here if _chosen(o, query)]
            limit, start = int(query.get("limit", 0)) or len(items) or 1, int(query.get("continue", 0))
            meta = {"resourceVersion": str(self._version)}
            if start + limit < len(items):
                meta["continue"] = str(start + limit)
            return {"metadata": meta, "items": items[start : start + limit]}
        found = self.objects.get((kind, namespace, name))
        if found is None:
            raise ApiError(404, "NotFound", f'{kind} "{name}" not found')
        if method == "PATCH":
            _merge(found, body)
            self._touch(kind, found)
        elif method == "DELETE":
            wanted = ((body or {}).get("preconditions") or {}).get("uid", found["metadata"]["uid"])
            if wanted != found["metadata"]["uid"]:
                words = f"Precondition failed: UID in precondition: {wanted}, UID in object meta: "
                raise ApiError(409, "Conflict", words + str(found["metadata"]["uid"]))
            self._delete(kind, found, (body or {}).get("propagationPolicy"))
        return found

    def _delete(self, kind: str, thing: Object, policy: str | None) -> None:
        if kind == "jobs" and policy not in ("Foreground", "Background"):
            for pod in self.pods_of(thing["metadata"]["name"]):  # batch/v1 alone has this default, for old clients
                pod["metadata"].pop("ownerReferences", None)
            self._remove(kind, thing)
            return
        if kind == "networkpolicies":  # nothing holds them back
            self._remove(kind, thing)
            return
        thing["metadata"]["deletionTimestamp"] = self._stamp()
        self._touch(kind, thing)
        if kind == "pods" and thing["status"]["phase"] in ("Pending", "Running"):
            self._end_pod(thing, 143)  # it goes when the controller has counted it

    def evict(self, namespace: str, name: str) -> Object:
        """The eviction API: a deletion that says why."""
        pod = self.objects.get(("pods", namespace, name))
        if pod is None:
            raise ApiError(404, "NotFound", f'pods "{name}" not found')
        pod["metadata"]["deletionTimestamp"] = self._stamp()
        if pod["status"]["phase"] in ("Pending", "Running"):
            disruption = ("DisruptionTarget", "EvictionByEvictionAPI", "Eviction API: evicting")
            self._end_pod(pod, 143, disruption=disruption)
        return {"kind": "Status", "status": "Success"}

    def may(self, user: str, asked: Mapping[str, str]) -> bool:
        """RBAC for service accounts: whether a Role bound to it allows the ``resourceAttributes`` of a review."""
        _, _, account = user.partition(f"{ACCOUNT}:")
        home, _, name = account.partition(":")
        resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
        for (kind, namespace, _), binding in self.objects.items():
            subject = {"kind": "ServiceAccount", "name": name, "namespace": home}
            if (kind, namespace) != ("rolebindings", asked["namespace"]) or subject not in binding["subjects"]:
                continue
            role = self.objects.get(("roles", namespace, binding["roleRef"]["name"]), {"rules": []})
            for rule in role["rules"]:
                if (
                    asked.get("group", "") in rule["apiGroups"]
                    and resource in rule["resources"]
                    and asked["verb"] in rule["verbs"]
                ):
                    return True
        return False

    def _post(self, kind: str, namespace: str, body: Object, *, dry: bool) -> Object:
        if namespace and namespace not in self.namespaces:
            raise ApiError(404, "NotFound", f'namespaces "{namespace}" not found')
        name = body["metadata"]["name"]
        refusal = self.refusals.get(body["metadata"].get("labels", {}).get(COMPONENT_LABEL, ""))
        if refusal is not None and kind == "pods":
            raise ApiError(403, "Forbidden", refusal)
        self._validate(kind, body)
        if (kind, namespace, name) in self.objects:
            raise ApiError(409, "AlreadyExists", f'{kind} "{name}" already exists')
        body["metadata"] |= {"namespace": namespace}
        body["metadata"].setdefault("labels", {})  # what follows looks into them
        if kind == "pods":
            body["status"] = {"phase": "Pending"}
        if kind == "jobs":
            body["status"] = {}
            if self.kueue and QUEUE_LABEL in body["metadata"]["labels"]:
                body["spec"]["suspend"] = True
        if kind == "resourcequotas":
            body["status"] = {"hard": body["spec"]["hard"]}
        if kind == "namespaces" and not dry:
            self.namespaces.add(name)
            self._no_account_yet[name] = 5  # a controller makes it, sooner or later
        if kind == "pods" and not dry:
            self._admit_account(name, namespace, body["spec"])
        if dry:
            body["metadata"]["creationTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            return body
        self._add(kind, body)
        return body

    def _validate(self, kind: str, body: Object) -> None:
        name = body["metadata"]["name"]
        errors = {"jobs": job_errors, "pods": lambda pod: pod_errors(pod["spec"])}.get(kind, lambda thing: [])(body)
        if errors:
            what = {"jobs": "Job.batch", "pods": "Pod"}[kind]
            raise ApiError(422, "Invalid", f'{what} "{name}" is invalid: {"; ".join(errors)}')
        if kind == "pods":
            violations = restricted_errors(body["spec"])
            if violations:
                words = f'violates PodSecurity "restricted:latest": {", ".join(violations)}'
                raise ApiError(403, "Forbidden", f'pods "{name}" is forbidden: {words}')

    def _apply(self, kind: str, namespace: str, name: str, body: Object, query: Mapping[str, str]) -> Object:
        """Server-side apply, in outline: what is said is set; what others have set is a conflict unless forced."""
        found = self.objects.get((kind, namespace, name))
        if namespace and namespace not in self.namespaces:
            raise ApiError(404, "NotFound", f'namespaces "{namespace}" not found')
        dry, force, ours = "dryRun" in query, query.get("force") == "true", query["fieldManager"] == "bugurt"
        if found is None:
            body["metadata"].setdefault("namespace", namespace)
            if dry:
                return body
            self._record(body, query["fieldManager"])
            self._add(kind, body)
            if kind == "namespaces":
                self.namespaces.add(name)
            return body
        if ours and (kind, name) in self.foreign and not force:
            raise ApiError(
                409, "Conflict", 'Apply failed with 1 conflict: conflict with "kubectl-edit" using v1: .spec'
            )
        if dry:
            return found
        if ours:
            self.foreign.discard((kind, name))
        else:
            self.foreign.add((kind, name))
        before = json.dumps(found, sort_keys=True)
        _merge(found, body)
        if json.dumps(found, sort_keys=True) != before:
            self._record(found, query["fieldManager"])
            self._touch(kind, found)
        return found

    def _record(self, thing: Object, manager: str) -> None:
        """Who applied something, and when; applying that changes nothing leaves it as it is."""
        self.now += timedelta(seconds=1)
        others = [r for r in thing["metadata"].get("managedFields", []) if r["manager"] != manager]
        ours = {"manager": manager, "operation": "Apply", "time": self._stamp()}
        thing["metadata"]["managedFields"] = [*others, ours]

    def _watch(self, path: str, query: dict[str, str]) -> Iterator[bytes]:
        kind, namespace, _ = self._place(path)
        seen = int(query.get("resourceVersion") or self._version)
        if seen < self._compacted:
            gone = {"code": 410, "reason": "Expired", "message": f"too old resource version: {seen}"}
            yield json.dumps({"type": "ERROR", "object": gone}).encode()
            return
        quiet = 0
        while True:
            with self.lock:
                fresh = [h for h in self._history if h[0] > seen]
                for version, its_kind, its_namespace, event, found in fresh:
                    seen = version
                    if (its_kind, its_namespace) == (kind, namespace) and _chosen(found, query):
                        quiet = self._idle = 0
                        yield json.dumps({"type": event, "object": found}).encode()
                if fresh:
                    continue
                if quiet >= IDLE_TICKS:
                    self._idle += 1
                    if self._idle > STANDSTILL:
                        raise AssertionError(f"nothing moves any more: {sorted(self.jobs())}")
                    return
                before = self._version
                self.tick()
                quiet = quiet + 1 if self._version == before else 0

    def _log(self, path: str, query: dict[str, str]) -> Iterator[bytes]:
        match = re.fullmatch(r"/api/v1/namespaces/([\w.-]+)/pods/([\w.-]+)/log", path)
        pod = self.objects.get(("pods", match[1], match[2])) if match else None
        if match is None or pod is None:
            raise ApiError(404, "NotFound", "pod not found")
        if pod["status"]["phase"] == "Pending":
            raise ApiError(400, "BadRequest", f'container "stage" in pod "{match[2]}" is waiting to start')
        return self._log_lines(pod, query)

    def _log_lines(self, pod: Object, query: dict[str, str]) -> Iterator[bytes]:
        lines = self.logs.setdefault(pod["metadata"]["name"], [])
        start = 0
        if "sinceTime" in query:
            start = sum(1 for stamp, _ in lines if stamp[:19] < query["sinceTime"][:19])
        if "tailLines" in query:
            start = max(start, len(lines) - int(query["tailLines"]))
        while True:
            with self.lock:
                for stamp, text in lines[start:]:
                    yield f"{stamp} {text}".encode()
                start = len(lines)
                if "follow" not in query or pod["status"]["phase"] not in ("Pending", "Running"):
                    return
                self.tick()

    # -- objects

    def _stamp(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _key(self, kind: str, thing: Object) -> tuple[str, str, str]:
        return kind, thing["metadata"]["namespace"], thing["metadata"]["name"]

    def _add(self, kind: str, thing: Object) -> None:
        thing["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": self._stamp()}
        self.objects[self._key(kind, thing)] = thing
        self._touch(kind, thing, "ADDED")

    def _touch(self, kind: str, thing: Object, event: str = "MODIFIED") -> None:
        self._version += 1
        thing["metadata"]["resourceVersion"] = str(self._version)
        self._history.append((self._version, kind, thing["metadata"]["namespace"], event, _copy(thing)))
        if len(self._history) > 5000:
            self.compact(2500)

    def compact(self, keep: int = 0) -> None:
        """Forget history, as etcd does: older watches get 410."""
        self._history = self._history[-keep:] if keep else []
        self._compacted = self._history[0][0] if self._history else self._version

    def _remove(self, kind: str, thing: Object) -> None:
        self.objects.pop(self._key(kind, thing), None)
        self._touch(kind, thing, "DELETED")

    def _condition(self, thing: Object, kind: str, reason: str, message: str, status: str = "True") -> None:
        found = thing.setdefault("status", {}).setdefault("conditions", [])
        new = {"type": kind, "status": status, "reason": reason, "message": message}
        if any(new.items() <= c.items() for c in found):
            return
        found[:] = [c for c in found if c["type"] != kind]
        found.append({**new, "lastTransitionTime": self._stamp()})

    def event(self, thing: Object, kind: str, reason: str, message: str) -> None:
        """Record an event about an object, once."""
        meta = thing["metadata"]
        name = f"{meta['name']}.{reason.lower()}"
        key = ("events", meta["namespace"], name)
        if key in self.objects:
            return
        new = {
            "metadata": {"name": name, "namespace": meta["namespace"]},
            "involvedObject": {"kind": kind, "name": meta["name"], "uid": meta["uid"]},
            "reason": reason,
            "message": message,
            "lastTimestamp": self._stamp(),
        }
        self._add("events", new)

    # -- what moves them

    def tick(self) -> None:
        """A second passes: the kubelet moves each pod one step, the controllers look at each Job."""
        with self.lock:
            self.now += timedelta(seconds=1)
            for home in list(self._no_account_yet):
                self._no_account_yet[home] -= 1
                if self._no_account_yet[home] <= 0:
                    del self._no_account_yet[home]
                    self._add("serviceaccounts", {"metadata": {"name": "default", "namespace": home}})
            for (kind, _, _), thing in list(self.objects.items()):
                if kind == "pods":
                    self._kubelet(thing)
            for (kind, _, _), thing in list(self.objects.items()):
                if kind == "jobs" and self._key(kind, thing) in self.objects:
                    before = json.dumps(thing)
                    self._queue(thing)
                    self._controller(thing)
                    if json.dumps(thing) != before and self._key(kind, thing) in self.objects:
                        self._touch("jobs", thing)
            self._collect_garbage()

    def _collect_garbage(self) -> None:
        uids = {o["metadata"]["uid"] for o in self.objects.values()}
        for (kind, _, _), thing in list(self.objects.items()):
            owners = thing["metadata"].get("ownerReferences")
            if owners and not any(o["uid"] in uids for o in owners):
                if kind == "jobs":
                    if not thing["metadata"].get("deletionTimestamp"):
                        thing["metadata"]["deletionTimestamp"] = self._stamp()
                        self._touch(kind, thing)
                else:
                    self._remove(kind, thing)

    # Kueue

    def _workload(self, job: Object) -> Object:
        name = f"job-{job['metadata']['name']}"
        key = ("workloads", job["metadata"]["namespace"], name)
        if key not in self.objects:
            labels = {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]}
            owner = {"apiVersion": "batch/v1", "kind": "Job", "uid": job["metadata"]["uid"], "controller": True}
            meta = {
                "name": name,
                "namespace": job["metadata"]["namespace"],
                "labels": labels,
                "ownerReferences": [owner],
            }
            self._add("workloads", {"metadata": meta, "spec": {"active": True}, "status": {}})
        return self.objects[key]

    def _queue(self, job: Object) -> None:
        if not self.kueue or QUEUE_LABEL not in job["metadata"]["labels"] or not job["spec"].get("suspend"):
            return
        workload = self._workload(job)
        if self.queue_open:
            self._condition(workload, "QuotaReserved", "QuotaReserved", "Quota reserved in ClusterQueue bugurt")
            self._condition(workload, "Evicted", "QuotaReserved", "", status="False")
            job["spec"]["suspend"] = False
            return
        if conditions(workload).get("Evicted", {}).get("status") != "True":
            message = (
                "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu "
                "in flavor gpu, 1 more needed"
            )
            self._condition(workload, "QuotaReserved", "Pending", message, status="False")

    # the Job controller

    def _controller(self, job: Object) -> None:
        meta, spec, status = job["metadata"], job["spec"], job["status"]
        pods = self.pods_of(meta["name"])
        living = [p for p in pods if p["status"]["phase"] in ("Pending", "Running")]
        if meta.get("deletionTimestamp"):
            for pod in pods:
                self._remove("pods", pod)
            self._remove("jobs", job)
            return
        done = next((c for c in status.get("conditions", []) if c["type"] in ("Complete", "Failed")), None)
        if done is not None:
            ended = datetime.fromisoformat(done["lastTransitionTime"])
            if (self.now - ended).total_seconds() >= spec.get("ttlSecondsAfterFinished", 1e12):
                meta["deletionTimestamp"] = self._stamp()
            return
        decided = next((c for c in status.get("conditions", []) if c["type"] in ENDS), None)
        if decided is not None:
            self._condition(job, ENDS[decided["type"]], decided["reason"], decided["message"])
            if decided["type"] == "SuccessCriteriaMet":
                status["completionTime"] = self._stamp()
            return
        if spec.get("suspend"):
            for pod in living:
                self._remove("pods", pod)
            status |= {"active": 0, "ready": 0}
            status.pop("startTime", None)
            return
        status.setdefault("startTime", self._stamp())
        age = (self.now - datetime.fromisoformat(status["startTime"])).total_seconds()
        if age > spec.get("activeDeadlineSeconds", 1e12):
            self._fail_job(job, "DeadlineExceeded", "Job was active longer than specified deadline")
            return
        if self._judge(job, pods):
            return
        self._progress(job, pods)
        if not any(c["type"] in ENDS for c in status.get("conditions", [])):
            self._create_pods(job)
        self._tally(job)

    def _tally(self, job: Object) -> None:
        pods = self.pods_of(job["metadata"]["name"])
        phases = [p["status"]["phase"] for p in pods]
        job["status"]["active"] = phases.count("Pending") + phases.count("Running")
        job["status"]["ready"] = phases.count("Running")
        job["status"]["succeeded"] = phases.count("Succeeded")

    def _judge(self, job: Object, pods: list[Object]) -> bool:
        """Count failed pods by the podFailurePolicy; True when it fails the Job."""
        for pod in pods:
            uid = pod["metadata"]["uid"]
            if pod["status"]["phase"] != "Failed" or uid in self._judged:
                continue
            self._judged.add(uid)
            action, index = _action(job["spec"], pod)
            if pod["metadata"].get("deletionTimestamp"):
                self._remove("pods", pod)  # counted: its finalizer is taken off
            if action == "Ignore":
                continue
            job["status"]["failed"] = job["status"].get("failed", 0) + 1
            shard = pod["metadata"]["labels"].get(INDEX)
            if action == "FailJob":
                name = pod["metadata"]["name"]
                code = _exit_code(pod)
                message = (
                    f"Container stage for pod {pod['metadata']['namespace']}/{name} failed with exit code {code} "
                    f"matching FailJob rule at index {index}"
                )
                self._fail_job(job, "PodFailurePolicy", message)
                return True
            failures = job.setdefault("_failures", {})
            failures[shard] = failures.get(shard, 0) + (10**6 if action == "FailIndex" else 1)
        return False

    def _progress(self, job: Object, pods: list[Object]) -> None:
        spec, status = job["spec"], job["status"]
        failures = job.get("_failures", {})
        if spec.get("completionMode") == "Indexed":
            total = spec["completions"]
            done = {int(p["metadata"]["labels"][INDEX]) for p in pods if p["status"]["phase"] == "Succeeded"}
            status["completedIndexes"] = _ranges(done)
            if "backoffLimitPerIndex" in spec:
                lost = {int(i) for i, n in failures.items() if n > spec["backoffLimitPerIndex"]}
                status["failedIndexes"] = _ranges(lost)
                if len(lost) > spec.get("maxFailedIndexes", total):
                    self._fail_job(job, "MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number")
                    return
                if len(done) + len(lost) == total and lost:
                    self._fail_job(job, "FailedIndexes", "Job has failed indexes")
                    return
            elif sum(failures.values()) > spec.get("backoffLimit", 6):
                self._fail_job(job, "BackoffLimitExceeded", "Job has reached the specified backoff limit")
                return
            if len(done) == total:
                self._complete(job)
            return
        if any(p["status"]["phase"] == "Succeeded" for p in pods):
            self._complete(job)
        elif sum(failures.values()) > spec.get("backoffLimit", 6):
            self._fail_job(job, "BackoffLimitExceeded", "Job has reached the specified backoff limit")

    def _complete(self, job: Object) -> None:
        self._condition(job, "SuccessCriteriaMet", "CompletionsReached", "Reached expected number of succeeded pods")

    def _fail_job(self, job: Object, reason: str, message: str) -> None:
        self._condition(job, "FailureTarget", reason, message)
        for pod in self.pods_of(job["metadata"]["name"]):
            if pod["status"]["phase"] in ("Pending", "Running"):
                self._remove("pods", pod)
        self._tally(job)

    def _create_pods(self, job: Object) -> None:
        spec, meta = job["spec"], job["metadata"]
        pods = self.pods_of(meta["name"])
        living = [p for p in pods if p["status"]["phase"] in ("Pending", "Running")]
        if spec.get("completionMode") == "Indexed":
            taken = {p["metadata"]["labels"][INDEX] for p in pods if p["status"]["phase"] != "Failed"}
            limit = spec.get("backoffLimitPerIndex", 10**9)
            lost = {i for i, n in job.get("_failures", {}).items() if n > limit}
            open_indexes = [str(i) for i in range(spec["completions"]) if str(i) not in taken | lost]
            wanted: list[str | None] = list(open_indexes[: spec.get("parallelism", 1) - len(living)])
        else:
            wanted = [] if living else [None]
        for index in wanted:
            try:
                self._admit_pod(job)
                self._create_pod(job, index)
            except ApiError as error:
                self.event(job, "Job", "FailedCreate", f"Error creating: {error.message}")
                return

    def _admit_pod(self, job: Object) -> None:
        """What admission has against one more pod of a Job, whatever it is like."""
        meta = job["metadata"]
        home = meta["namespace"]
        self._admit_account(f"{meta['name']}-", home, job["spec"]["template"]["spec"])
        message = self.quota_message
        for (kind, namespace, name), quota in self.objects.items():
            if (kind, namespace) == ("resourcequotas", home) and quota["spec"]["hard"].get("pods") == "0":
                used = "requested: pods=1, used: pods=0, limited: pods=0"
                message = f'pods "{meta["name"]}-" is forbidden: exceeded quota: {name}, {used}'
        if message is not None:
            raise ApiError(403, "Forbidden", message)

    def _admit_account(self, pod: str, home: str, spec: Object) -> None:
        account = spec.get("serviceAccountName", "default")
        if self.accounts_needed and ("serviceaccounts", home, account) not in self.objects:
            words = f'error looking up service account {home}/{account}: serviceaccount "{account}" not found'
            raise ApiError(403, "Forbidden", f'pods "{pod}" is forbidden: {words}')

    def _create_pod(self, job: Object, index: str | None) -> None:
        meta = job["metadata"]
        self._serial += 1
        template = _copy(job["spec"]["template"])
        labels = {**template.get("metadata", {}).get("labels", {}), JOB_NAME: meta["name"]}
        labels["batch.kubernetes.io/controller-uid"] = meta["uid"]
        middle = ""
        if index is not None:
            labels[INDEX] = index
            middle = f"-{index}"
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"], "controller": True}
        pod = {
            "metadata": {
                "name": f"{meta['name']}{middle}-{self._serial:05d}",
                "namespace": meta["namespace"],
                "labels": labels,
                "ownerReferences": [owner],
            },
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }
        self._validate("pods", pod)
        self._add("pods", pod)

    # the scheduler and the kubelet

    def _kubelet(self, pod: Object) -> None:
        status = pod["status"]
        before = json.dumps(status)
        if status["phase"] == "Pending":
            self._start_pod(pod)
        elif status["phase"] == "Running" and pod["metadata"]["labels"].get(COMPONENT_LABEL) not in self.held:
            self._run_pod(pod)
        if json.dumps(status) != before and self._key("pods", pod) in self.objects:
            self._touch("pods", pod)

    def _fault(self, pod: Object, *kinds: str) -> Fault | None:
        labels = pod["metadata"]["labels"]
        for fault in self.faults:
            shard = labels.get(INDEX)
            mine = fault.shard is None or str(fault.shard) == shard
            if fault.kind in kinds and fault.component == labels.get(COMPONENT_LABEL) and mine:
                return fault
        return None

    def _use_up(self, fault: Fault) -> None:
        fault.times -= 1
        if fault.times <= 0:
            self.faults.remove(fault)

    def _start_pod(self, pod: Object) -> None:
        container = pod["spec"]["containers"][0]
        status = pod["status"]
        asked = next((n for k, n in container["resources"].get("limits", {}).items() if k.endswith("/gpu")), 0)
        if "node" not in pod:
            if int(asked) > self._free_gpus():
                message = (
                    "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available: "
                    "1 No preemption victims found for incoming pod."
                )
                self._condition(pod, "PodScheduled", "Unschedulable", message, status="False")
                return
            lacks = [r for r in ("memory", "ephemeral-storage") if self._too_much(container, r)]
            if lacks:
                message = f"0/1 nodes are available: 1 Insufficient {lacks[0]}. preemption: 0/1 nodes are available: …"
                self._condition(pod, "PodScheduled", "Unschedulable", message, status="False")
                return
            admission = self._fault(pod, "admission")
            if admission is not None:
                self._use_up(admission)
                status |= {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": admission.message}
                return
            pod["node"] = "node-1"
            self._condition(pod, "PodScheduled", "", "")
            self._waiting(pod, "ContainerCreating", "")
            return
        image = self._fault(pod, "image")
        if image is None and container["image"].startswith("registry.invalid/"):  # a name that nobody ever has
            image = Fault("", "image", image_message="dial tcp: lookup registry.invalid: no such host")
        if image is not None:
            self._waiting(pod, "ImagePullBackOff", f'Back-off pulling image "{container["image"]}"')
            self.event(pod, "Pod", "Failed", image.image_message.format(image=container["image"]))
            return
        missing = [
            s["secretRef"]["name"]
            for s in container.get("envFrom", [])
            if "secretRef" in s and s["secretRef"]["name"] not in self.secrets
        ]
        if missing:
            self._waiting(pod, "CreateContainerConfigError", f'secret "{missing[0]}" not found')
            return
        started = {"running": {"startedAt": self._stamp()}}
        status |= {"phase": "Running", "containerStatuses": [self._container(pod, started)]}

    def _too_much(self, container: Object, resource: str) -> bool:
        asked = container["resources"].get("requests", {}).get(resource, 0)
        return quantity(str(asked)) > 2**40  # what the one node has of each

    def _free_gpus(self) -> int:
        used = 0
        for (kind, _, _), pod in self.objects.items():
            if kind == "pods" and "node" in pod and pod["status"]["phase"] in ("Pending", "Running"):
                limits = pod["spec"]["containers"][0]["resources"].get("limits", {})
                used += sum(int(n) for k, n in limits.items() if k.endswith("/gpu"))
        return self.gpus - used

    def _container(self, pod: Object, state: Object) -> Object:
        return {"name": "stage", "image": pod["spec"]["containers"][0]["image"], "state": state}

    def _waiting(self, pod: Object, reason: str, message: str) -> None:
        state = {"waiting": {"reason": reason, "message": message}}
        pod["status"]["containerStatuses"] = [self._container(pod, state)]

    def environment(self, pod: Object) -> dict[str, str]:
        """A container's variables as the kubelet resolves them."""
        container = pod["spec"]["containers"][0]
        env: dict[str, str] = {}
        for source in container.get("envFrom", []):
            env |= self.secrets.get(source["secretRef"]["name"], {})
        own: dict[str, str] = {}
        for entry in container.get("env", []):
            own[entry["name"]] = expand(entry.get("value", ""), own)
        if INDEX in pod["metadata"]["labels"]:
            own["JOB_COMPLETION_INDEX"] = pod["metadata"]["labels"][INDEX]
        return env | own

    def _run_pod(self, pod: Object) -> None:
        meta = pod["metadata"]
        if _job_of(pod) is None:  # somebody's own pod, and no program of ours
            self._end_pod(pod, 0)
            return
        fault = self._fault(pod, "exit", "evict", "oom", "drain", "start")
        if fault is not None:
            self._use_up(fault)
            if fault.kind == "evict":
                message = fault.message or "The node was low on resource: ephemeral-storage."
                target = ("DisruptionTarget", "TerminationByKubelet", message)
                self._end_pod(pod, 137, reason="Evicted", message=message, disruption=target)
            elif fault.kind == "drain":
                target = (
                    "DisruptionTarget",
                    "DeletionByTaintManager",
                    "Taint manager: deleting due to NoExecute taint",
                )
                self._end_pod(pod, 143, reason="", message="", disruption=target)
            elif fault.kind == "oom":
                self._end_pod(pod, 137, why="OOMKilled")
            elif fault.kind == "start":
                self._end_pod(pod, 128, why="StartError", said=fault.message)
            else:
                self._end_pod(pod, fault.code, said=fault.message)
            return
        task = self._at_work.pop(meta["name"], None) or self._begin(pod)
        try:
            code = int(self.runner(task) or 0)
            words = task.lines[-1] if task.lines else ""
        except BugurtError as error:
            code, words = int(error.exit_code), json.dumps({"level": "error", "message": str(error)})
            task.lines.append(words)
        if code == STILL_AT_WORK:
            self._at_work[meta["name"]] = task
            self._idle = 0
            return
        stamped = self.logs.setdefault(meta["name"], [])
        for number, line in enumerate(task.lines):
            stamped.append((f"{self.now:%Y-%m-%dT%H:%M:%S}.{number:09d}Z", line))
        self._end_pod(pod, code, said=words if code else "")

    def _begin(self, pod: Object) -> Task:
        meta = pod["metadata"]
        shard = meta["labels"].get(INDEX)
        siblings = [p for p in self.pods_of(meta["labels"][JOB_NAME]) if p["metadata"]["labels"].get(INDEX) == shard]
        task = Task(
            component=meta["labels"].get(COMPONENT_LABEL, ""),
            job=meta["labels"][JOB_NAME],
            pod=meta["name"],
            shard=int(shard) if shard is not None else None,
            tries=len(siblings),
            env=self.environment(pod),
        )
        self.runs.append(task)
        return task

    def _end_pod(
        self,
        pod: Object,
        code: int,
        *,
        why: str = "",
        said: str = "",
        reason: str | None = None,
        message: str = "",
        disruption: tuple[str, str, str] | None = None,
    ) -> None:
        status = pod["status"]
        ended = {"exitCode": code, "reason": why or ("Completed" if code == 0 else "Error"), "message": said}
        ended["finishedAt"] = self._stamp()
        status |= {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [self._container(pod, {"terminated": ended})],
        }
        if reason:
            status |= {"reason": reason, "message": message}
        if disruption is not None:
            self._condition(pod, *disruption)
        self._touch("pods", pod)


class _Lines:
    """A stream over a generator."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines

    def __iter__(self) -> Iterator[bytes]:
        return self._lines

    def close(self) -> None:
        """Nothing to give back: a generator that nobody reads any more just ends."""


def _merge(target: Object, patch: Object) -> None:
    """RFC 7396."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            _merge(target.setdefault(key, {}), value)
        else:
            target[key] = value


def _chosen(thing: Object, query: Mapping[str, str]) -> bool:
    labels = thing["metadata"].get("labels") or {}
    for part in filter(None, query.get("labelSelector", "").split(",")):
        name, _, value = part.partition("=")
        if labels.get(name) != value:
            return False
    for part in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, value = part.partition("=")
        found: Any = thing
        for step in path.split("."):
            found = (found or {}).get(step)
        if found != value:
            return False
    return True


def _job_of(pod: Object) -> str | None:
    found: str | None = pod["metadata"].get("labels", {}).get(JOB_NAME)
    return found


def _exit_code(pod: Object) -> int | None:
    for status in pod["status"].get("containerStatuses", []):
        ended = status["state"].get("terminated")
        if ended:
            return int(ended["exitCode"])
    return None


def _action(spec: Object, pod: Object) -> tuple[str, int]:
    """What the podFailurePolicy says of a failed pod: the first rule that fits."""
    code = _exit_code(pod)
    held = {c["type"] for c in pod["status"].get("conditions", []) if c["status"] == "True"}
    for index, rule in enumerate(spec.get("podFailurePolicy", {}).get("rules", [])):
        codes = rule.get("onExitCodes")
        if codes is not None and code:
            inside = code in codes["values"]
            if inside if codes["operator"] == "In" else not inside:
                return rule["action"], index
        if any(c["type"] in held for c in rule.get("onPodConditions", [])):
            return rule["action"], index
    return "Count", -1


def _ranges(numbers: set[int]) -> str:
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, p)) for p in parts)
