"""A real cluster for tests: whatever the kubeconfig names, in a namespace of our own that goes when we go.

    BUGURT_E2E_REGISTRY=registry.example.org/bugurt BUGURT_E2E_TAG=0.1.0 pytest -m cluster

Without a cluster in reach, or without images, the tests are skipped and say why.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli.clusters.kubernetes_api import Access, ApiError, Unreachable, connect
from cli.commands.install import apply_all
from cli.kustomize import objects
from jobs.specs import ConfigError
from tests.cli.fake_cluster import cluster_settings
from tests.cli.worlds import RealWorld

GONE_WAIT = 180.0


def access(namespace: str | None = None) -> Access:
    """The cluster, or a skipped test."""
    if not os.environ.get("KUBECONFIG") and not Path("~/.kube/config").expanduser().is_file():
        pytest.skip("no kubeconfig: set KUBECONFIG to run the tests of a real cluster")
    try:
        found = connect(os.environ.get("BUGURT_E2E_CONTEXT"), namespace)
        found.api.request("GET", "/version")
    except (ApiError, Unreachable, ConfigError) as error:
        pytest.skip(f"the kubeconfig's cluster does not answer: {error}")
    return found


def images() -> tuple[str, str]:
    """Registry and tag of the images, or a skipped test."""
    registry, tag = os.environ.get("BUGURT_E2E_REGISTRY"), os.environ.get("BUGURT_E2E_TAG")
    if not registry or not tag:
        pytest.skip("no images: set BUGURT_E2E_REGISTRY and BUGURT_E2E_TAG to where nodes find them")
    return registry, tag


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
        yield found
    finally:
        found.api.request("DELETE", f"/api/v1/namespaces/{name}")


@contextmanager
def real_world(folder: Path) -> Iterator[RealWorld]:
    """The contract suite's place: accounts, policies, and Secrets without anything in them."""
    registry, tag = images()
    with own_namespace() as found:
        things = [o for o in objects(cluster_settings(), found.namespace) if o["kind"] != "Namespace"]
        done = apply_all(found, things, force=False)
        assert not [d for d in done if d["what"] == "fail"], done
        for name in ("bugurt-s3", "bugurt-telegram"):
            meta = {"name": name, "namespace": found.namespace}
            body = {"apiVersion": "v1", "kind": "Secret", "metadata": meta}
            found.api.request("POST", f"/api/v1/namespaces/{found.namespace}/secrets", body=body)
        run = f"e2e-{secrets.token_hex(3)}"
        yield RealWorld(folder, found.namespace, run, f"{registry}/scrape:{tag}")


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def port_forward(kubectl: str, namespace: str, service: str, port: int) -> Iterator[str]:
    """``kubectl port-forward``, begun anew when it breaks off; yields the URL."""
    local = free_port()
    command = [kubectl, "port-forward", "-n", namespace, f"service/{service}", f"{local}:{port}"]
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


def wait_for(what: str, look: Any, seconds: float = 300.0) -> Any:
    """Look until something is there, and return it."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(1.0)
