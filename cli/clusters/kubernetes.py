"""Jobs of a Kubernetes cluster; see ``cli.clusters.base.Cluster``.

Everything is told by API objects as plain dicts: ``cli.manifests`` makes them, ``cli.clusters.kubernetes_status``
reads them, ``cli.clusters.kubernetes_api`` carries them.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import random
import shlex
import time
from collections.abc import Callable, Iterator
from typing import Any

from cli import manifests
from cli.clusters.base import JobRequest, JobState, JobStatus, LogLine
from cli.clusters.kubernetes_api import (
    MERGE_PATCH,
    Access,
    Api,
    ApiError,
    Stream,
    Unreachable,
    call,
    connect,
    fail,
    find,
)
from cli.clusters.kubernetes_logs import follow_logs, read_logs
from cli.clusters.kubernetes_objects import PREFIX, QUEUE_LABEL
from cli.clusters.kubernetes_status import job_state, job_status
from cli.clusters.kubernetes_waits import HIDDEN
from cli.kustomize import KUEUE, kueue_version
from cli.settings import Settings
from jobs.specs import ConfigError, Interrupted, SpecError, TemporaryError

Object = dict[str, Any]
Objects = list[Object]
Statuses = list[JobStatus]
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
PAGE = 500  # objects of one answer
WATCH_WAITING = 10  # seconds of one watch while pods wait: why they wait is not told by the Job itself
WATCH_RUNNING = 240  # seconds of one watch of a running Job; servers end watches after 5 to 10 minutes
GONE_WAIT = 360.0  # seconds for a Job that is being deleted to go: longer than the longest grace period
MAX_EVENT_CALLS = 3  # waiting pods whose events are asked for


class KubernetesCluster:
    """Stages as ``batch/v1`` Jobs of one namespace."""

    kind = "kubernetes"

    def __init__(
        self, api: Api, settings: Settings, namespace: str, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.api = api
        self.settings = settings
        self.namespace = namespace
        self._sleep = sleep
        self._kueue: str | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> KubernetesCluster:
        """The cluster of the settings' context and namespace. Raises ConfigError."""
        access: Access = connect(settings.cluster.context, settings.cluster.namespace)
        if settings.owner is None:
            with contextlib.suppress(OSError, KeyError):  # a container's uid without a name
                settings = settings.model_copy(update={"owner": getpass.getuser()})
        return cls(access.api, settings, access.namespace)

    @property
    def place(self) -> str:
        """The options by which kubectl looks where we do: its own context may be another one."""
        context = self.settings.cluster.context
        return f"{f'--context {shlex.quote(context)} ' if context else ''}-n {self.namespace}"

    # -- paths and calls

    @property
    def _jobs(self) -> str:
        return f"/apis/batch/v1/namespaces/{self.namespace}/jobs"

    @property
    def _core(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}"

    def _call(self, doing: str, method: str, path: str, **options: Any) -> Object:
        return call(self.api, doing, method, path, **options)

    def _find(self, doing: str, method: str, path: str, **options: Any) -> Object | None:
        """As ``_call``; None when the object is not there."""
        return find(self.api, doing, method, path, **options)

    def _list(self, doing: str, path: str, **query: str) -> tuple[Objects, str]:
        """All objects of a listing, page by page, and its resourceVersion."""
        while True:
            items: Objects = []
            more: dict[str, str] = {}
            try:
                while True:
                    page = self.api.request("GET", path, query={**query, "limit": str(PAGE), **more})
                    items += page.get("items") or []
                    meta = page.get("metadata") or {}
                    if not meta.get("continue"):
                        return items, str(meta.get("resourceVersion") or "")
                    more = {"continue": meta["continue"]}
            except ApiError as error:
                if error.status == 410 and more:
                    continue  # the listing took so long that its snapshot is gone: take a new one
                fail(error, doing, self.api.host)
            except Unreachable as error:
                fail(error, doing, self.api.host)

    def _store_of(self, job: Object) -> str | None:
        found: str | None = (job["metadata"].get("labels") or {}).get(manifests.STORE_LABEL)
        return found

    def _find_job(self, doing: str, name: str) -> Object | None:
        """Our Job of this name; in a shared namespace it may be another bucket's or prefix's, which is none of ours."""
        found = self._find(doing, "GET", f"{self._jobs}/{name}")
        return found if found is not None and self._store_of(found) == manifests.store_digest(self.settings) else None

    # -- the protocol: making and ending Jobs

    def render(self, request: JobRequest) -> Objects:
        """What ``create`` would send. The owner's uid is not known before it is sent."""
        return manifests.render(request, self.settings, namespace=self.namespace)

    def create(self, request: JobRequest) -> JobStatus:
        """Create the Job or adopt it. Raises SpecError when the name belongs to a Job of another bucket."""
        doing = f"creating Job {request.name}"
        uid = self._owner_uid(request.owner) if request.owner else None
        objects = manifests.render(request, self.settings, namespace=self.namespace, owner_uid=uid)
        job = self._create_or_adopt(doing, request.name, objects[0])
        for extra in objects[1:]:
            self._ensure_part(extra, job)
        return self._detail(job)

    def _owner_uid(self, owner: str) -> str:
        found = self._find_job(f"looking for Job {owner}", owner)
        if found is None or found["metadata"].get("deletionTimestamp"):
            # Its children would be swept away the moment they are made.
            raise Interrupted(f"the driver's Job {owner} is gone: the run was cancelled")
        return str(found["metadata"]["uid"])

    def _create_or_adopt(self, doing: str, name: str, job: Object) -> Object:
        while True:
            try:
                return self.api.request("POST", self._jobs, body=job)
            except ApiError as error:
                if error.status == 404:
                    raise ConfigError(
                        f"{doing}: there is no namespace {self.namespace!r} in this cluster; `bugurt install` makes it"
                    ) from error
                if error.status != 409:
                    fail(error, doing, self.api.host)
            except Unreachable as error:
                fail(error, doing, self.api.host)
            found = self._find(doing, "GET", f"{self._jobs}/{name}")
            if found is None:
                continue  # deleted between the two calls
            if self._store_of(found) != self._store_of(job):
                owner = found["metadata"].get("labels", {}).get(manifests.OWNER_LABEL)
                raise SpecError(
                    f"{doing}: namespace {self.namespace} has a Job of that name already, of another bucket or prefix"
                    f"{f' (owner {owner})' if owner else ''}; give the run another name"
                )
            if not found["metadata"].get("deletionTimestamp"):
                return found
            self._wait_until_gone(doing, name, found["metadata"]["uid"])

    def _ensure_part(self, part: Object, job: Object) -> None:
        """An object that its Job needs and takes along when it goes; made after it, so that nothing is left behind."""
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"],
        }
        part["metadata"]["ownerReferences"] = [{**owner, "controller": False, "blockOwnerDeletion": False}]
        doing = f"creating {part['kind']} {part['metadata']['name']}"
        try:
            self.api.request("POST", f"{self._core}/{part['kind'].lower()}s", body=part)
        except ApiError as error:
            if error.status != 409:
                fail(error, doing, self.api.host)
        except Unreachable as error:
            fail(error, doing, self.api.host)

    def _wait_until_gone(self, doing: str, name: str, uid: str) -> None:
        end = time.monotonic() + GONE_WAIT
        for job in self._versions(name):
            if job["metadata"]["uid"] != uid:
                return
            if time.monotonic() > end:
                break
        else:
            return
        raise TemporaryError(f"{doing}: the Job of that name is still being stopped; try again in a while")

    def delete(self, name: str) -> None:
        """Delete the Job in the foreground: it stays, marked, until its pods are gone. Others' Jobs are left alone."""
        doing = f"deleting Job {name}"
        refused = ""
        while (job := self._find_job(doing, name)) is not None:
            # By its uid, for the Job that has been looked at may be gone by now, and somebody else's have its name.
            uid = job["metadata"]["uid"]
            body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}
            try:
                self.api.request("DELETE", f"{self._jobs}/{name}", body={**body, "preconditions": {"uid": uid}})
            except ApiError as error:
                if error.status == 409 and uid != refused:
                    refused = uid  # another one has the name now: look at that
                    continue
                if error.status != 404:
                    fail(error, doing, self.api.host)
            except Unreachable as error:
                fail(error, doing, self.api.host)
            return

    def annotate(self, name: str, notes: dict[str, str]) -> None:
        """Set annotations; names without a prefix get ours."""
        marks = {k if "/" in k else f"{PREFIX}/{k}": v for k, v in notes.items()}
        patch = {"metadata": {"annotations": marks}}
        path = f"{self._jobs}/{name}"
        self._find(f"annotating Job {name}", "PATCH", path, body=patch, content_type=MERGE_PATCH)

    # -- the protocol: looking

    def get(self, name: str) -> JobStatus | None:
        """The Job with the reason why it waits or failed; None where the name is that of another bucket's Job."""
        job = self._find_job(f"reading Job {name}", name)
        return None if job is None else self._detail(job)

    def list(self, run: str | None = None) -> Statuses:
        """Our Jobs, those of this bucket and prefix. Reasons from events are told for a single run only."""
        chosen = manifests.selector(self.settings, run)
        jobs, _ = self._list("listing Jobs", self._jobs, labelSelector=chosen)
        if not jobs:
            return []
        pods: dict[str, Objects] = {}
        if any(self._needs_pods(j) for j in jobs):
            for pod in self._list("listing pods", f"{self._core}/pods", labelSelector=chosen)[0]:
                pods.setdefault(_job_of(pod), []).append(pod)
        found = []
        for job in sorted(jobs, key=lambda j: (j["metadata"].get("creationTimestamp") or "", j["metadata"]["name"])):
            mine = pods.get(job["metadata"]["name"], [])
            events = self._events(job, mine) if run is not None else []
            found.append(job_status(job, mine, events, self._workload(job)))
        return found

    def watch(self, name: str) -> Iterator[JobStatus]:
        """The Job's status now and at each change. Survives all ends of a watch but the Job's own."""
        last: JobStatus | None = None
        for job in self._versions(name):
            status = self._detail(job)
            if status != last:
                yield status
                last = status
            if status.state.finished:
                return

    def _versions(self, name: str) -> Iterator[Object]:
        """The Job's object again and again: at once, at each change and at least every ten seconds while it waits.

        Ends when the Job is gone. A watch ends for many reasons (its time is up, 410, a dropped connection, a server
        that restarts): each time the Job is read anew, so that no change is missed.
        """
        query = {"fieldSelector": f"metadata.name={name}"}
        failures = 0
        while True:
            found, version = self._list(f"reading Job {name}", self._jobs, **query)
            if not found:
                return
            job = found[0]
            yield job
            waits = job_state(job) in (JobState.PENDING, JobState.SUSPENDED) or job["metadata"].get("deletionTimestamp")
            seconds = WATCH_WAITING if waits else WATCH_RUNNING
            try:
                for event in self._watch_events(self._jobs, version, seconds, **query):
                    failures = 0
                    if event["type"] == "DELETED":
                        return
                    if event["type"] in ("ADDED", "MODIFIED"):
                        yield event["object"]
                failures = 0
            except ApiError as error:
                if error.status not in (410, 429, 500, 502, 503, 504):
                    fail(error, f"watching Job {name}", self.api.host)
                failures += error.status != 410
                self._sleep(error.retry_after or _pause(failures))
            except Unreachable:
                failures += 1
                self._sleep(_pause(failures))

    def _watch_events(self, path: str, version: str, seconds: int, **query: str) -> Iterator[Object]:
        """Events of one watch. Raises ApiError for an ERROR event."""
        wanted = {**query, "watch": "true", "resourceVersion": version, "timeoutSeconds": str(seconds)}
        stream: Stream = self.api.stream(path, query=wanted, read_timeout=seconds + 20.0)
        try:
            for line in stream:
                if not line.strip():
                    continue
                try:
                    event = json.loads(line)
                except ValueError as error:
                    raise Unreachable("the watch broke off in the middle of a line") from error
                if event.get("type") == "ERROR":
                    status = event.get("object") or {}
                    raise ApiError(
                        int(status.get("code") or 500), str(status.get("reason")), str(status.get("message"))
                    )
                yield event
        finally:
            stream.close()

    # -- what a Job alone does not tell

    def _needs_pods(self, job: Object) -> bool:
        state, status = job_state(job), job.get("status") or {}
        if state in (JobState.SUCCEEDED, JobState.SUSPENDED):
            return False
        calm = state is JobState.RUNNING and not status.get("failed") and status.get("ready") == status.get("active")
        return not calm

    def _detail(self, job: Object) -> JobStatus:
        pods: Objects = []
        if self._needs_pods(job):
            pods = self.pods(job["metadata"]["name"])
        return job_status(job, pods, self._events(job, pods), self._workload(job))

    def pods(self, name: str) -> Objects:
        """A Job's pods, the oldest first."""
        chosen = f"{JOB_NAME_LABEL}={name}"
        found, _ = self._list(f"listing pods of Job {name}", f"{self._core}/pods", labelSelector=chosen)
        return sorted(found, key=lambda p: (p["metadata"].get("creationTimestamp") or "", p["metadata"]["name"]))

    def _events(self, job: Object, pods: Objects) -> Objects:
        """Events that may say why nothing runs: of pods that hang before their start, or of a Job without pods."""
        if job_state(job) not in (JobState.PENDING, JobState.RUNNING):
            return []
        phases = [(p.get("status") or {}).get("phase") for p in pods]
        names = [p["metadata"]["name"] for p, phase in zip(pods, phases, strict=True) if phase == "Pending"]
        if not names and "Running" not in phases and self._needs_pods(job):
            names = [job["metadata"]["name"]]
        found: Objects = []
        for name in names[:MAX_EVENT_CALLS]:
            query = {"fieldSelector": f"involvedObject.name={name}"}
            found += self._list(f"reading events of {name}", f"{self._core}/events", **query)[0]
        return found

    def _workload(self, job: Object) -> Object | None:
        """Kueue's Workload of a Job that is held back by a queue."""
        if job_state(job) is not JobState.SUSPENDED or QUEUE_LABEL not in job["metadata"].get("labels", {}):
            return None
        if self._kueue is None:
            group = self._find("looking for Kueue", "GET", f"/apis/{KUEUE}")
            self._kueue = kueue_version(group)
        if not self._kueue:
            return None
        path = f"/apis/{KUEUE}/{self._kueue}/namespaces/{self.namespace}/workloads"
        query = {"labelSelector": f"{KUEUE}/job-uid={job['metadata']['uid']}"}
        try:
            found, _ = self._list("reading the Workload", path, **query)
        except ConfigError:
            return HIDDEN  # reading the queue's mind is a right that not everybody has
        return found[0] if found else None

    # -- logs

    def logs(
        self, name: str, *, follow: bool = False, since: float | None = None, tail: int | None = None
    ) -> Iterator[LogLine]:
        """Lines of all pods of the Job, interleaved by their time; with ``follow``, as they come, until it ends."""
        if follow:
            return follow_logs(
                self.api, self._core, lambda: self.pods(name), lambda: self._versions(name), since=since, tail=tail
            )
        return read_logs(self.api, self._core, self.pods(name), since=since, tail=tail)


def _job_of(pod: Object) -> str:
    return str((pod["metadata"].get("labels") or {}).get(JOB_NAME_LABEL, ""))


def _pause(failures: int) -> float:
    return float(min(30.0, 0.5 * 2 ** min(failures, 6)) * random.uniform(0.75, 1.25))  # noqa: S311
