"""A real cluster for tests: whatever the kubeconfig names, in namespaces of our own that go when we go.

    pytest -m cluster                     # all; docs/contributing.md tells what each part needs

BUGURT_E2E_CONTEXT=kind-kind              a context of the kubeconfig; unset: the current one
BUGURT_E2E_REGISTRY=localhost:5001/bugurt where nodes find the images REGISTRY/NAME:TAG
BUGURT_E2E_TAG=0.1.0                      unset, both: what was loaded into all nodes as bugurt/NAME:VERSION
BUGURT_E2E_PYTHON=python:3.12-slim        an image with Python, for the contract suite where ours are not to be had
BUGURT_E2E_PULL_SECRET=team/registry      NAMESPACE/NAME of a Secret for a registry that asks for one; it is copied

Without a cluster in reach the tests are skipped, and those that need images without them; each says why.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from cli.clusters.kubernetes_api import Access, ApiError, HttpApi, Unreachable, connect
from cli.clusters.kubernetes_objects import conditions
from cli.commands.install import apply_all
from cli.kustomize import objects
from cli.manifests import LOCAL_REGISTRY
from jobs import __version__
from jobs.specs import ConfigError
from tests.cli.fake_cluster import cluster_settings
from tests.cli.worlds import RealWorld

Object = dict[str, Any]
CONTEXT = os.environ.get("BUGURT_E2E_CONTEXT") or None
PULL_SECRET = os.environ.get("BUGURT_E2E_PULL_SECRET") or None
COPY = "e2e-registry"  # what the copy of that Secret is called
PULL_WAIT = 900.0  # seconds: the image of train has gigabytes
ROOM_WAIT = 60.0  # seconds for a node to have room for a pod that asks for next to nothing
#: All images, and a command that shows that one of them is there.
IMAGES = {name: ["python", "-c", "pass"] for name in ("driver", "scrape", "preprocess", "train", "generate")}
IMAGES["s3"] = ["rclone", "version"]
#: What a container waits for in vain: an image, or the program in it.
_FINAL = {"ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "CreateContainerError"}
_FINAL |= {"CreateContainerConfigError"}
_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


# -- the cluster


@lru_cache(maxsize=1)
def _no_cluster() -> str:
    """Why there is no cluster, or nothing; asked once, for a server that is not there takes its time."""
    if not os.environ.get("KUBECONFIG") and not Path("~/.kube/config").expanduser().is_file():
        return "no kubeconfig: set KUBECONFIG to run the tests of a real cluster"
    try:
        connect(CONTEXT).api.request("GET", "/version")
    except (ApiError, Unreachable, ConfigError) as error:
        return f"the kubeconfig's cluster does not answer: {error}"
    return ""


def access(namespace: str | None = None) -> Access:
    """The cluster, or a skipped test."""
    reason = _no_cluster()
    if reason:
        pytest.skip(reason)
    return connect(CONTEXT, namespace)


def kubectl() -> list[str]:
    """kubectl for this cluster, or a skipped test."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not installed")
    return [program, *(("--context", CONTEXT) if CONTEXT else ())]


@contextmanager
def own_namespace() -> Iterator[Access]:
    """A namespace with a random name under restricted pod security."""
    name = f"bugurt-e2e-{secrets.token_hex(3)}"
    found = access(name)
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    try:
        found.api.request("POST", "/api/v1/namespaces", body=body)
    except ApiError as error:
        pytest.skip(f"a namespace cannot be made: {error.message}")
    try:
        # A controller makes it. The server refuses pods until then, and waits for it no longer than a second or two.
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        wait_for("the namespace's account", lambda: _there(found, account), 60, every=0.2)
        if PULL_SECRET is not None:
            _copy_secret(found, PULL_SECRET)
        yield found
    finally:
        found.api.request("DELETE", f"/api/v1/namespaces/{name}")


def _there(found: Access, path: str) -> Object | None:
    try:
        return found.api.request("GET", path)
    except ApiError as error:
        assert error.status == 404, error
        return None


