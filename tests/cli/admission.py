"""What an API server refuses of a Job and a pod that a schema lets pass, for those kinds of fields that bugurt sends.

Told after Kubernetes 1.33 to 1.37: pkg/apis/batch/validation/validation.go, pkg/apis/core/validation/validation.go,
k8s.io/apimachinery/pkg/util/validation and, for ``restricted_errors``, k8s.io/pod-security-admission/policy. Each
function answers with sentences in the servers' manner; none means accepted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cli.kustomize import quantity

Object = Mapping[str, Any]

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
QUANTITY = re.compile(r"[+-]?([0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)")
ACTIONS = {"FailJob", "FailIndex", "Ignore", "Count"}
ANNOTATIONS_LIMIT = 256 * 1024  # bytes of all names and values together
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def meta_errors(meta: Object, where: str = "metadata") -> Iterator[str]:
    """Names, labels, annotations."""
    name = meta.get("name")
    if name is not None and (len(name) > 253 or not DNS_SUBDOMAIN.fullmatch(name)):
        yield f"{where}.name: Invalid value: {name!r}: a lowercase RFC 1123 subdomain must consist of …"
    for key, value in (meta.get("labels") or {}).items():
        yield from _qualified(key, f"{where}.labels")
        if not isinstance(value, str) or not LABEL_VALUE.fullmatch(value):
            yield f"{where}.labels: Invalid value: {value!r}: a valid label must be an empty string or consist of …"
    size = 0
    for key, value in (meta.get("annotations") or {}).items():
        yield from _qualified(key.lower(), f"{where}.annotations")
        if not isinstance(value, str):
            yield f"{where}.annotations: Invalid value: {value!r}: must be a string"
        size += len(key.encode()) + len(str(value).encode())
    if size > ANNOTATIONS_LIMIT:
        yield f"{where}.annotations: Too long: may not be more than {ANNOTATIONS_LIMIT} bytes"
    for number, owner in enumerate(meta.get("ownerReferences") or ()):
        lacking = [f for f in ("apiVersion", "kind", "name", "uid") if not owner.get(f)]
        if lacking:
            yield f"{where}.ownerReferences[{number}].{lacking[0]}: Required value"


def _qualified(key: str, where: str) -> Iterator[str]:
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > 253 or not DNS_SUBDOMAIN.fullmatch(prefix)):
        yield f"{where}: Invalid value: {key!r}: prefix part a lowercase RFC 1123 subdomain must consist of …"
    if not LABEL_NAME.fullmatch(name):
        yield f"{where}: Invalid value: {key!r}: name part must consist of alphanumeric characters, …"


# -- Jobs


def job_errors(job: Object) -> list[str]:
    """What ValidateJob has against a Job."""
    spec, template = job["spec"], job["spec"]["template"]
    found = [*meta_errors(job["metadata"]), *_counts(spec), *_mode(job), *_failure_policy(spec)]
    policy = spec.get("podReplacementPolicy", "Failed")
    if "podFailurePolicy" in spec and policy != "Failed":
        found.append(f'spec.podReplacementPolicy: Unsupported value: "{policy}": supported values: "Failed"')
    restart = template["spec"].get("restartPolicy")
    if restart not in ("Never", "OnFailure"):
        found.append('spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"')
    elif "podFailurePolicy" in spec and restart != "Never":
        found.append('spec.template.spec.restartPolicy: only "Never" is supported when podFailurePolicy is specified')
    found += meta_errors(template.get("metadata") or {}, "spec.template.metadata")
    return found + [f"spec.template.{e}" for e in pod_errors(template["spec"])]


def _counts(spec: Object) -> Iterator[str]:
    names = ("parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished",
             "backoffLimitPerIndex", "maxFailedIndexes")  # fmt: skip
    for name in names:
        if name in spec and (not isinstance(spec[name], int) or spec[name] < 0):
            yield f"spec.{name}: Invalid value: {spec[name]!r}: must be greater than or equal to 0"
    if "maxFailedIndexes" in spec and "backoffLimitPerIndex" not in spec:
        yield "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified"


def _mode(job: Object) -> Iterator[str]:
    spec = job["spec"]
    mode = spec.get("completionMode", "NonIndexed")
    if mode not in ("NonIndexed", "Indexed"):
        yield f'spec.completionMode: Unsupported value: "{mode}"'
    elif mode == "Indexed":
        if "completions" not in spec:
            yield "spec.completions: Required value: when completion mode is Indexed"
            return
        if spec.get("parallelism", 0) > 100_000:
            yield "spec.parallelism: must be less than or equal to 100000 when completion mode is Indexed"
        if spec.get("maxFailedIndexes", 0) > spec["completions"]:
            yield "spec.maxFailedIndexes: must be less than or equal to completions"
        last = f"{job['metadata']['name']}-{spec['completions'] - 1}"
        if not DNS_LABEL.fullmatch(last):
            yield f"metadata.name: will not able to create pod with invalid DNS label: {last}"
    else:
        for name in ("backoffLimitPerIndex", "maxFailedIndexes"):
            if name in spec:
                yield f"spec.{name}: Invalid value: {spec[name]}: requires indexed completion mode"
        if "successPolicy" in spec:
            yield "spec.successPolicy: requires indexed completion mode"


def _failure_policy(spec: Object) -> Iterator[str]:
    rules = (spec.get("podFailurePolicy") or {}).get("rules") or []
    pod = spec["template"]["spec"]
    names = {c.get("name") for c in [*pod.get("containers", ()), *pod.get("initContainers", ())]}
    if len(rules) > 20:
        yield "spec.podFailurePolicy.rules: Too many"
    for number, rule in enumerate(rules):
        where = f"spec.podFailurePolicy.rules[{number}]"
        if rule.get("action") not in ACTIONS:
            yield f"{where}.action: Unsupported value: {rule.get('action')!r}"
        if rule.get("action") == "FailIndex" and "backoffLimitPerIndex" not in spec:
            yield f"{where}.action: requires the backoffLimitPerIndex to be set"
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions") or []
        if (codes is None) == (not conditions):
            yield f"{where}: specifying one of OnExitCodes and OnPodConditions is required, and not both"
        if codes is not None:
            yield from _exit_codes(codes, names, f"{where}.onExitCodes")
        for condition in conditions:
            if condition.get("status", "") not in ("True", "False", "Unknown"):  # no default in the API server
                yield f"{where}.onPodConditions.status: Required value"


def _exit_codes(codes: Object, names: set[Any], where: str) -> Iterator[str]:
    values = codes.get("values") or []
    if codes.get("operator") not in ("In", "NotIn"):
        yield f"{where}.operator: Unsupported value: {codes.get('operator')!r}"
    if "containerName" in codes and codes["containerName"] not in names:
        yield f"{where}.containerName: must be one of the container or initContainer names in the pod template"
    if not values or len(values) > 255:
        yield f"{where}.values: at least one value is required, and at most 255"
    if codes.get("operator") == "In" and 0 in values:
        yield f"{where}.values: must not be 0 for the In operator"
    if list(values) != sorted(set(values)):
        yield f"{where}.values: must be ordered, and without duplicates"


# -- pods


def pod_errors(spec: Object) -> list[str]:
    """What ValidatePodSpec has against a pod's spec."""
    volumes = [v.get("name", "") for v in spec.get("volumes") or ()]
    found = [f"spec.volumes: Duplicate or invalid value: {v!r}" for v in volumes if not _once(v, volumes)]
    for volume in spec.get("volumes") or ():
        if len(set(volume) - {"name"}) != 1:
            found.append(f"spec.volumes.{volume.get('name')}: must specify one volume type")
        size = (volume.get("emptyDir") or {}).get("sizeLimit")
        if size is not None and not _is_quantity(size):
            found.append(f"spec.volumes.{volume.get('name')}.emptyDir.sizeLimit: quantities must match the regular …")
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    names = [c.get("name", "") for c in containers]
    if not spec.get("containers"):
        found.append("spec.containers: Required value")
    found += [f"spec.containers: Duplicate or invalid name: {n!r}" for n in names if not _once(n, names)]
    for container in containers:
        where = f"spec.containers.{container.get('name')}"
        found += [f"{where}{e}" for e in _container(container, set(volumes))]
    for name in ("hostname", "subdomain"):
        if name in spec and not DNS_LABEL.fullmatch(spec[name]):
            found.append(f"spec.{name}: Invalid value: {spec[name]!r}: a lowercase RFC 1123 label must consist of …")
    for toleration in spec.get("tolerations") or ():
        if toleration.get("operator") == "Exists" and toleration.get("value"):
            found.append("spec.tolerations.operator: value must be empty when `operator` is 'Exists'")
        if not toleration.get("key") and toleration.get("operator") != "Exists":
            found.append("spec.tolerations.operator: operator must be Exists when `key` is empty")
    return found


