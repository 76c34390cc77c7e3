"""A cluster in memory for tests: the real KubernetesCluster on a control plane that the tests hold in their hands.

    cluster = FakeCluster(runner)          # runner(task) -> exit code; executes a container
    cluster.plane.fault("train", "oom")    # the next pod of train runs out of memory
    cluster.plane.crash_after(3)           # raise Crash at the third API call from now
    cluster.plane.calls                    # all API calls so far

Time passes only while somebody watches (``cluster.watch``) or calls ``cluster.plane.tick()``, ``settle()``.
"""

from __future__ import annotations

from typing import Any

from cli.clusters.base import JobRequest
from cli.clusters.kubernetes import KubernetesCluster
from cli.settings import ClusterSection, S3Section, Settings
from tests.cli.fake_kubernetes import ControlPlane, Crash, Fault, Runner, Task

__all__ = ["ControlPlane", "Crash", "FakeCluster", "Fault", "Runner", "Task", "cluster_settings", "request_for"]


def cluster_settings(*, prefix: str = "team", owner: str | None = None, **cluster: Any) -> Settings:
    """Settings of a cluster with a bucket; ``cluster`` are fields of ``[cluster]``. The environment is left out."""
    section = ClusterSection.model_validate({"kind": "kubernetes", "namespace": "bugurt", **cluster})
    s3 = S3Section(
        bucket="bucket", prefix=prefix, endpoint="http://laptop:9000", endpoint_in_cluster="http://s3.data.svc:9000"
    )
    return Settings.model_construct(s3=s3, cluster=section, owner=owner)


class FakeCluster(KubernetesCluster):
    """See the module's docstring. Several FakeClusters may share a plane: a restarted driver sees the same world."""

    def __init__(
        self,
        runner: Runner | None = None,
        *,
        plane: ControlPlane | None = None,
        settings: Settings | None = None,
        **plane_options: Any,
    ) -> None:
        self.plane = plane or ControlPlane(runner, **plane_options)
        chosen = settings or cluster_settings()
        super().__init__(
            self.plane, chosen, chosen.cluster.namespace or "bugurt", sleep=lambda seconds: self.plane.tick()
        )


def request_for(component: str = "train", **changes: Any) -> JobRequest:
    """A small request for contract tests."""
    spec = {"stage": component} if component != "driver" else {"run": "run-a"}
    values: dict[str, Any] = {
        "name": f"run-a-{component}-0123abcd",
        "run": "run-a",
        "component": component,
        "spec": spec,
        **changes,
    }
    return JobRequest(**values)
