"""Forked processes are what started ones are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.clusters.base import JobRequest, JobState
from cli.clusters.local import LocalCluster
from tests import warm
from tests.s3_faults import faulty_s3

STAGE = [sys.executable, "-m", "jobs.train"]


@pytest.fixture(autouse=True, scope="module")
def _warm() -> Iterator[None]:
    with warm.processes():
        yield


@pytest.fixture
def env() -> dict[str, str]:
    """An environment that a process can be forked with."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BUGURT_", "AWS_"))}
    return {**kept, **warm.ENV}


def _is_forked(process: subprocess.Popen[Any]) -> bool:
    return process.pid != 0 and vars(process).get("_line") is not None


def _waits_for_its_spec(env: dict[str, str], folder: Path) -> subprocess.Popen[Any]:
    """A stage that reads its spec from a pipe, where it waits until somebody writes one."""
    os.mkfifo(folder / "spec")
    command = [*STAGE, "--spec", "spec"]
    process = subprocess.Popen(command, env={**env, "SOME": "thing"}, cwd=folder, stderr=subprocess.PIPE, text=True)
    assert _is_forked(process)
    return process


def test_it_has_its_own_command_environment_folder_and_files(env: dict[str, str], tmp_path: Path) -> None:
    process = _waits_for_its_spec(env, tmp_path)
    proc = Path(f"/proc/{process.pid}")
    assert (proc / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")[1:] == [b"-m", b"jobs.train", b"--spec", b"spec"]
    assert b"SOME=thing" in (proc / "environ").read_bytes().split(b"\0")
    assert (proc / "cwd").readlink() == tmp_path
    with (tmp_path / "spec").open("w") as spec:  # it has come to its work when this opens
        files = {str(f.readlink()) for f in (proc / "fd").iterdir()}
        assert not any("bugurt-warm" in f for f in files)
        spec.write("{}")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 64
    assert "spec: dataset: is needed to run the train stage" in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)])
def test_signals_are_its_own(number: int, code: int, env: dict[str, str], tmp_path: Path) -> None:
    process = _waits_for_its_spec(env, tmp_path)
    line = (tmp_path / "spec").open("w")
    process.send_signal(number)
    assert process.wait(60) == code
    line.close()
    process.communicate()
    assert not Path(f"/proc/{process.pid}").exists()


def test_a_folder_that_is_not_there_and_a_preparation_that_fails(env: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        subprocess.Popen(STAGE, env=env, cwd=tmp_path / "gone")
    with pytest.raises(subprocess.SubprocessError, match="preexec_fn"):
        subprocess.Popen(STAGE, env=env, preexec_fn=lambda: 1 / 0)  # noqa: PLW1509  # what fails here is the point


@pytest.mark.parametrize("more", [{"OMP_NUM_THREADS": "2"}, {"PYTHONHASHSEED": "0"}, {"LANG": "C"}])
def test_what_libraries_read_at_their_start_starts_plainly(more: dict[str, str], env: dict[str, str]) -> None:
    process = subprocess.Popen(STAGE, env={**env, **more}, stderr=subprocess.DEVNULL)
    assert not _is_forked(process)
    assert process.wait(60) == 64


def test_other_programs_start_plainly(env: dict[str, str]) -> None:
    process = subprocess.Popen([sys.executable, "-c", "print(1)"], env=env, stdout=subprocess.PIPE, text=True)
    assert not _is_forked(process)
    assert process.communicate()[0] == "1\n"


def test_a_supervisor_has_its_children_and_they_end_with_it(
    s3_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with faulty_s3(s3_env["BUGURT_S3_ENDPOINT"]) as proxy:
        proxy.break_next("slow_down", times=10**6)  # the stage tries again and again, and is there to be looked at
        cluster = LocalCluster(
            tmp_path / "jobs", cwd=tmp_path, s3_env=lambda: {**s3_env, "BUGURT_S3_ENDPOINT": proxy.endpoint}
        )
        spec = {"stage": "train", "dataset": "dataset/" + "a" * 20, "model": "scratch:tiny"}
        cluster.create(JobRequest(name="job", run="run", component="train", spec=spec))
        supervisor = _wait_for(lambda: int((tmp_path / "jobs" / "job" / "pid").read_text()))
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children")
        child = _wait_for(lambda: int(children.read_text()))
        _wait_for(lambda: b"jobs.train" in Path(f"/proc/{child}/cmdline").read_bytes())
        _wait_for(lambda: proxy.broken)  # it has its name, but not yet its way to end, before it asks for something
        os.kill(supervisor, signal.SIGKILL)
        _wait_for(lambda: not _lives(child))
    status = cluster.get("job")
    assert status is not None
    assert status.state is JobState.PENDING
    logged = (tmp_path / "jobs" / "job" / "out.log").read_text().splitlines()
    assert json.loads(logged[-1])["message"].startswith("interrupted by SIGTERM")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


def _wait_for(look: Any) -> Any:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except (OSError, ValueError):
            pass  # it is not there yet
        time.sleep(0.02)  # processes of others have no event that one could wait for
    raise AssertionError("it never came")