def _once(name: str, names: list[str]) -> bool:
    return DNS_LABEL.fullmatch(name) is not None and names.count(name) == 1


def _is_quantity(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and QUANTITY.fullmatch(value) is not None)


def _container(container: Object, volumes: set[str]) -> Iterator[str]:
    if not str(container.get("image", "")).strip():
        yield ".image: Required value"
    if container.get("imagePullPolicy", "Always") not in ("Always", "IfNotPresent", "Never"):
        yield f".imagePullPolicy: Unsupported value: {container['imagePullPolicy']!r}"
    for entry in container.get("env") or ():
        name, value = str(entry.get("name", "")), entry.get("value", "")
        if not name or "=" in name or not name.isprintable() or not name.isascii():
            yield f".env.name: Invalid value: {name!r}: a valid environment variable name must consist of …"
        if not isinstance(value, str):
            yield f".env.{name}.value: must be a string, not {value!r}"
        elif len(name.encode()) + len(value.encode()) + 2 > 128 * 1024:
            yield f".env.{name}.value: the kernel takes at most 128 KiB (the container would not start)"
        if "value" in entry and "valueFrom" in entry:
            yield f".env.{name}.valueFrom: may not be specified when `value` is not empty"
    paths = [m.get("mountPath") for m in container.get("volumeMounts") or ()]
    for mount in container.get("volumeMounts") or ():
        path = str(mount.get("mountPath", ""))
        if mount.get("name") not in volumes:
            yield f".volumeMounts: Not found: {mount.get('name')!r}"
        if not path or ":" in path or paths.count(path) != 1:
            yield f".volumeMounts.mountPath: Invalid value: {path!r}: must be unique, and without ':'"
    yield from _resources(container.get("resources") or {})


