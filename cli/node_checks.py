"""What ``bugurt doctor`` looks at in a cluster's nodes: whether they take the stages' pods and have their images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cli import manifests
from cli.checks import Finding, fail, ok, warn
from cli.clusters.base import Component, JobRequest
from cli.clusters.kubernetes_api import Access, find
from cli.image_checks import check_image
from cli.kustomize import allocatable, quantity
from jobs.specs import STAGES, ConfigError

if TYPE_CHECKING:
    from cli.settings import Settings

Object = dict[str, Any]
#: Kubernetes' own taints of nodes in trouble: they come and go.
PASSING_TAINTS = "node.kubernetes.io/"


def tolerates(tolerations: Iterable[Mapping[str, Any]], taint: Mapping[str, Any]) -> bool:
    """Whether a pod with these tolerations may run on a node with this taint."""
    if taint.get("effect") not in ("NoSchedule", "NoExecute") or str(taint.get("key")).startswith(PASSING_TAINTS):
        return True
    return any(
        t.get("key") in (None, "", taint.get("key"))
        and t.get("effect") in (None, "", taint.get("effect"))
        and (t.get("operator") == "Exists" or (t.get("value") or "") == (taint.get("value") or ""))
        for t in tolerations
    )


def has_labels(node: Mapping[str, Any], pod: Mapping[str, Any]) -> bool:
    """Whether a node has the labels of a pod's nodeSelector."""
    return bool((pod.get("nodeSelector") or {}).items() <= (node["metadata"].get("labels") or {}).items())


def untolerated(node: Mapping[str, Any], pod: Mapping[str, Any]) -> list[str]:
    """The taints that keep a pod from a node, as kubectl writes them."""
    taints = (node.get("spec") or {}).get("taints") or ()
    return [
        f"{t.get('key')}{'=' + t['value'] if t.get('value') else ''}:{t.get('effect')}"
        for t in taints
        if not tolerates(pod.get("tolerations") or (), t)
    ]


def homes(nodes: Iterable[Object], pod: Mapping[str, Any]) -> list[Object]:
    """The nodes that take a pod, by labels and taints."""
    return [n for n in nodes if has_labels(n, pod) and not untolerated(n, pod)]


def gpus_of(node: Object) -> int:
    """The GPUs of a node, of whatever maker."""
    return sum(int(n) for name, n in allocatable([node]).items() if name.endswith("/gpu"))


def has_image(node: Mapping[str, Any], image: str) -> bool:
    """Whether a node's list (of 50 images unless its kubelet is told otherwise) holds an image."""
    status = node.get("status") or {}
    wanted = {image, f"docker.io/{image}"}
    if str((status.get("nodeInfo") or {}).get("containerRuntimeVersion")).startswith("cri-o"):
        wanted.add(f"localhost/{image}")  # where podman puts it; containerd does not look there
    return any(wanted & set(entry.get("names") or ()) for entry in status.get("images") or ())


