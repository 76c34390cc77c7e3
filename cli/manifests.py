"""A Job request as Kubernetes objects, as plain dicts. Pure but for the reading of template files.

The YAML templates in ``k8s/jobs`` (or in a folder of the user's own) say what a stage's Job looks like; this module
fills in the blanks: names, labels, image, spec, environment, and what ``[cluster]`` of the settings asks for.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.clusters.base import Component, JobRequest
from cli.clusters.kubernetes_objects import COMPONENT_LABEL, CONTAINER, PREFIX, QUEUE_LABEL, RUN_LABEL
from jobs import __version__
from jobs.specs import ConfigError, SpecError

if TYPE_CHECKING:
    from cli.settings import Settings, StageResources

COMPONENTS: tuple[Component, ...] = ("scrape", "preprocess", "train", "generate", "driver")
MANAGER = "bugurt"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
STORE_LABEL = f"{PREFIX}/store"
OWNER_LABEL = f"{PREFIX}/owner"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
TEMPLATES_MOUNT = "/etc/bugurt/templates"
CA_CONFIG_MAP = "bugurt-ca"  # of `bugurt install`: the certificates of [s3] ca_bundle
CA_KEY = "ca.crt"
CA_MOUNT = "/etc/bugurt/ca"
LOCAL_REGISTRY = "bugurt"  # the default of [cluster] registry: what was loaded into the nodes under that name
RENDEZVOUS_SERVICE = "bugurt-train"  # a headless Service of k8s/base: pods that train together find each other by it
RENDEZVOUS_PORT = 29500  # torchrun's own default
#: Linux takes at most 128 KiB for one variable of a process; etcd 1.5 MiB for a whole object.
MAX_SPEC = 120_000
_OFFLINE_STAGES = ("preprocess", "train", "generate")
_FORCED_ENV = ("BUGURT_SPEC", "BUGURT_RUN", "BUGURT_FORCE")


def builtin_folder() -> Path:
    """``k8s/`` of this installation: it lies beside ``cli/`` in a source tree and in a wheel alike."""
    return Path(__file__).resolve().parent.parent / "k8s"


def load_template(component: Component, folder: str | Path | None = None) -> dict[str, Any]:
    """A Job template: the user's own where the folder has one, else the built-in one. Raises ConfigError."""
    own = Path(folder) / f"{component}.yaml" if folder is not None else None
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"cluster.templates: there is no folder {folder}")
    path = own if own is not None and own.is_file() else builtin_folder() / "jobs" / f"{component}.yaml"
    return copy.deepcopy(_read_template(path))


