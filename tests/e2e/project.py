"""A folder with a bugurt.toml for a real cluster, and the command line in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.clusters.kubernetes_api import Access
from tests.conftest import ROOT
from tests.e2e.real import CONTEXT, COPY, PULL_SECRET, wait_for

EXPORT = ROOT / "examples" / "channel"
#: What a small node of a trial has room for; a GPU is not among it.
SMALL = 'cpu = "250m", memory = "2Gi", disk = "3Gi", gpu = 0'


class Project:
    """See the module's docstring. ``env``: variables besides this process's own, without its BUGURT_*."""

    def __init__(self, folder: Path, access: Access, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.access = access
        self.env = dict(env or {})
        self.core = f"/api/v1/namespaces/{access.namespace}"

    def settle_in(self, bucket: str, registry: str, tag: str) -> None:
        """Write the bugurt.toml: the cluster of the tests, and the bucket of ``install --dev``."""
        more = f"context = {json.dumps(CONTEXT)}\n" if CONTEXT else ""
        more += f'image_pull_secret = "{COPY}"\n' if PULL_SECRET else ""
        (self.folder / "bugurt.toml").write_text(
            f'[s3]\nbucket = "{bucket}"\nendpoint_in_cluster = "http://bugurt-bucket:9000"\n'
            f'[cluster]\nkind = "kubernetes"\nnamespace = "{self.access.namespace}"\n{more}'
            f'registry = "{registry}"\ntag = "{tag}"\n'
            + "".join(f"{stage} = {{ {SMALL} }}\n" for stage in ("scrape", "preprocess", "train", "generate"))
        )

    def bugurt(self, *args: str, code: int | None = 0, timeout: float = 1200) -> str:
        """Run a command; its output."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("BUGURT_")}
        if own.get("KUBECONFIG"):  # said from where the tests were begun, and the command runs elsewhere
            own["KUBECONFIG"] = os.pathsep.join(map(os.path.abspath, own["KUBECONFIG"].split(os.pathsep)))
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", *args],
            cwd=self.folder,
            env={**own, **self.env, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert code is None or done.returncode == code, f"bugurt {' '.join(args)}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def submit(self, name: str, *args: str) -> str:
        """Submit the sample channel's pipeline with the tiny model."""
        options = ("--source", str(EXPORT), "--profile", "bugurt", "--model", "scratch:tiny", "--name", name)
        return self.bugurt("submit", "pipeline", *options, *args)

    def pods(self, run: str, component: str) -> list[dict[str, Any]]:
        """A stage's pods."""
        chosen = f"app.kubernetes.io/instance={run},app.kubernetes.io/component={component}"
        found: list[dict[str, Any]] = self.access.api.request(
            "GET", f"{self.core}/pods", query={"labelSelector": chosen}
        )["items"]
        return found

    def running(self, run: str, component: str) -> dict[str, Any] | None:
        """A pod of a stage that runs; None where the stage ended before it was seen to."""

        def look() -> dict[str, Any] | str | None:
            pods = self.pods(run, component)
            ended = any(p["status"].get("phase") == "Succeeded" for p in pods)
            running = (p for p in pods if p["status"].get("phase") == "Running" and not _is_going(p))
            return next(running, "ended" if ended else None)

        found: dict[str, Any] | str = wait_for(f"a running pod of {component}", look, 900, every=0.2)
        return None if isinstance(found, str) else found

    def done(self, run: str, state: str = "succeeded") -> dict[str, Any]:
        """The run's status once it has ended."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = json.loads(self.bugurt("status", run, "--json", code=None) or "{}")
            if found.get("state") in ("succeeded", "failed", "cancelled"):
                return found
            return None

        found: dict[str, Any] = wait_for(f"the end of {run}", look, 1500)
        assert found["state"] == state, found
        return found


def _is_going(pod: dict[str, Any]) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp"))