def _copy_secret(found: Access, named: str) -> None:
    """A pull Secret is of the namespace that its pods are of."""
    home, _, name = named.rpartition("/")
    try:
        theirs = found.api.request("GET", f"/api/v1/namespaces/{home or 'default'}/secrets/{name}")
    except ApiError as error:
        pytest.fail(f"BUGURT_E2E_PULL_SECRET={named}: {error.message}; write NAMESPACE/NAME of a Secret that is there")
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": COPY}}
    body |= {"type": theirs.get("type", "kubernetes.io/dockerconfigjson"), "data": theirs.get("data") or {}}
    found.api.request("POST", f"/api/v1/namespaces/{found.namespace}/secrets", body=body)


def install_base(found: Access) -> None:
    """Accounts, Roles and policies, and Secrets without anything in them."""
    things = [o for o in objects(cluster_settings(), found.namespace) if o["kind"] != "Namespace"]
    done = apply_all(found, things, force=False)
    assert not [d for d in done if d["what"] == "fail"], done
    for name in ("bugurt-s3", "bugurt-telegram"):
        meta = {"name": name, "namespace": found.namespace}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": meta}
        found.api.request("POST", f"/api/v1/namespaces/{found.namespace}/secrets", body=body)


def as_account(found: Access, account: str) -> HttpApi:
    """A client with the rights of a ServiceAccount, as its pods have them."""
    from kubernetes.client import Configuration

    path = f"/api/v1/namespaces/{found.namespace}/serviceaccounts/{account}/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = found.api.request("POST", path, body=body)["status"]["token"]
    assert isinstance(found.api, HttpApi)
    ours, theirs = found.api._configuration, Configuration()
    for name in ("host", "ssl_ca_cert", "verify_ssl", "tls_server_name", "proxy", "no_proxy"):
        setattr(theirs, name, getattr(ours, name, None))
    theirs.api_key["BearerToken"] = f"Bearer {token}"
    return HttpApi(theirs, outlast_refusals=True, patience=5.0)


# -- images


def images() -> tuple[str, str, str]:
    """Registry and tag of the images, and how nodes come by them (an ``imagePullPolicy``)."""
    registry = os.environ.get("BUGURT_E2E_REGISTRY") or LOCAL_REGISTRY
    tag = os.environ.get("BUGURT_E2E_TAG") or __version__.replace("+", "-")
    # Never from whoever has that name at docker.io; `bugurt` says the same of its own pods.
    return registry, tag, "Never" if registry == LOCAL_REGISTRY else "IfNotPresent"


def need_images(found: Access) -> tuple[str, str]:
    """Registry and tag of all our images, or a skipped test."""
    registry, tag, policy = images()
    wanted = tuple((f"{registry}/{name}:{tag}", tuple(command), policy) for name, command in IMAGES.items())
    reason = _why_not(found, wanted)
    if reason:
        pytest.skip(
            f"no images ({reason}): set BUGURT_E2E_REGISTRY and BUGURT_E2E_TAG to where nodes find them "
            f"(BUGURT_E2E_PULL_SECRET, too, for a registry that asks for credentials), or load {', '.join(IMAGES)} "
            f"into all nodes as {LOCAL_REGISTRY}/NAME:{tag}"
        )
    return registry, tag


def python_image(found: Access) -> tuple[str, str]:
    """An image that has Python, and its pull policy; or a skipped test."""
    registry, tag, policy = images()
    named = os.environ.get("BUGURT_E2E_PYTHON")
    ways = [(named, "IfNotPresent")] if named else [(f"{registry}/scrape:{tag}", policy)]
    ways += [] if named else [("docker.io/library/python:3.12-slim", "IfNotPresent")]
    reasons = []
    for image, way in ways:
        reason = _why_not(found, ((image, ("python", "-c", "pass"), way),))
        if not reason:
            return image, way
        reasons.append(reason)
    pytest.skip(f"no image ({'; '.join(reasons)}): set BUGURT_E2E_PYTHON to one with Python that nodes can pull")


_KNOWN: dict[tuple[tuple[str, tuple[str, ...], str], ...], str] = {}