@lru_cache(maxsize=32)
def _read_template(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise ConfigError("the cluster parts are not installed: pip install 'bugurt[cluster]'") from error
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the Job template {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    check_template(data, str(path))
    assert isinstance(data, dict)
    return data


def check_template(data: Any, where: str) -> None:
    """Raise ConfigError unless it is a Job with the container that the rest of the program expects."""
    if not isinstance(data, dict) or (data.get("apiVersion"), data.get("kind")) != ("batch/v1", "Job"):
        raise ConfigError(f"{where}: a Job template is one object of apiVersion batch/v1 and kind Job")
    try:
        names = [c["name"] for c in data["spec"]["template"]["spec"]["containers"]]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{where}: spec.template.spec.containers: is missing or has no names") from error
    if CONTAINER not in names:
        raise ConfigError(f"{where}: spec.template.spec.containers: one must have the name '{CONTAINER}'")


# -- names that keep people apart


def store_digest(settings: Settings) -> str:
    """Eight digits for bucket and prefix: those who share a namespace see the Jobs of their own bucket only."""
    text = f"{settings.s3.bucket or ''}/{settings.s3.prefix.strip('/')}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def label_value(text: str) -> str:
    """Any text as a label's value: at most 63 of ``[A-Za-z0-9._-]``, alphanumeric at both ends."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:63].strip("._-")


def labels(request: JobRequest, settings: Settings) -> dict[str, str]:
    """The labels of a Job and of its pods."""
    found = {
        "app.kubernetes.io/name": "bugurt",
        RUN_LABEL: request.run,
        COMPONENT_LABEL: request.component,
        "app.kubernetes.io/version": label_value(__version__),
        "app.kubernetes.io/part-of": "bugurt",
        MANAGED_BY_LABEL: MANAGER,
        STORE_LABEL: store_digest(settings),
    }
    if settings.owner and label_value(settings.owner):
        found[OWNER_LABEL] = label_value(settings.owner)
    return found


def selector(settings: Settings, run: str | None = None) -> str:
    """The label selector for our Jobs and pods, or those of one run."""
    parts = [f"{MANAGED_BY_LABEL}={MANAGER}", f"{STORE_LABEL}={store_digest(settings)}"]
    return ",".join([*parts, f"{RUN_LABEL}={run}"] if run is not None else parts)


def set_image(container: dict[str, Any], name: str, settings: Settings, own: str | None = None) -> None:
    """Write a container's image: ``own`` (of the settings), else the template's own, else REGISTRY/``name``:TAG.

    Where nobody named a registry, nodes must have the image: to a node that lacks it such a name means
    docker.io/bugurt, and whoever had that name there would be given the bucket's key.
    """
    written = container.get("image")
    if own or (written and written != f"bugurt/{name}"):
        container["image"] = own or written
        return
    registry = settings.cluster.registry.rstrip("/")
    container["image"] = f"{registry}/{name}:{settings.cluster.tag or __version__.replace('+', '-')}"
    if registry == LOCAL_REGISTRY and container.get("imagePullPolicy") in (None, "IfNotPresent"):
        container["imagePullPolicy"] = "Never"


def stage_container(job: dict[str, Any]) -> dict[str, Any]:
    """The container of a Job that does the work."""
    containers: list[dict[str, Any]] = job["spec"]["template"]["spec"]["containers"]
    return next(c for c in containers if c["name"] == CONTAINER)


def gpus(container: Mapping[str, Any]) -> int:
    """How many GPUs a container holds, of whatever maker."""
    limits = (container.get("resources") or {}).get("limits") or {}
    return sum(int(n) for name, n in limits.items() if name.endswith("/gpu") and str(n).isdigit())


# -- the environment


def s3_env(settings: Settings) -> dict[str, str]:
    """The bucket as pods reach it; never credentials, those come from a Secret."""
    section = settings.s3
    if not section.bucket:
        raise ConfigError("a cluster needs a bucket: name one in bugurt.toml ([s3] bucket) or in BUGURT_S3_BUCKET")
    values = {
        "BUCKET": section.bucket,
        "PREFIX": section.prefix,
        "ENDPOINT": section.endpoint_in_cluster or section.endpoint,
        "REGION": section.region,
        "PATH_STYLE": None if section.path_style is None else str(section.path_style).lower(),
        "CA_BUNDLE": f"{CA_MOUNT}/{CA_KEY}" if section.ca_for_pods else None,
    }
    return {f"BUGURT_S3_{name}": value for name, value in values.items() if value}


def readable_json(value: Any) -> str:
    """JSON over several lines: ``kubectl describe`` prints it so that it can be read."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)


def escape_env(value: str) -> str:
    """Kubernetes expands ``$(NAME)`` in values; ``$$`` is how it is told not to."""
    return value.replace("$", "$$")


def environment(request: JobRequest, settings: Settings, namespace: str) -> dict[str, str]:
    """What a pod is told besides its template. Raises SpecError for a spec that is too large for a variable."""
    spec = readable_json(request.spec)
    if len(spec.encode()) > MAX_SPEC:
        spec = json.dumps(request.spec, separators=(",", ":"), ensure_ascii=False)
    size = len(spec.encode())
    if size > MAX_SPEC:
        hint = "hand the prompts in as a file (prompts_file)" if request.component == "generate" else "shorten it"
        raise SpecError(f"the {request.component} spec has {size} bytes, and a Job holds at most {MAX_SPEC}: {hint}")
    env = {"BUGURT_RUN": request.run, "BUGURT_SPEC": spec, **s3_env(settings)}
    if request.force:
        env["BUGURT_FORCE"] = "1"
    if request.component in _OFFLINE_STAGES and not settings.cluster.hub:
        env["HF_HUB_OFFLINE"] = "1"
    if request.component == "driver":
        env |= driver_env(settings, namespace)
    return env | request.env


def driver_env(settings: Settings, namespace: str) -> dict[str, str]:
    """The ``[cluster]`` settings that the driver needs in its pod, as ``cli.settings`` reads them."""
    section = settings.cluster.model_dump(mode="json", exclude_defaults=True, exclude={"context"})
    section |= {"kind": "kubernetes", "namespace": namespace}
    if section.get("templates"):
        section["templates"] = TEMPLATES_MOUNT
    env = {"BUGURT_CLUSTER": json.dumps(section, ensure_ascii=False, sort_keys=True)}
    return env | ({"BUGURT_OWNER": settings.owner} if settings.owner else {})


def _merge_env(container: dict[str, Any], env: Mapping[str, str]) -> None:
    written = {e["name"]: e for e in container.get("env") or []}
    for name, value in env.items():
        if name in written and name not in _FORCED_ENV:
            continue  # who writes it into a template means it
        written[name] = {"name": name, "value": escape_env(value)}
    container["env"] = list(written.values())


def _secrets(container: dict[str, Any], settings: Settings, *, telegram: bool) -> None:
    names = {"bugurt-s3": settings.cluster.s3_secret, "bugurt-telegram": settings.cluster.telegram_secret}
    kept = []
    for source in container.get("envFrom") or []:
        secret = source.get("secretRef")
        if secret is not None and secret.get("name") in names:
            wanted = names[secret["name"]]
            if not wanted:
                continue  # an empty name: the nodes' own role opens the bucket
            if secret["name"] == "bugurt-telegram" and not telegram:
                continue  # an export needs no session, and a pod whose Secret is missing would never start
            source = {**source, "secretRef": {**secret, "name": wanted}}  # noqa: PLW2901
        kept.append(source)
    if kept:
        container["envFrom"] = kept
    else:
        container.pop("envFrom", None)


def _trust(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """Mount the certificates of `ca_bundle`, unless the template has something of that name or in that place."""
    volumes, mounts = pod.get("volumes") or [], container.get("volumeMounts") or []
    if all(v.get("name") != CA_CONFIG_MAP for v in volumes):
        pod["volumes"] = [*volumes, {"name": CA_CONFIG_MAP, "configMap": {"name": CA_CONFIG_MAP}}]
    if all(m.get("name") != CA_CONFIG_MAP and m.get("mountPath") != CA_MOUNT for m in mounts):
        mount = {"name": CA_CONFIG_MAP, "mountPath": CA_MOUNT, "readOnly": True}
        container["volumeMounts"] = [*mounts, mount]


# -- resources, several pods


def _resources(pod: dict[str, Any], container: dict[str, Any], wanted: StageResources) -> None:
    resources = container.setdefault("resources", {})
    requests, limits = resources.setdefault("requests", {}), resources.setdefault("limits", {})
    if wanted.cpu is not None:
        requests["cpu"] = wanted.cpu
        if "cpu" in limits:
            limits["cpu"] = wanted.cpu
    if wanted.memory is not None:
        requests["memory"] = limits["memory"] = wanted.memory
    if wanted.disk is not None:
        requests["ephemeral-storage"] = limits["ephemeral-storage"] = wanted.disk
        for volume in pod.get("volumes") or []:  # their sum is held to the limit; each may have all of it
            if "emptyDir" in volume and "medium" not in (volume["emptyDir"] or {}):
                volume["emptyDir"] = {**(volume["emptyDir"] or {}), "sizeLimit": wanted.disk}
    if wanted.gpu is not None:
        name = next((n for n in limits if n.endswith("/gpu")), "nvidia.com/gpu")
        requests.pop(name, None)
        limits.pop(name, None)
        if wanted.gpu:
            limits[name] = wanted.gpu


def _shards(spec: dict[str, Any], shards: int, parallelism: int | None) -> None:
    """An Indexed Job of so many shards; a plain one for a single shard."""
    if shards > 1:
        spec["completionMode"] = "Indexed"
        spec["completions"] = shards
        spec["parallelism"] = min(shards, parallelism or min(shards, 8))
        spec.setdefault("backoffLimitPerIndex", 2)
        spec.pop("backoffLimit", None)
        spec["maxFailedIndexes"] = -(-shards // 10)
        return
    for name in ("completionMode", "completions", "parallelism", "maxFailedIndexes"):
        spec.pop(name, None)
    spec["backoffLimit"] = spec.pop("backoffLimitPerIndex", spec.get("backoffLimit", 2))
    for rule in (spec.get("podFailurePolicy") or {}).get("rules") or []:
        if rule.get("action") == "FailIndex":
            rule["action"] = "FailJob"


def _nodes(name: str, spec: dict[str, Any], nodes: int) -> dict[str, str]:
    """Several pods that train together: an Indexed Job whose pods have host names of their own."""
    spec |= {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes}
    # One lost pod takes the others with it, and each of them counts as a failure.
    spec["backoffLimit"] = int(spec.get("backoffLimit", 4)) * nodes
    spec["template"]["spec"]["subdomain"] = RENDEZVOUS_SERVICE
    return {
        "BUGURT_TRAIN_NODES": str(nodes),
        "BUGURT_TRAIN_RENDEZVOUS": f"{name}-0.{RENDEZVOUS_SERVICE}:{RENDEZVOUS_PORT}",
    }


# -- the whole


def render(
    request: JobRequest, settings: Settings, *, namespace: str, owner_uid: str | None = None
) -> list[dict[str, Any]]:
    """The objects of a request: its Job, and for a driver with templates of the user's own their ConfigMap.

    ``owner_uid``: of the Job that ``request.owner`` names; without it the Job belongs to nobody.
    """
    job = load_template(request.component, settings.cluster.templates or None)
    wanted: StageResources = getattr(settings.cluster, request.component)
    spec = job["spec"]
    pod = spec["template"]["spec"]
    container = stage_container(job)
    marks = labels(request, settings)

    meta = job["metadata"] = {k: v for k, v in (job.get("metadata") or {}).items() if k in ("labels", "annotations")}
    meta |= {"name": request.name, "namespace": namespace}
    meta["labels"] = {**(meta.get("labels") or {}), **marks}
    notes = {f"{PREFIX}/attempt": str(request.attempt)}
    if request.artifact:
        notes[f"{PREFIX}/artifact-wanted"] = request.artifact
    meta["annotations"] = {**(meta.get("annotations") or {}), **notes}
    if owner_uid is not None and request.owner:
        # Not a controller: Kueue would take the Job for a part of its owner's workload and let it past the quota.
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": request.owner, "uid": owner_uid}
        meta["ownerReferences"] = [{**owner, "controller": False, "blockOwnerDeletion": False}]
    pod_meta = spec["template"].setdefault("metadata", {})
    pod_meta["labels"] = {**(pod_meta.get("labels") or {}), **marks}

    if request.component == "generate" or request.shards > 1:
        _shards(spec, request.shards, wanted.parallelism)
    env = environment(request, settings, namespace)
    if request.component == "train" and wanted.nodes and wanted.nodes > 1:
        env |= _nodes(request.name, spec, wanted.nodes)
    set_image(container, request.component, settings, wanted.image)
    _secrets(container, settings, telegram=bool(request.spec.get("channel")))
    _resources(pod, container, wanted)
    if gpus(container):
        env["BUGURT_GPUS"] = str(gpus(container))  # so that a stage that sees none of them says so
    _merge_env(container, env)
    if settings.s3.ca_for_pods:
        _trust(pod, container)

    if request.component != "driver" and settings.cluster.queue:
        meta["labels"][QUEUE_LABEL] = settings.cluster.queue
    if wanted.priority_class:
        if QUEUE_LABEL in meta["labels"]:
            meta["labels"][PRIORITY_LABEL] = wanted.priority_class
        else:
            pod["priorityClassName"] = wanted.priority_class
    if wanted.runtime_class:
        pod["runtimeClassName"] = wanted.runtime_class
    if wanted.node_selector:
        pod["nodeSelector"] = {**(pod.get("nodeSelector") or {}), **wanted.node_selector}
    if settings.cluster.tolerations:
        pod["tolerations"] = [*(pod.get("tolerations") or []), *settings.cluster.tolerations]
    if settings.cluster.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": settings.cluster.image_pull_secret}]
    if request.component == "driver" and settings.cluster.templates:
        return [job, _own_templates(request, settings, namespace, pod, container)]
    return [job]


def _own_templates(
    request: JobRequest, settings: Settings, namespace: str, pod: dict[str, Any], container: dict[str, Any]
) -> dict[str, Any]:
    """The user's templates as a ConfigMap, mounted into the driver's pod, which renders the stages' Jobs."""
    folder = Path(settings.cluster.templates or "")
    files = {}
    for component in COMPONENTS:
        path = folder / f"{component}.yaml"
        if path.is_file():
            _read_template(path)  # a mistake in it is told now, not in the cluster
            files[path.name] = path.read_text(encoding="utf-8")
    pod.setdefault("volumes", []).append({"name": "templates", "configMap": {"name": request.name}})
    container.setdefault("volumeMounts", []).append(
        {"name": "templates", "mountPath": TEMPLATES_MOUNT, "readOnly": True}
    )
    meta = {"name": request.name, "namespace": namespace, "labels": labels(request, settings)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": files}


def to_yaml(objects: list[dict[str, Any]]) -> str:
    """Objects as YAML documents, with texts of several lines as blocks, as people write them."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
