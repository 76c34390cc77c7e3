"""What ``bugurt doctor`` looks at in a cluster. Reads only, but for dry runs that the API server does not keep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cli import manifests
from cli.checks import Check, Finding, check_clock, fail, ok, warn
from cli.clusters.base import Component, JobRequest
from cli.clusters.kubernetes_api import METADATA_ONLY, Access, ApiError, Unreachable, translate
from cli.clusters.kubernetes_objects import conditions, moment, one_line
from cli.image_checks import check_image, is_loopback
from cli.kustomize import KUEUE, allocatable, kueue_version, quantity, service_namespace
from jobs.specs import STAGES, ConfigError

if TYPE_CHECKING:
    from cli.settings import Settings

Object = dict[str, Any]
FLOOR = (1, 33)  # backoffLimitPerIndex and successPolicy are stable from here on
#: (group, resource, verbs) that a user needs; the same as Role bugurt-user of k8s/base.
RIGHTS = (
    ("batch", "jobs", ("create", "get", "list", "watch", "patch", "delete")),
    ("", "pods", ("get", "list")),
    ("", "pods/log", ("get",)),
    ("", "events", ("list",)),
)


class ClusterChecks:
    """The checks of one cluster, in their order."""

    def __init__(self, settings: Settings, access: Access) -> None:
        self.settings = settings
        self.access = access
        self.api = access.api
        self.namespace = access.namespace
        self._core = f"/api/v1/namespaces/{access.namespace}"

    def all(self) -> list[tuple[str, Check]]:
        """Names and checks."""
        return [
            ("cluster", self.version),
            ("namespace", self.check_namespace),
            ("permissions", self.permissions),
            ("accounts", self.accounts),
            ("secrets", self.secrets),
            ("jobs", self.admission),
            ("queue", self.queue),
            ("gpu", self.gpus),
            ("room", self.room),
            ("images", self.images),
            ("bucket in the cluster", self.bucket_inside),
        ]

    def _get(self, doing: str, path: str, **options: Any) -> Object | None:
        """An object, None when it is not there; ConfigError and TemporaryError for all else."""
        try:
            return self.api.request("GET", path, **options)
        except ApiError as error:
            if error.status == 404:
                return None
            raise translate(error, doing, self.api.host) from error
        except Unreachable as error:
            raise translate(error, doing, self.api.host) from error

    # -- the cluster as such

    def version(self) -> Iterator[Finding]:
        """Reach it, and see whether it is new enough."""
        found = self._get("asking the version", "/version") or {}
        digits = [re.sub(r"\D", "", str(found.get(part, ""))) for part in ("major", "minor")]
        text = f"context {self.access.context}, {self.api.host}, Kubernetes {found.get('gitVersion', '?')}"
        if not all(digits):
            yield warn("cluster", text, "it does not tell its version")
        elif (int(digits[0]), int(digits[1])) < FLOOR:
            yield fail("cluster", text, f"bugurt needs {FLOOR[0]}.{FLOOR[1]} or newer")
        else:
            yield ok("cluster", text)

    def check_namespace(self) -> Iterator[Finding]:
        """Whether it is there, and what its pod security says."""
        try:
            found = self._get("reading the namespace", f"/api/v1/namespaces/{self.namespace}")
        except ConfigError:
            yield warn("namespace", f"{self.namespace}: you may not look at namespaces")
            return
        if found is None:
            yield fail("namespace", f"there is no namespace {self.namespace}", "bugurt install")
            return
        level = (found["metadata"].get("labels") or {}).get("pod-security.kubernetes.io/enforce")
        yield ok("namespace", self.namespace)
        if level == "restricted":
            yield ok("pod security", "restricted")
        else:
            yield warn("pod security", f"{level or 'not set'}; the pods would do under restricted", "bugurt install")

    def permissions(self) -> Iterator[Finding]:
        """By SelfSubjectAccessReview, the way that `kubectl auth can-i` asks."""
        rights = [*RIGHTS]
        if self.settings.cluster.templates:
            rights.append(("", "configmaps", ("create",)))
        missing = [
            f"{verb} {resource}"
            for group, resource, verbs in rights
            for verb in verbs
            if not self._allowed(group, resource, verb)
        ]
        if missing:
            yield fail(
                "permissions",
                f"you may not: {', '.join(missing)}",
                f"an administrator can bind Role bugurt-user to you: kubectl create rolebinding … -n {self.namespace}",
            )
        else:
            yield ok("permissions", f"you may submit, follow and cancel runs in {self.namespace}")

    def _allowed(self, group: str, resource: str, verb: str) -> bool:
        resource, _, sub = resource.partition("/")
        attributes = {"namespace": self.namespace, "group": group, "resource": resource, "verb": verb}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**attributes, **({"subresource": sub} if sub else {})}},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        try:
            answer = self.api.request("POST", path, body=review)
        except (ApiError, Unreachable) as error:
            raise translate(error, "asking for permissions", self.api.host) from error
        return bool((answer.get("status") or {}).get("allowed"))

    # -- what `install` puts there

    def accounts(self) -> Iterator[Finding]:
        """ServiceAccounts, and the driver's Role and its binding."""
        rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{self.namespace}"
        wanted = {
            "ServiceAccount bugurt-stage": f"{self._core}/serviceaccounts/bugurt-stage",
            "ServiceAccount bugurt-driver": f"{self._core}/serviceaccounts/bugurt-driver",
            "Role bugurt-driver": f"{rbac}/roles/bugurt-driver",
            "RoleBinding bugurt-driver": f"{rbac}/rolebindings/bugurt-driver",
        }
        missing, hidden = [], []
        for name, path in wanted.items():
            try:
                if self._get(f"reading {name}", path) is None:
                    missing.append(name)
            except ConfigError:
                hidden.append(name)
        if missing:
            yield fail("accounts", f"missing: {', '.join(missing)}", "bugurt install")
        elif hidden:
            yield warn("accounts", f"you may not look at: {', '.join(hidden)}")
        else:
            yield ok("accounts", "the stages' and the driver's accounts and Role are there")

    def secrets(self) -> Iterator[Finding]:
        """Whether the Secrets are there; their values are not even asked for."""
        section = self.settings.cluster
        remedies = {section.s3_secret: "bugurt install --s3-secret", section.telegram_secret: "bugurt login"}
        if section.image_pull_secret:
            remedies[section.image_pull_secret] = "kubectl create secret docker-registry"
        for name, todo in remedies.items():
            if not name:
                yield ok("secret", "none for the bucket: the nodes' own role opens it")
                continue
            try:
                found = self._get(f"reading Secret {name}", f"{self._core}/secrets/{name}", accept=METADATA_ONLY)
            except ConfigError:
                yield warn("secret", f"{name}: you may not look at Secrets")
                continue
            if found is not None:
                yield ok("secret", f"{name} is there")
            elif name == section.telegram_secret:
                yield warn("secret", f"{name} is missing: only live channels need it, exports do not", todo)
            else:
                yield fail("secret", f"{name} is missing", todo)

    def admission(self) -> Iterator[Finding]:
        """Send each kind of Job and its pod as a dry run: what admission has against them is told now."""
        clock = None
        bad = False
        pods = self._allowed("", "pods", "create")
        for component in manifests.COMPONENTS:
            request = JobRequest(
                name=f"doctor-{component}", run="doctor", component=component, spec={"stage": component}
            )
            job = manifests.render(request, self.settings, namespace=self.namespace)[0]
            pod = {"apiVersion": "v1", "kind": "Pod", **job["spec"]["template"]}
            pod["metadata"] = {**pod["metadata"], "name": f"doctor-{component}", "namespace": self.namespace}
            sent = [(f"/apis/batch/v1/namespaces/{self.namespace}/jobs", job)]
            if pods:
                sent.append((f"{self._core}/pods", pod))
            for path, body in sent:
                try:
                    answer = self.api.request("POST", path, query={"dryRun": "All"}, body=body)
                    clock = clock or moment(answer["metadata"].get("creationTimestamp"))
                except ApiError as error:
                    bad = True
                    yield fail(
                        f"jobs {component}", f"the cluster refuses its {body['kind']}: {one_line(error.message)}"
                    )
                except Unreachable as error:
                    raise translate(error, "trying a Job", self.api.host) from error
        if not bad:
            what = "Jobs and pods" if pods else "Jobs (you may not try pods)"
            yield ok("jobs", f"the cluster accepts the {what} of all stages")
        if clock is not None:
            yield check_clock(clock, "the cluster")

    # -- where they run

    def queue(self) -> Iterator[Finding]:
        """The queue of the settings."""
        name = self.settings.cluster.queue
        group = self._get("looking for Kueue", f"/apis/{KUEUE}")
        if not name:
            hint = "" if group is None else "; Kueue is installed: `queue` in [cluster] would use it"
            yield ok("queue", f"none: Jobs start as soon as nodes have room{hint}")
            return
        if group is None:
            yield fail(
                "queue", f"queue {name} is set, but Kueue is not installed", "install Kueue, or unset cluster.queue"
            )
            return
        path = f"/apis/{KUEUE}/{kueue_version(group)}/namespaces/{self.namespace}/localqueues/{name}"
        try:
            found = self._get(f"reading LocalQueue {name}", path)
        except ConfigError:
            yield warn("queue", f"{name}: you may not look at LocalQueues")
            return
        if found is None:
            yield fail(
                "queue", f"there is no LocalQueue {name} in namespace {self.namespace}", "bugurt install --queue"
            )
            return
        active = conditions(found).get("Active") or {}
        if active.get("status") == "False":
            yield fail("queue", f"{name} is not active: {one_line(active.get('message'))}")
            return
        waiting = (found.get("status") or {}).get("pendingWorkloads", 0)
        yield ok("queue", f"{name} of ClusterQueue {found['spec'].get('clusterQueue')}, {waiting} waiting")

    def gpus(self) -> Iterator[Finding]:
        """GPUs that nodes have to give, against what the settings ask for."""
        asked = self._gpus_asked()
        try:
            nodes = (self._get("listing nodes", "/api/v1/nodes") or {}).get("items") or []
        except ConfigError:
            yield warn("gpu", "you may not list nodes, so their GPUs cannot be counted")
            return
        per_node = [sum(int(n) for k, n in allocatable([node]).items() if k.endswith("/gpu")) for node in nodes]
        total, most = sum(per_node), max(per_node, default=0)
        text = f"{total} on {sum(1 for n in per_node if n)} of {len(nodes)} nodes"
        too_many = {stage: n for stage, n in asked.items() if n > most}
        if too_many:
            wants = ", ".join(f"{stage} asks for {n}" for stage, n in too_many.items())
            stage = next(iter(too_many))
            yield fail(
                "gpu",
                f"{text}; {wants}, no node has more than {most}",
                f"set gpu = 0 in [cluster.{stage}] to use CPUs, or install the NVIDIA device plugin",
            )
        else:
            yield ok("gpu", text)

    def _gpus_asked(self) -> dict[str, int]:
        asked = {}
        for stage in STAGES:
            request = JobRequest(name="x", run="x", component=stage, spec={})
            job = manifests.render(request, self.settings, namespace=self.namespace)[0]
            limits = job["spec"]["template"]["spec"]["containers"][0]["resources"].get("limits", {})
            count = sum(int(n) for k, n in limits.items() if k.endswith("/gpu"))
            if count:
                asked[str(stage)] = count
        return asked

    def room(self) -> Iterator[Finding]:
        """Whether some node is large enough for each stage's pod: one that none is waits without an end."""
        try:
            nodes = (self._get("listing nodes", "/api/v1/nodes") or {}).get("items") or []
        except ConfigError:
            yield warn("room", "you may not list nodes, so their sizes cannot be compared")
            return
        have = [allocatable([node]) for node in nodes]
        tight = False
        for component in manifests.COMPONENTS:
            for resource, setting in (("cpu", "cpu"), ("memory", "memory"), ("ephemeral-storage", "disk")):
                asked = self._requests(component).get(resource)
                most = max((node.get(resource, 0.0) for node in have), default=0.0)
                if asked is not None and quantity(str(asked)) > most:
                    tight = True
                    unit = f"{most:g}" if resource == "cpu" else f"{most / 2**30:.1f}Gi"
                    yield warn(
                        "room",
                        f"{component} asks for {asked} of {resource}, no node has more than {unit}",
                        f"set {setting} in [cluster.{component}], or add larger nodes",
                    )
        if not tight:
            yield ok("room", f"each stage fits on a node ({len(nodes)} nodes)")

    def _requests(self, component: Component) -> Object:
        request = JobRequest(name="x", run="x", component=component, spec={})
        job = manifests.render(request, self.settings, namespace=self.namespace)[0]
        found: Object = job["spec"]["template"]["spec"]["containers"][0]["resources"].get("requests") or {}
        return found

    def images(self) -> Iterator[Finding]:
        """Whether the images can be pulled, as far as the registry tells without credentials."""
        for component in manifests.COMPONENTS:
            name = manifests.image(component, self.settings)
            registry = name.partition("/")[0]
            if "." not in registry and ":" not in registry and registry != "localhost":
                yield warn(
                    "images",
                    f"{name} has no registry, so nodes look for it at docker.io or among what was loaded into them",
                    "set cluster.registry, or load the images: kind load docker-image / k3d image import",
                )
                return
            finding = check_image(name, bool(self.settings.cluster.image_pull_secret))
            yield finding
            if finding.result == "warn":
                return  # the others would say the same

    def bucket_inside(self) -> Iterator[Finding]:
        """Whether the address that pods are given can lead anywhere from inside the cluster."""
        section = self.settings.s3
        endpoint = section.endpoint_in_cluster or section.endpoint
        if not endpoint:
            yield ok("bucket in the cluster", "AWS S3, from everywhere alike")
            return
        host = urlsplit(endpoint).hostname or ""
        if is_loopback(host):
            yield fail(
                "bucket in the cluster",
                f"{endpoint} means the pod itself",
                "set s3.endpoint_in_cluster to the server's address as pods reach it",
            )
            return
        home = service_namespace(host, self.namespace)
        if home is None:
            yield ok("bucket in the cluster", f"pods are given {endpoint}; whether they reach it, a run will show")
            return
        name = host.partition(".")[0]
        try:
            found = self._get(f"reading Service {name}", f"/api/v1/namespaces/{home}/services/{name}")
        except ConfigError:
            yield warn("bucket in the cluster", f"{endpoint}: you may not look at Services in {home}")
            return
        if found is None:
            yield fail(
                "bucket in the cluster", f"there is no Service {name} in namespace {home}", "s3.endpoint_in_cluster"
            )
            return
        ports = [int(p.get("port", 0)) for p in found.get("spec", {}).get("ports") or ()]
        port = urlsplit(endpoint).port or (80 if endpoint.startswith("http:") else 443)
        if ports and port not in ports:
            yield fail(
                "bucket in the cluster", f"Service {name} has no port {port}, but {ports}", "s3.endpoint_in_cluster"
            )
        else:
            yield ok("bucket in the cluster", f"{endpoint}, a Service of this cluster")
