"""The suite for real clusters, tried where there is none: on the control plane in memory, behind HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.api_server import serve
from tests.cli.fake_kubernetes import ControlPlane
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


@pytest.mark.slow
def test_the_suite_holds_on_the_fake(tmp_path: Path) -> None:
    """It would be a pity to find its own mistakes on somebody's cluster."""
    plane = ControlPlane(namespaces=())
    plane.accounts_needed = True
    env = {k: v for k, v in os.environ.items() if not k.startswith(("BUGURT_", "PYTEST_"))}
    with serve(plane) as server, passing_time(plane):
        env |= {"KUBECONFIG": str(server.kubeconfig(tmp_path)), "HOME": str(tmp_path), "NO_COLOR": "1"}
        env["PATH"] = str(Path(sys.executable).parent)  # no kubectl: the fake does not tell its schema
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", "tests/e2e/test_acceptance.py"],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )
    assert done.returncode == 0, done.stdout[-6000:]
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert skipped and all("kubectl is not installed" in line or "Kueue" in line for line in skipped), skipped
