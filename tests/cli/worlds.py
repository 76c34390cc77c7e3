"""Places that the contract suite runs in: the plane in memory, the plane behind HTTP, and a real cluster.

A Job of the contract does what its spec says, in every world alike: ``log`` lines are printed, then, after
``seconds``, it ends with ``exit`` (or with ``exit_of[shard]``). In a real cluster ``PROGRAM`` does that.
"""

from __future__ import annotations

import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cli.clusters.kubernetes import KubernetesCluster
from cli.clusters.kubernetes_api import HttpApi, connect
from cli.manifests import builtin_folder
from cli.settings import Settings
from tests.cli.fake_cluster import ControlPlane, FakeCluster, Task, cluster_settings

T = TypeVar("T")
PROGRAM = """
import json, os, sys, time
spec = json.loads(os.environ["BUGURT_SPEC"])
for line in spec.get("log", []):
    print(line, file=sys.stderr, flush=True)
time.sleep(spec.get("seconds", 0))
sys.exit(spec.get("exit_of", {}).get(os.environ.get("JOB_COMPLETION_INDEX"), spec.get("exit", 0)))
"""


def run_task(task: Task) -> int:
    """What PROGRAM does, for the plane."""
    spec = task.spec
    for line in spec.get("log", []):
        task.log(line)
    return int(spec.get("exit_of", {}).get(str(task.shard), spec.get("exit", 0)))


def write_templates(folder: Path, image: str | None = None, policy: str = "IfNotPresent") -> str:
    """The built-in templates with two tries instead of several, and with PROGRAM where an image is given."""
    for path in (builtin_folder() / "jobs").glob("*.yaml"):
        job = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "backoffLimit" in job["spec"]:
            job["spec"]["backoffLimit"] = 1
        if "backoffLimitPerIndex" in job["spec"]:
            job["spec"]["backoffLimitPerIndex"] = 0
        pod = job["spec"]["template"]["spec"]
        container = pod["containers"][0]
        resources = container["resources"]
        resources["limits"].pop("nvidia.com/gpu", None)
        if image is not None:
            container |= {"image": image, "imagePullPolicy": policy, "command": ["python", "-c", PROGRAM]}
            pod["terminationGracePeriodSeconds"] = 5
            resources["requests"] |= {"cpu": "20m", "memory": "64Mi", "ephemeral-storage": "64Mi"}
            resources["limits"] |= {"memory": "64Mi", "ephemeral-storage": "64Mi"}
        (folder / path.name).write_text(yaml.safe_dump(job), encoding="utf-8")
    return str(folder)


def bounded(what: str, things: Callable[[], Iterable[T]], seconds: float = 600.0) -> list[T]:
    """All of a watch or a log that ends by itself; a failed test where it does not within so many seconds."""
    seen: list[T] = []
    errors: list[BaseException] = []

    def read() -> None:
        try:
            seen.extend(things())
        except BaseException as error:  # told below, in the test's own thread
            errors.append(error)

    thread = threading.Thread(target=read, name="bounded", daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"{what}: not within {seconds:.0f} s, last seen {seen[-1] if seen else 'nothing'}"
    if errors:
        raise errors[0]
    return seen


class World(ABC):
    """A place with Jobs. ``run`` is a name of a run that nobody else uses."""

    run: str
    templates: str
    patience = 5.0  # seconds

    @abstractmethod
    def cluster(self, settings: Settings) -> KubernetesCluster:
        """A client of this world."""

    def settings(self, **cluster: Any) -> Settings:
        """Settings for this world."""
        return cluster_settings(templates=self.templates, **cluster)

    def step(self) -> None:
        """Let some time pass."""
        time.sleep(0.5)

    def until(self, wanted: Callable[[], Any]) -> Any:
        """Wait until something is true, and return it."""
        end = time.monotonic() + self.patience
        while True:
            found = wanted()
            if found:
                return found
            assert time.monotonic() < end, "it did not come to pass"
            self.step()


class MemoryWorld(World):
    """FakeCluster."""

    def __init__(self, folder: Path) -> None:
        self.run = "run-a"
        self.templates = write_templates(folder)
        self.plane = ControlPlane(run_task)

    def cluster(self, settings: Settings) -> KubernetesCluster:
        return FakeCluster(plane=self.plane, settings=settings)

    def step(self) -> None:
        self.plane.tick()


class WireWorld(MemoryWorld):
    """KubernetesCluster over HTTP."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder)
        self._url = url
        self._api: HttpApi | None = None

    def cluster(self, settings: Settings) -> KubernetesCluster:
        if self._api is None:
            self._api = self.api()
        return KubernetesCluster(self._api, settings, "bugurt", sleep=lambda seconds: None)

    def api(self) -> HttpApi:
        """A fresh client."""
        from kubernetes.client import Configuration

        from tests.cli.api_server import TOKEN

        configuration = Configuration()
        configuration.host = self._url
        configuration.api_key["BearerToken"] = f"Bearer {TOKEN}"
        return HttpApi(configuration, patience=3.0)


class RealWorld(World):
    """The cluster of the current kubeconfig: a namespace of the suite's own, and an image that has Python."""

    patience = 180.0

    def __init__(
        self,
        folder: Path,
        namespace: str,
        run: str,
        image: str,
        policy: str,
        context: str | None,
        pull_secret: str | None,
    ) -> None:
        self.run = run
        self.namespace = namespace
        self.templates = write_templates(folder, image, policy)
        self._context = context
        self._pull_secret = pull_secret

    def settings(self, **cluster: Any) -> Settings:
        own = {"namespace": self.namespace, "image_pull_secret": self._pull_secret}
        return super().settings(**{**own, **cluster})

    def cluster(self, settings: Settings) -> KubernetesCluster:
        access = connect(self._context, self.namespace)
        return KubernetesCluster(access.api, settings, self.namespace)


def json_line(message: str) -> str:
    """A log line as stages write it."""
    return json.dumps({"time": "2026-01-01T00:00:00Z", "level": "error", "message": message})