class NodeChecks:
    """The checks that compare the Jobs with the nodes, and what all checks of a cluster need."""

    def __init__(self, settings: Settings, access: Access) -> None:
        self.settings = settings
        self.access = access
        self.api = access.api
        self.namespace = access.namespace
        self._core = f"/api/v1/namespaces/{access.namespace}"

    def _get(self, doing: str, path: str, **options: Any) -> Object | None:
        """An object, None when it is not there; ConfigError and TemporaryError for all else."""
        return find(self.api, doing, "GET", path, **options)

    def _job(self, component: Component) -> Object:
        """The Job that a run would send."""
        request = JobRequest(name=f"doctor-{component}", run="doctor", component=component, spec={"stage": component})
        return manifests.render(request, self.settings, namespace=self.namespace)[0]

    def _pod(self, component: Component) -> Object:
        spec: Object = self._job(component)["spec"]["template"]["spec"]
        return spec

    @cached_property
    def nodes(self) -> list[Object] | None:
        """All nodes; None where they may not be listed."""
        try:
            return (self._get("listing nodes", "/api/v1/nodes") or {}).get("items") or []
        except ConfigError:
            return None

    def gpus(self) -> Iterator[Finding]:
        """GPUs that nodes have to give, against what the settings ask for."""
        asked = {stage: n for stage in STAGES if (n := manifests.gpus(manifests.stage_container(self._job(stage))))}
        if self.nodes is None:
            yield warn("gpu", "you may not list nodes, so their GPUs cannot be counted")
            return
        per_node = [gpus_of(node) for node in self.nodes]
        total, most = sum(per_node), max(per_node, default=0)
        text = f"{total} on {sum(1 for n in per_node if n)} of {len(self.nodes)} nodes"
        too_many = {stage: n for stage, n in asked.items() if n > most}
        if too_many:
            wants = ", ".join(f"{stage} asks for {n}" for stage, n in too_many.items())
            yield fail(
                "gpu",
                f"{text}; {wants}, no node has more than {most}",
                f"set gpu = 0 in [cluster.{next(iter(too_many))}] to use CPUs, or install the NVIDIA device plugin",
            )
        else:
            yield ok("gpu", text)
        having = [node for node, n in zip(self.nodes, per_node, strict=True) if n]
        versions = [str(((n.get("status") or {}).get("nodeInfo") or {}).get("kubeletVersion")) for n in having]
        if not any("+k3s" in version for version in versions):
            return
        for stage in asked:
            if not self._pod(stage).get("runtimeClassName"):
                yield warn(
                    "gpu",
                    f"{stage} asks for a GPU without a runtime class, and on k3s a pod sees the GPU only with one",
                    f'runtime_class = "nvidia" in [cluster.{stage}]',
                )

    def room(self) -> Iterator[Finding]:
        """Whether some node takes each stage's pod and is large enough: one that none is waits without an end."""
        if self.nodes is None:
            yield warn("room", "you may not list nodes, so their sizes cannot be compared")
            return
        tight = False
        for component in manifests.COMPONENTS:
            for finding in self._room_of(component, self.nodes):
                tight = True
                yield finding
        if not tight:
            yield ok("room", f"each stage fits on a node ({len(self.nodes)} nodes)")

    def _room_of(self, component: Component, nodes: list[Object]) -> Iterator[Finding]:
        job = self._job(component)
        pod, container = job["spec"]["template"]["spec"], manifests.stage_container(job)
        fitting = homes(nodes, pod)
        if nodes and not fitting:
            labelled = [n for n in nodes if has_labels(n, pod)]
            if not labelled:
                wanted = ", ".join(f"{k}={v}" for k, v in pod["nodeSelector"].items())
                yield fail(
                    "room", f"{component}: no node has the labels {wanted}", f"node_selector in [cluster.{component}]"
                )
                return
            taints = sorted({taint for node in labelled for taint in untolerated(node, pod)})
            yield fail(
                "room",
                f"{component}: its pods do not tolerate the taints of any node that they may use: {', '.join(taints)}",
                f"tolerations in [cluster], or node_selector in [cluster.{component}]",
            )
            return
        gpus = manifests.gpus(container)
        with_gpus = [node for node in fitting if gpus_of(node) >= gpus]
        if nodes and not with_gpus and any(gpus_of(node) >= gpus for node in nodes):  # else `gpu` says it
            yield fail(
                "room",
                f"{component} asks for {gpus} GPU{'s' * (gpus > 1)}, and no node that has so many takes its pods",
                f"tolerations in [cluster], or node_selector in [cluster.{component}]",
            )
            return
        have = [allocatable([node]) for node in with_gpus or fitting]
        requests = (container.get("resources") or {}).get("requests") or {}
        for resource, setting in (("cpu", "cpu"), ("memory", "memory"), ("ephemeral-storage", "disk")):
            asked = requests.get(resource)
            most = max((node.get(resource, 0.0) for node in have), default=0.0)
            if asked is None or quantity(str(asked)) < most:
                continue
            unit = f"{most:g}" if resource == "cpu" else f"{most / 2**30:.1f}Gi"
            # A node's own pods and the driver take some, so a pod that asks for all of it waits as well.
            shared = ", and its own pods take some of that" if quantity(str(asked)) == most else ""
            yield warn(
                "room",
                f"{component} asks for {asked} of {resource}, no node that it may use has more than {unit}{shared}",
                f"set {setting} in [cluster.{component}], or add larger nodes",
            )

    def images(self) -> Iterator[Finding]:
        """Whether the images are in the nodes, or can be pulled as far as the registry tells without credentials."""
        containers = {c: manifests.stage_container(self._job(c)) for c in manifests.COMPONENTS}
        loaded = {c: k["image"] for c, k in containers.items() if k.get("imagePullPolicy") == "Never"}
        if loaded:
            yield from self._loaded(loaded)
        for component, container in containers.items():
            if component in loaded:
                continue
            name = container["image"]
            registry = name.partition("/")[0]
            if "." not in registry and ":" not in registry and registry != "localhost":
                yield warn(
                    "images",
                    f"{name} has no registry, so nodes look for it at docker.io",
                    "name the registry in cluster.registry, or unset it and load the images into all nodes",
                )
                return
            finding = check_image(name, bool(self.settings.cluster.image_pull_secret))
            yield finding
            if finding.result == "warn":
                return  # the others would say the same

    def _loaded(self, wanted: Mapping[Component, str]) -> Iterator[Finding]:
        """Images that are never pulled: a node has them, or its pods do not start."""
        example = next(iter(wanted.values()))
        todo = (
            f"import them into all nodes (docker save {example} | sudo k3s ctr images import -, "
            "kind load docker-image, k3d image import), or push them and set cluster.registry"
        )
        if self.nodes is None:
            yield warn("images", f"{example} and the others are not pulled, and you may not list nodes' images", todo)
            return
        images, places = [], []
        for component, image in wanted.items():
            lacking = [
                n for n in homes(self.nodes, self._pod(component)) if allocatable([n]) and not has_image(n, image)
            ]
            if lacking:
                images.append(image)
                places += [n["metadata"]["name"] for n in lacking]
        if images:
            where = ", ".join(dict.fromkeys(places))
            yield warn(
                "images",
                f"not in the nodes' lists, which hold 50 images at most: {', '.join(images)} on {where}",
                todo,
            )
        else:
            yield ok("images", f"in the nodes: {', '.join(wanted.values())}")