def _why_not(found: Access, wanted: tuple[tuple[str, tuple[str, ...], str], ...]) -> str:
    """Why images do not run on each node that takes pods, or nothing; tried once."""
    if wanted not in _KNOWN:
        probes = [_probe(found, wanted, node) for node in _nodes(found)]
        end = time.monotonic() + PULL_WAIT  # all nodes pull at the same time
        reasons = [r for r in (_outcome(found, name, end) for name in probes) if r]
        _KNOWN[wanted] = reasons[0] if reasons else ""
    return _KNOWN[wanted]


def _nodes(found: Access) -> list[str | None]:
    """The nodes that take any pod; one of the scheduler's choice where they may not be listed."""
    try:
        nodes = found.api.request("GET", "/api/v1/nodes").get("items") or []
    except ApiError:
        return [None]
    free = [n["metadata"]["labels"]["kubernetes.io/hostname"] for n in nodes if not n["spec"].get("taints")]
    return free[:8] or [None]


def _probe(found: Access, wanted: tuple[tuple[str, tuple[str, ...], str], ...], node: str | None) -> str:
    name = f"probe-{secrets.token_hex(3)}"
    containers = [
        {
            "name": f"c{number}",
            "image": image,
            "imagePullPolicy": policy,
            "command": list(command),
            "securityContext": _RESTRICTED,
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        }
        for number, (image, command, policy) in enumerate(wanted)
    ]
    whole = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    spec: Object = {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": containers}
    spec |= {"securityContext": whole, **({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {})}
    if PULL_SECRET is not None:
        spec["imagePullSecrets"] = [{"name": COPY}]
    meta = {"name": name, "namespace": found.namespace}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
    found.api.request("POST", f"/api/v1/namespaces/{found.namespace}/pods", body=body)
    return name


def _outcome(found: Access, name: str, end: float) -> str:
    """Why a probe has not run by then, or nothing once it has; the probe is gone afterwards."""
    path = f"/api/v1/namespaces/{found.namespace}/pods/{name}"
    patient_until = time.monotonic() + ROOM_WAIT

    def look() -> str | None:
        pod = found.api.request("GET", path)
        status = pod["status"]
        if status.get("phase") == "Succeeded":
            return "ran"
        placed = conditions(pod).get("PodScheduled") or {}
        if placed.get("status") == "False" and time.monotonic() > patient_until:
            return f"no node takes a pod that tries it: {placed.get('message')}"
        for container in status.get("containerStatuses") or ():
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") in _FINAL:
                return f"{container['image']}: {waiting.get('message') or waiting['reason']}"
        assert status.get("phase") != "Failed", f"an image is there and does not run: {status}"
        return f"not pulled within {PULL_WAIT:.0f} s" if time.monotonic() > end else None

    try:
        found_out = str(wait_for("an image to be pulled", look, PULL_WAIT + ROOM_WAIT))
    finally:
        delete(found, path)
    return "" if found_out == "ran" else " ".join(found_out.split())[:300]


def delete(found: Access, path: str) -> None:
    """Delete something that may be gone, or may never have come to be."""
    try:
        found.api.request("DELETE", path)
    except ApiError as error:
        assert error.status == 404, error


# -- places


@contextmanager
def real_world(folder: Path) -> Iterator[RealWorld]:
    """The contract suite's place: accounts, policies, and Secrets without anything in them."""
    with own_namespace() as found:
        image, policy = python_image(found)
        install_base(found)
        run = f"e2e-{secrets.token_hex(3)}"
        yield RealWorld(folder, found.namespace, run, image, policy, CONTEXT, COPY if PULL_SECRET else None)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def port_forward(program: list[str], namespace: str, service: str, port: int) -> Iterator[str]:
    """``kubectl port-forward``, begun anew when it breaks off; yields the URL."""
    local = free_port()
    command = [*program, "port-forward", "-n", namespace, f"service/{service}", f"{local}:{port}"]
    # The shell's loop keeps it alive: port-forward ends with each pod that it leads to.
    process = subprocess.Popen(
        ["sh", "-c", 'while :; do "$@"; sleep 1; done', "port-forward", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", local), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < end, "port-forward does not come up"
                time.sleep(0.5)
        yield f"http://127.0.0.1:{local}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(10)


def wait_for(what: str, look: Any, seconds: float = 300.0, every: float = 1.0) -> Any:
    """Look until something is there, and return it."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(every)