def _resources(resources: Object) -> Iterator[str]:
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for side, amounts in (("requests", requests), ("limits", limits)):
        for name, amount in amounts.items():
            if not _is_quantity(amount):
                yield f".resources.{side}.{name}: quantities must match the regular expression …"
            elif "/" in name and float(amount) != int(float(amount)):
                yield f".resources.{side}.{name}: must be an integer"
    for name, amount in requests.items():
        limit = limits.get(name)
        if "/" in name and limit is None:
            yield f".resources.limits: Required value: limit must be set for non overcommitable resources ({name})"
        if limit is None or not (_is_quantity(amount) and _is_quantity(limit)):
            continue
        asked, most = quantity(str(amount)), quantity(str(limit))
        if asked > most:
            yield f".resources.requests: Invalid value: {amount!r}: must be less than or equal to {name} limit"
        if "/" in name and asked != most:
            yield f".resources.requests.{name}: must be equal to {name} limit"


# -- pod security


def restricted_errors(spec: Object) -> list[str]:
    """What the level ``restricted`` has against a pod's spec."""
    found = [f"host namespaces ({n}=true)" for n in ("hostNetwork", "hostPID", "hostIPC") if spec.get(n)]
    for volume in spec.get("volumes") or ():
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUMES:
            found.append(f'restricted volume types (volume "{volume["name"]}" uses {sorted(kinds - VOLUMES)[0]})')
    whole = spec.get("securityContext") or {}
    if whole.get("runAsUser") == 0:
        found.append("runAsUser=0 (pod must not set runAsUser=0)")
    for container in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
        own, name = container.get("securityContext") or {}, container["name"]
        if own.get("allowPrivilegeEscalation") is not False:
            found.append(f'allowPrivilegeEscalation != false (container "{name}" must set it to false)')
        capabilities = own.get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or ()) or set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
            found.append(f'unrestricted capabilities (container "{name}" must set drop=["ALL"])')
        if own.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
            found.append(f'runAsNonRoot != true (pod or container "{name}" must set runAsNonRoot=true)')
        if own.get("runAsUser") == 0:
            found.append(f'runAsUser=0 (container "{name}" must not set runAsUser=0)')
        if own.get("privileged"):
            found.append(f'privileged (container "{name}" must not set privileged=true)')
        profile = (own.get("seccompProfile") or whole.get("seccompProfile") or {}).get("type")
        if profile not in ("RuntimeDefault", "Localhost"):
            found.append(f'seccompProfile (pod or container "{name}" must set type to "RuntimeDefault" or "Localhost")')
        if any("hostPort" in p for p in container.get("ports") or ()):
            found.append(f'hostPort (container "{name}" uses a hostPort)')
        found += [
            f'probe hosts (container "{name}" sets a host in its {probe})'
            for probe in ("livenessProbe", "readinessProbe", "startupProbe")
            if any((container.get(probe) or {}).get(how, {}).get("host") for how in ("httpGet", "tcpSocket"))
        ]
    return found
