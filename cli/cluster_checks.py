"""What ``bugurt doctor`` looks at in a cluster. Reads only, but for dry runs that the API server does not keep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from cli import manifests
from cli.checks import Check, Finding, check_clock, fail, ok, warn
from cli.clusters.base import Component
from cli.clusters.kubernetes_api import METADATA_ONLY, ApiError, Unreachable, translate
from cli.clusters.kubernetes_objects import QUEUE_LABEL, conditions, moment, one_line
from cli.image_checks import is_loopback
from cli.kustomize import ENFORCE, KUEUE, ca_config_map, is_ours, kueue_version, service_namespace
from cli.node_checks import NodeChecks
from jobs.specs import ConfigError

Object = dict[str, Any]
FLOOR = (1, 33)  # backoffLimitPerIndex and successPolicy are stable from here on
#: (group, resource, verbs) that a user needs; the same as Role bugurt-user of k8s/base.
RIGHTS = (
    ("batch", "jobs", ("create", "get", "list", "watch", "patch", "delete")),
    ("", "pods", ("get", "list")),
    ("", "pods/log", ("get",)),
    ("", "events", ("list",)),
)


class ClusterChecks(NodeChecks):
    """The checks of one cluster, in their order."""

    def all(self) -> list[tuple[str, Check]]:
        """Names and checks."""
        return [
            ("cluster", self.version),
            ("namespace", self.check_namespace),
            ("permissions", self.permissions),
            ("accounts", self.accounts),
            ("secrets", self.secrets),
            ("certificates", self.certificates),
            ("jobs", self.admission),
            ("queue", self.queue),
            ("priority", self.priorities),
            ("gpu", self.gpus),
            ("room", self.room),
            ("images", self.images),
            ("bucket in the cluster", self.bucket_inside),
        ]

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
        level = (found["metadata"].get("labels") or {}).get(ENFORCE)
        yield ok("namespace", self.namespace)
        if level == "restricted":
            yield ok("pod security", "restricted")
        elif is_ours(found):
            yield warn("pod security", f"{level or 'not set'}; the pods would do under restricted", "bugurt install")
        else:
            yield warn(
                "pod security",
                f"{level or 'not set'}; the pods would do under restricted, which would hold for all others here, too",
                f"kubectl label namespace {self.namespace} --overwrite {ENFORCE}=restricted",
            )

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
        if self.settings.cluster.queue and self.kueue:
            yield from self._rights_on_queues(rbac)

    def _rights_on_queues(self, rbac: str) -> Iterator[Finding]:
        name = "bugurt-driver-kueue"
        try:
            parts = [self._get(f"reading {kind} {name}", f"{rbac}/{kind}/{name}") for kind in ("roles", "rolebindings")]
        except ConfigError:
            return  # said above
        if None in parts:
            yield warn(
                "accounts",
                f"Role or RoleBinding {name} is missing: the driver cannot say why a run waits in its queue",
                "bugurt install, by somebody who may read Kueue's Workloads",
            )

    def secrets(self) -> Iterator[Finding]:
        """Whether the Secrets are there; their values are not even asked for."""
        section = self.settings.cluster
        remedies = {section.s3_secret: "bugurt install --s3-secret", section.telegram_secret: "bugurt login"}
        if section.image_pull_secret:
            remedies[section.image_pull_secret] = "kubectl create secret docker-registry"
        for name, todo in remedies.items():
            if not name:
                yield self._no_secret()
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

    def _no_secret(self) -> Finding:
        endpoint = self.settings.s3.endpoint_in_cluster or self.settings.s3.endpoint
        host = urlsplit(endpoint or "").hostname or ""
        if not endpoint or host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
            return ok("secret", "none for the bucket: the nodes' own role opens it")
        return warn(
            "secret",
            f"none for the bucket, and {endpoint} is not AWS, which alone knows the nodes' role",
            'take s3_secret = "" out of [cluster], then bugurt install --s3-secret',
        )

    def certificates(self) -> Iterator[Finding]:
        """Whether pods are given the same certificate authorities as this machine is."""
        if not self.settings.s3.ca_for_pods:
            return
        name = manifests.CA_CONFIG_MAP
        wanted = ca_config_map(self.settings, self.namespace)["data"]
        try:
            found = self._get(f"reading ConfigMap {name}", f"{self._core}/configmaps/{name}")
        except ConfigError:
            yield warn("certificates", f"ConfigMap {name}: you may not look at it")
            return
        if found is None:
            yield fail(
                "certificates", f"ConfigMap {name} is missing, and no pod starts without ca_bundle", "bugurt install"
            )
        elif found.get("data") != wanted:
            yield warn(
                "certificates", f"ConfigMap {name} is not what {self.settings.s3.ca_bundle} holds", "bugurt install"
            )
        else:
            yield ok("certificates", f"pods are given {self.settings.s3.ca_bundle}")

    def admission(self) -> Iterator[Finding]:
        """Send each kind of Job and its pod as a dry run: what admission has against them is told now."""
        clock = None
        bad = False
        pods = self._allowed("", "pods", "create")
        for component in manifests.COMPONENTS:
            job = self._job(component)
            pod = {"apiVersion": "v1", "kind": "Pod", **job["spec"]["template"]}
            pod["metadata"] = {**pod["metadata"], "name": f"doctor-{component}", "namespace": self.namespace}
            sent = [(f"/apis/batch/v1/namespaces/{self.namespace}/jobs", job)]
            if pods:
                sent.append((f"{self._core}/pods", pod))
            for path, body in sent:
                try:
                    answer = self.api.request("POST", path, query={"dryRun": "All"}, body=body)
                    clock = clock or moment(answer["metadata"].get("creationTimestamp"))
                    finding = self._taken(component, job, answer) if body is job else None
                    if finding is not None:
                        bad = True
                        yield finding
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

    def _taken(self, component: Component, job: Object, answer: Object) -> Finding | None:
        """What Kueue does to a Job that names no queue."""
        if QUEUE_LABEL in job["metadata"]["labels"]:
            return None
        queue = (answer["metadata"].get("labels") or {}).get(QUEUE_LABEL)
        where = f"jobs {component}"
        own = f"a template of your own for the driver with the label {QUEUE_LABEL} and a queue that always has room"
        if queue and component == "driver":
            return warn(
                where,
                f"Kueue puts the driver into the LocalQueue `{queue}`: it waits for quota, and holds it while it waits",
                f"give that LocalQueue another name; or {own}",
            )
        if queue or not (answer.get("spec") or {}).get("suspend"):
            return None
        todo = own
        if not self.settings.cluster.queue:  # an exempt namespace is one where nothing can be queued
            exempt = f"exempt namespace {self.namespace} by managedJobsNamespaceSelector in Kueue's configuration"
            todo = f"{exempt}; or {own if component == 'driver' else 'name a LocalQueue in cluster.queue'}"
        return fail(
            where, "it would never start: Kueue holds Jobs without a queue back (manageJobsWithoutQueueName)", todo
        )

    # -- where they run

    @cached_property
    def kueue(self) -> str:
        """The version to talk to Kueue in; empty where it is not installed."""
        return kueue_version(self._get("looking for Kueue", f"/apis/{KUEUE}"))

    def queue(self) -> Iterator[Finding]:
        """The queue of the settings."""
        name = self.settings.cluster.queue
        if not name:
            hint = "; Kueue is installed: `queue` in [cluster] would use it" if self.kueue else ""
            yield ok("queue", f"none: Jobs start as soon as nodes have room{hint}")
            return
        if not self.kueue:
            yield fail(
                "queue", f"queue {name} is set, but Kueue is not installed", "install Kueue, or unset cluster.queue"
            )
            return
        path = f"/apis/{KUEUE}/{self.kueue}/namespaces/{self.namespace}/localqueues/{name}"
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

    def priorities(self) -> Iterator[Finding]:
        """Whether the classes that the Jobs name are there: without its class a pod is refused, or a Workload."""
        for component in manifests.COMPONENTS:
            job = self._job(component)
            name = job["metadata"]["labels"].get(manifests.PRIORITY_LABEL)
            if name and not self.kueue:
                continue  # the queue's check says it
            kind, path = "WorkloadPriorityClass", f"/apis/{KUEUE}/{self.kueue}/workloadpriorityclasses/{name}"
            todo = "bugurt install --queue makes bugurt-high and bugurt-low"
            if not name:
                name = job["spec"]["template"]["spec"].get("priorityClassName")
                kind, path = "PriorityClass", f"/apis/scheduling.k8s.io/v1/priorityclasses/{name}"
                todo = f"kubectl create priorityclass {name} --value=1000"
            if not name:
                continue
            try:
                found = self._get(f"reading {kind} {name}", path)
            except ConfigError:
                yield warn("priority", f"{component}: {kind} {name}: you may not look at it")
                continue
            if found is None:
                out = f"{todo}; or take priority_class out of [cluster.{component}]"
                yield fail("priority", f"{component}: there is no {kind} {name}", out)
            else:
                yield ok("priority", f"{component}: {kind} {name} is there")

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
        behind = self._behind(host) if home is None else ""
        if behind:
            yield warn(
                "bucket in the cluster",
                f"{endpoint} is the address of {behind}: what a node port, a load balancer or an ingress rewrites, "
                "network policies refuse",
                'set s3.endpoint_in_cluster = "http://SERVICE.NAMESPACE.svc:PORT"',
            )
            return
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

    def _behind(self, host: str) -> str:
        """What of this cluster has an address of the world outside, if something has and may be looked at."""
        for node in self.nodes or ():
            if host in [a.get("address") for a in (node.get("status") or {}).get("addresses") or ()]:
                return f"node {node['metadata']['name']}"
        lists = {"Service": "/api/v1/services", "Ingress": "/apis/networking.k8s.io/v1/ingresses"}
        for kind, path in lists.items():
            try:
                found = (self._get(f"listing {kind} objects", path) or {}).get("items") or []
            except ConfigError:
                continue  # few may look into other people's namespaces
            for thing in found:
                if host in _outer_addresses(thing):
                    return f"{kind} {thing['metadata']['name']} in namespace {thing['metadata']['namespace']}"
        return ""


def _outer_addresses(thing: Object) -> set[str]:
    """Where a Service or an Ingress is reached from outside."""
    points = ((thing.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    spec = thing.get("spec") or {}
    found = {p.get(name) for p in points for name in ("ip", "hostname")}
    found |= {*(spec.get("externalIPs") or ()), *(rule.get("host") for rule in spec.get("rules") or ())}
    return {address for address in found if address}
