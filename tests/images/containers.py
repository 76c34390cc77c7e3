"""Containers of the built images, run as the cluster runs them: uid 10001, read-only root, no capabilities.

BUGURT_IMAGE_TESTS=1                 the images are built, and an engine is here
BUGURT_IMAGE_ENGINE=podman           or docker
BUGURT_IMAGE_OPTIONS="--runtime=…"   more options of `run`, where the machine needs them
BUGURT_IMAGE_REGISTRY=bugurt         the first part of the images' names
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobs import __version__

ENABLED = os.environ.get("BUGURT_IMAGE_TESTS", "") not in ("", "0")
ENGINE = os.environ.get("BUGURT_IMAGE_ENGINE", "podman")
OPTIONS = shlex.split(os.environ.get("BUGURT_IMAGE_OPTIONS", ""))
REGISTRY = os.environ.get("BUGURT_IMAGE_REGISTRY", "bugurt")
#: The emptyDirs of the Job templates, and the variables that go with them.
FOLDERS = ("/tmp", "/work", "/cache")
#: What the templates set; podman's own read-only mode would add writable folders of its own.
RESTRICTED = ["--network=host", "--read-only", "--user=10001:10001", "--cap-drop=all"]
RESTRICTED += ["--security-opt=no-new-privileges"] + (["--read-only-tmpfs=false"] if ENGINE == "podman" else [])


def name(image: str) -> str:
    """An image's full name."""
    return f"{REGISTRY}/{image}:{__version__.replace('+', '-')}"


def engine(
    *arguments: str, check: bool = True, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the engine's client."""
    return subprocess.run(
        [ENGINE, *arguments], capture_output=True, text=True, check=check, env={**os.environ, **(env or {})}
    )


def inspect(image: str) -> dict[str, Any]:
    """What the engine knows of an image."""
    found: list[dict[str, Any]] = json.loads(engine("image", "inspect", name(image)).stdout)
    return found[0]


@dataclass(frozen=True)
class Ended:
    """How a container ended; ``started`` is when its first process was."""

    code: int
    stdout: str
    stderr: str
    started: datetime

    @property
    def log(self) -> list[dict[str, Any]]:
        """The log's lines."""
        return [json.loads(line) for line in self.stderr.splitlines() if line.startswith("{")]

    @property
    def seconds_to_first_line(self) -> float:
        """From the start of the first process to the first line of the log."""
        return (datetime.fromisoformat(self.log[0]["time"]) - self.started).total_seconds()


def options(env: Mapping[str, str], mounts: Mapping[str, str] | None = None) -> list[str]:
    """Options of ``run`` for a container as in the Job templates. Values come from the environment, not from here."""
    found = [*RESTRICTED, *OPTIONS]
    found += [f"--tmpfs={folder}:rw,mode=1777" for folder in FOLDERS]
    found += [f"--volume={source}:{target}" for source, target in (mounts or {}).items()]
    return found + [f"--env={key}" for key in env]


def run(image: str, *arguments: str, env: Mapping[str, str], mounts: Mapping[str, str] | None = None) -> Ended:
    """Run a container to its end."""
    container = f"bugurt-test-{uuid.uuid4().hex[:12]}"
    command = ["run", f"--name={container}", *options(env, mounts), name(image), *arguments]
    try:
        done = engine(*command, check=False, env=env)
        state = json.loads(engine("container", "inspect", container).stdout)[0]["State"]
    finally:
        engine("rm", "--force", container, check=False)
    stamp = state["StartedAt"].replace("Z", "+00:00")
    head, _, rest = stamp.partition(".")  # nanoseconds are too fine for datetime
    digits = rest[: len(rest) - 6]
    started = datetime.fromisoformat(f"{head}.{digits[:6]:0<6}{rest[-6:]}" if rest else stamp)
    return Ended(done.returncode, done.stdout, done.stderr, started)
