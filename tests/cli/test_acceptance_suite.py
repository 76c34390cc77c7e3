"""The suite for real clusters, tried where there is none: on the control plane in memory, behind HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from tests.cli.api_server import serve
from tests.cli.fake_kubernetes import STILL_AT_WORK, ControlPlane, Runner, Task
from tests.cli.test_doctor import add_node
from tests.cli.worlds import run_task
from tests.conftest import ROOT


@contextmanager
def passing_time(plane: ControlPlane) -> Iterator[None]:
    """A second of the plane's passes every 50 ms, as in a cluster that nobody watches."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.05):
            plane.tick()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5)


def at_work(plane: ControlPlane) -> Runner:
    """What ``worlds.PROGRAM`` does in a real cluster, for as long as its spec says by the plane's clock."""
    begun: dict[str, datetime] = {}

    def run(task: Task) -> int:
        began = begun.setdefault(task.pod, plane.now)
        if (plane.now - began).total_seconds() < task.spec.get("seconds", 0):
            return STILL_AT_WORK
        return run_task(task)

    return run


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("suite", "skips"),
    [
        (["tests/e2e/test_acceptance.py"], {"kubectl is not installed", "Kueue is not installed"}),
        (["tests/cli/test_cluster_contract.py", "-k", "real"], set()),
    ],
    ids=["acceptance", "contract"],
)
def test_the_suite_holds_on_the_fake(tmp_path: Path, suite: list[str], skips: set[str]) -> None:
    """It would be a pity to find its own mistakes on somebody's cluster."""
    plane = ControlPlane(namespaces=())
    plane.runner = at_work(plane)
    plane.accounts_needed = True
    add_node(plane, "node-1")
    plane.objects["nodes", "", "node-1"]["metadata"]["labels"] = {"kubernetes.io/hostname": "node-1"}
    env = {k: v for k, v in os.environ.items() if not k.startswith(("BUGURT_", "PYTEST_"))}
    with serve(plane) as server, passing_time(plane):
        # A path as people say it, from where they are.
        kubeconfig = os.path.relpath(server.kubeconfig(tmp_path), ROOT)
        env |= {"KUBECONFIG": kubeconfig, "HOME": str(tmp_path), "NO_COLOR": "1"}
        env |= {"BUGURT_E2E_CONTEXT": "here"}
        env["PATH"] = str(Path(sys.executable).parent)  # no kubectl: the fake does not tell its schema
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", *suite],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=880,
        )
    assert done.returncode == 0, done.stdout[-6000:]
    skipped = {line.rpartition(": ")[2] for line in done.stdout.splitlines() if line.startswith("SKIPPED")}
    assert skipped == skips
