"""The objects of ``k8s/`` as plain dicts, fitted to the settings: what ``bugurt install`` applies.

Reads the little of kustomize that ``k8s/`` uses (``resources`` and ``namespace``), so that a laptop needs no kubectl.
A test compares the answer with that of ``kubectl kustomize``.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cli.manifests import CA_CONFIG_MAP, CA_KEY, builtin_folder, set_image
from jobs.specs import ConfigError

if TYPE_CHECKING:
    from cli.settings import Settings

Object = dict[str, Any]
KUEUE = "kueue.x-k8s.io"
PART_OF = {"app.kubernetes.io/part-of": "bugurt"}
ENFORCE = "pod-security.kubernetes.io/enforce"
MAX_CA = 900_000  # bytes; a ConfigMap holds 1 MiB
KUEUE_VERSION = "v1beta2"  # of what `k8s/overlays/kueue` writes; v1beta1 has the same fields
#: Where an object of a kind lives: its plural, and whether it belongs to a namespace.
RESOURCES: dict[str, tuple[str, bool]] = {
    "Namespace": ("namespaces", False),
    "ServiceAccount": ("serviceaccounts", True),
    "Role": ("roles", True),
    "RoleBinding": ("rolebindings", True),
    "Service": ("services", True),
    "Secret": ("secrets", True),
    "ConfigMap": ("configmaps", True),
    "PersistentVolumeClaim": ("persistentvolumeclaims", True),
    "Deployment": ("deployments", True),
    "NetworkPolicy": ("networkpolicies", True),
    "Job": ("jobs", True),
    "ResourceFlavor": ("resourceflavors", False),
    "ClusterQueue": ("clusterqueues", False),
    "LocalQueue": ("localqueues", True),
    "WorkloadPriorityClass": ("workloadpriorityclasses", False),
}


def is_ours(thing: Object) -> bool:
    """Whether `bugurt install` has put its label on an object."""
    return PART_OF.items() <= (thing["metadata"].get("labels") or {}).items()


def kueue_version(group: Object | None) -> str:
    """The version to talk to Kueue in, by its API group as the server tells it; empty where there is none."""
    if KUEUE_VERSION in [v.get("version") for v in (group or {}).get("versions") or ()]:
        return KUEUE_VERSION
    return str(((group or {}).get("preferredVersion") or {}).get("version") or "")


def path_of(thing: Object, *, name: bool = True) -> str:
    """An object's path at the API server."""
    plural, namespaced = RESOURCES[thing["kind"]]
    version = thing["apiVersion"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    place = f"/namespaces/{thing['metadata']['namespace']}" if namespaced else ""
    return f"{root}{place}/{plural}" + (f"/{thing['metadata']['name']}" if name else "")


def build(folder: Path, namespace: str | None = None) -> list[Object]:
    """All objects of a kustomization, in the order of its files. Raises ConfigError for what it cannot read."""
    import yaml

    file = folder / "kustomization.yaml"
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {file}: {' '.join(str(error).split())}") from error
    unknown = set(data) - {"apiVersion", "kind", "namespace", "resources"}
    if unknown:
        raise ConfigError(
            f"{file}: {sorted(unknown)[0]}: bugurt knows `resources` and `namespace` only; use kubectl -k"
        )
    found: list[Object] = []
    for entry in data["resources"]:
        place = folder / entry
        if place.is_dir():
            found += build(place)
            continue
        with place.open(encoding="utf-8") as stream:
            found += [o for o in yaml.safe_load_all(stream) if o]
    return [_placed(o, namespace or data.get("namespace")) for o in found]


def _placed(thing: Object, namespace: str | None) -> Object:
    if namespace is None:
        return thing
    if thing["kind"] == "Namespace":
        thing["metadata"]["name"] = namespace
    elif RESOURCES[thing["kind"]][1]:
        thing["metadata"]["namespace"] = namespace
    for subject in thing.get("subjects") or ():
        if subject.get("kind") == "ServiceAccount":
            subject["namespace"] = namespace
    return thing


def objects(settings: Settings, namespace: str, overlays: Iterable[str] = ()) -> list[Object]:
    """The base and some overlays, each object once, fitted to the settings."""
    folder = builtin_folder()
    chosen = [folder / "base", *(folder / "overlays" / name for name in overlays)]
    if settings.cluster.hub:
        chosen.append(folder / "overlays" / "hub")
    if settings.cluster.queue:
        chosen.append(folder / "overlays" / "kueue-roles")
    found: dict[tuple[str, str], Object] = {}
    for place in chosen:
        for thing in build(place, namespace):
            found.setdefault((thing["kind"], thing["metadata"]["name"]), thing)
    fitted = [_fitted(o, settings, namespace) for o in found.values()]
    return [*fitted, ca_config_map(settings, namespace)] if settings.s3.ca_for_pods else fitted


def ca_config_map(settings: Settings, namespace: str) -> Object:
    """The certificates of `ca_bundle` for the pods. Raises ConfigError for a file that holds none."""
    meta = {"name": CA_CONFIG_MAP, "namespace": namespace, "labels": dict(PART_OF)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {CA_KEY: _certificates(settings)}}


def _certificates(settings: Settings) -> str:
    path = Path(settings.s3.ca_bundle or "")
    try:
        data = path.read_bytes()
        text = data.decode()
        if "PRIVATE KEY-----" in text:
            raise ConfigError(f"s3.ca_bundle: {path} holds a private key: name a file of certificates alone")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)  # OpenSSL itself reads it
    except (ssl.SSLError, UnicodeDecodeError) as error:  # the first is an OSError, too
        raise ConfigError(
            f"s3.ca_bundle: {path} holds no certificates in PEM: convert it with `openssl x509`"
        ) from error
    except OSError as error:
        raise ConfigError(f"s3.ca_bundle: cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_CA:
        raise ConfigError(
            f"s3.ca_bundle: {path} has {len(data)} bytes, and pods get at most {MAX_CA}: leave the server's own "
            "authority in it"
        )
    return text


def _fitted(thing: Object, settings: Settings, namespace: str) -> Object:
    if (thing["kind"], thing["metadata"]["name"]) == ("NetworkPolicy", "bugurt-s3"):
        thing["spec"]["egress"] = [s3_egress(settings, namespace)]
        if not settings.cluster.s3_secret:
            thing["spec"]["egress"].append(ROLE_EGRESS)
    if (thing["kind"], thing["metadata"]["name"]) == ("LocalQueue", "bugurt") and settings.cluster.queue:
        thing["metadata"]["name"] = settings.cluster.queue
    if thing["kind"] == "Deployment":
        pod = thing["spec"]["template"]["spec"]
        for container in pod["containers"]:
            set_image(container, container["image"].removeprefix("bugurt/"), settings)
            for entry in container.get("env") or ():
                reference = (entry.get("valueFrom") or {}).get("secretKeyRef") or {}
                if reference.get("name") == "bugurt-s3" and settings.cluster.s3_secret:
                    reference["name"] = settings.cluster.s3_secret
            for mount in container["volumeMounts"]:
                if mount["name"] == "bucket" and settings.s3.bucket:
                    mount["mountPath"] = f"/data/{settings.s3.bucket}"  # the folder is the bucket
        if settings.cluster.image_pull_secret:
            pod["imagePullSecrets"] = [{"name": settings.cluster.image_pull_secret}]
    return thing


#: Where pods without a Secret get the keys of a role: from the node (AWS and most other clouds), from EKS's agent.
ROLE_EGRESS = {
    "to": [{"ipBlock": {"cidr": f"{address}/32"}} for address in ("169.254.169.254", "169.254.170.23")],
    "ports": [{"protocol": "TCP", "port": 80}],
}


def s3_egress(settings: Settings, namespace: str) -> Object:
    """The way out to the bucket, as narrow as its address allows.

    A NetworkPolicy knows no host names: an address becomes a block of one, a Service of the cluster its namespace
    (with any port, for policies see the pod's port and not the Service's), anything else its port.
    """
    endpoint = settings.s3.endpoint_in_cluster or settings.s3.endpoint
    if not endpoint:
        return {"ports": [{"protocol": "TCP", "port": 443}]}  # AWS
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
    except ValueError as error:
        raise ConfigError(f"s3.endpoint: {endpoint!r} is no URL: {error}") from error
    ports = [{"protocol": "TCP", "port": port}]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        home = service_namespace(host, namespace)
        if home is None:
            return {"ports": ports}
        peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": home}}, "podSelector": {}}
        return {"to": [peer]}
    return {"to": [{"ipBlock": {"cidr": f"{address}/{address.max_prefixlen}"}}], "ports": ports}


def service_namespace(host: str, own: str) -> str | None:
    """The namespace of a Service's host name, or None when the name is of the world outside."""
    match = re.fullmatch(r"[a-z0-9-]+\.([a-z0-9-]+)\.svc(?:\.[a-z0-9.-]+)?", host)
    if match is not None:
        return match[1]
    return own if "." not in host and host != "localhost" else None


def with_quota(queue: Object, quota: Mapping[str, str]) -> Object:
    """A ClusterQueue with other nominal quotas, by resource name."""
    for group in queue["spec"]["resourceGroups"]:
        for flavor in group["flavors"]:
            for resource in flavor["resources"]:
                resource["nominalQuota"] = quota.get(resource["name"], resource["nominalQuota"])
    return queue


def quantity(text: str) -> float:
    """A Kubernetes quantity (``500m``, ``8Gi``) as a number. Raises ValueError."""
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", text.strip())
    if match is None or (match[2] and match[2] not in units):
        raise ValueError(f"{text!r} is no quantity")
    return float(match[1]) * units.get(match[2], 1.0)


def allocatable(nodes: Iterable[Object]) -> dict[str, float]:
    """What nodes that take pods have to give, summed up by resource."""
    total: dict[str, float] = {}
    for node in _ready(nodes):
        for name, text in ((node.get("status") or {}).get("allocatable") or {}).items():
            try:
                total[name] = total.get(name, 0.0) + quantity(str(text))
            except ValueError:
                continue  # a resource of somebody else's, in a notation of its own
    return total


def _ready(nodes: Iterable[Object]) -> Iterator[Object]:
    for node in nodes:
        if (node.get("spec") or {}).get("unschedulable"):
            continue
        states = {c.get("type"): c.get("status") for c in (node.get("status") or {}).get("conditions") or ()}
        if states.get("Ready", "True") == "True":
            yield node


def quota_of(nodes: Iterable[Object]) -> dict[str, str]:
    """Nominal quotas that hold all that the nodes have: whole CPUs, GPUs, and Gi of memory and disk."""
    total = allocatable(nodes)
    gpus = sum(int(n) for name, n in total.items() if name == "nvidia.com/gpu")
    return {
        "cpu": str(int(total.get("cpu", 0))),
        "memory": f"{int(total.get('memory', 0) // 2**30)}Gi",
        "ephemeral-storage": f"{int(total.get('ephemeral-storage', 0) // 2**30)}Gi",
        "nvidia.com/gpu": str(gpus),
    }
