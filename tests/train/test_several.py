"""Training in several processes, and on several machines: gloo on one host."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.artifacts import ArtifactStore
from jobs.specs import ConfigError, TrainSpec
from jobs.train import peer
from jobs.train.launch import TooLarge
from jobs.train.topology import Topology
from tests.conftest import stage_env
from tests.train.datasets import make_dataset
from tests.train.forks import Fork
from tests.train.test_resume import committed

# In fp32 on any machine: the losses of one and of several processes are compared more finely than bf16 rounds.
SPEC: dict[str, Any] = {
    "model": "scratch:tiny", "preset": "tiny", "max_steps": 12, "eval_steps": 4, "precision": "fp32",
}  # fmt: skip
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def start(spec: TrainSpec, s3_env: dict[str, str], folder: Path, **env: str) -> subprocess.Popen[str]:
    """A stage's process with its own environment."""
    path = folder / "several.json"
    path.write_text(spec.model_dump_json(), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.train", "--spec", str(path), "--debug"],
        env=stage_env(s3_env, "several", {**ONE_THREAD, **env}),
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Log lines up to the first one with ``text``."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"{text!r} was never logged: {''.join(lines[-10:])}")


def curves(store: ArtifactStore, ref: str) -> list[dict[str, float]]:
    """The records of ``metrics.jsonl``."""
    data = store.read(ref, store.manifest(ref).file("metrics.jsonl"))
    return [json.loads(line) for line in data.decode().splitlines()]


def alone(store: ArtifactStore, s3_env: dict[str, str], folder: Path, spec: TrainSpec) -> list[dict[str, float]]:
    """The curves that one process gives."""
    done = Fork(spec, s3_env, folder)
    assert done.end() == 0, done.text
    return curves(store, spec.ref())


def assert_same_curves(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """Up to what another order of sums does to floats."""
    assert [sorted(r) for r in found] == [sorted(r) for r in expected]
    for a, b in zip(expected, found, strict=True):
        assert b == pytest.approx(a, rel=2e-4)


@pytest.mark.slow
def test_three_processes_give_the_losses_of_one(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path) -> None:
    dataset = make_dataset(store)
    one = TrainSpec.model_validate({**SPEC, "batch_size": 6, "dataset": dataset})
    three = TrainSpec.model_validate({**SPEC, "batch_size": 2, "dataset": dataset})
    process = start(three, s3_env, tmp_path, BUGURT_TRAIN_PROCESSES="3")
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait(60) == 0, said
    assert store.manifest(three.ref()).info["processes"] == 3
    assert_same_curves(curves(store, three.ref()), alone(store, s3_env, tmp_path, one))
    progress = json.loads(store.bucket.get_bytes("runs/several/train/progress.json"))
    assert progress["done"] == 12  # rank 0's progress came through the parent
    assert b"blocks of" in store.bucket.get_bytes("runs/several/train/log.txt")


@pytest.mark.plain
@pytest.mark.slow
def test_a_signal_reaches_all_processes_and_a_lost_one_ends_the_others(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path
) -> None:
    spec = TrainSpec.model_validate(
        {
            **SPEC,
            "batch_size": 2,
            "max_steps": 400,
            "eval_steps": 400,
            "checkpoint_steps": 3,
            "dataset": make_dataset(store),
        }
    )
    first = start(spec, s3_env, tmp_path, BUGURT_TRAIN_PROCESSES="2")
    read_until(first, "is in the bucket")
    first.send_signal(signal.SIGTERM)
    assert first.stderr is not None
    said = first.stderr.read()
    assert first.wait(60) == 143, said
    kept = committed(store, "several")[-1]
    assert f"interrupted at step {kept}" in said

    second = start(spec, s3_env, tmp_path, BUGURT_TRAIN_PROCESSES="2")
    read_until(second, f"resuming at step {kept}")
    read_until(second, "is in the bucket")
    workers = [p for p in psutil.Process(second.pid).children(recursive=True) if "jobs.train.worker" in p.cmdline()]
    workers = [p for p in workers if "torch.distributed.run" not in p.cmdline()]
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)
    assert second.stderr is not None
    said = second.stderr.read()
    assert second.wait(60) == 75, said
    assert committed(store, "several")[-1] >= kept

    third = start(spec, s3_env, tmp_path, BUGURT_TRAIN_PROCESSES="2")
    read_until(third, "is in the bucket")
    family = psutil.Process(third.pid).children(recursive=True)
    third.kill()  # the parent alone: its workers must not go on for nobody
    third.wait(60)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


def test_the_machine_with_the_least_memory_decides_on_the_batch(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.train.agreement"]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path), *batch], env=stage_env({}, "agreed"))
        for rank, batch in enumerate((("8", "1"), ("2", "4")))
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert [json.loads((tmp_path / f"agreed-{r}").read_text()) for r in (0, 1)] == [[2, 4], [2, 4]]


def test_a_machine_whose_memory_does_not_suffice_begins_anew_with_less(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TrainSpec.model_validate({**SPEC, "batch_size": 4, "dataset": "dataset/" + "1" * 20})
    asked: list[Any] = []

    def launched(*_: Any, batch: Any, **__: Any) -> None:
        asked.append(batch)
        if len(asked) < 3:
            raise TooLarge(4 >> len(asked), 1 << len(asked))
        writer = store.writer(spec.ref())
        writer.put_bytes("x", b"")
        writer.commit(stage="train", spec={})

    monkeypatch.setattr(peer, "launch", launched)
    peer._work(spec, Topology(1, 2, 1, "127.0.0.1", 1), tmp_path, threading.Event(), s3_env, force=False)
    assert asked == [None, (2, 2), (1, 4)]


@pytest.mark.slow
def test_two_machines_train_one_model(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path) -> None:
    spec = TrainSpec.model_validate({**SPEC, "batch_size": 2, "dataset": make_dataset(store)})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "BUGURT_TRAIN_NODES": "2",
        "BUGURT_TRAIN_PROCESSES": "1",
        "BUGURT_TRAIN_RENDEZVOUS": f"127.0.0.1:{port}",
    }
    machines = [start(spec, s3_env, tmp_path, **shared, JOB_COMPLETION_INDEX=str(i)) for i in (1, 0)]
    said = []
    for machine in machines:
        assert machine.stderr is not None
        said.append(machine.stderr.read())
    assert [m.wait(120) for m in machines] == [0, 0], "\n".join(said)
    assert store.manifest(spec.ref()).info["processes"] == 2
    assert "waiting for the first machine to commit" in said[0]
    one = spec.model_copy(update={"batch_size": 4})
    assert_same_curves(curves(store, spec.ref()), alone(store, s3_env, tmp_path, one))


@pytest.mark.parametrize(
    "env",
    [
        {"BUGURT_TRAIN_PROCESSES": "0"},
        {"BUGURT_TRAIN_PROCESSES": "two"},
        {"BUGURT_TRAIN_NODES": "2"},
        {"BUGURT_TRAIN_NODES": "2", "JOB_COMPLETION_INDEX": "2", "BUGURT_TRAIN_RENDEZVOUS": "a:1"},
        {"BUGURT_TRAIN_NODES": "2", "JOB_COMPLETION_INDEX": "1"},
        {"BUGURT_TRAIN_NODES": "2", "JOB_COMPLETION_INDEX": "1", "BUGURT_TRAIN_RENDEZVOUS": "host"},
        {"BUGURT_TRAIN_NODES": "2", "JOB_COMPLETION_INDEX": "1", "BUGURT_TRAIN_RENDEZVOUS": "host:99999"},
    ],
)
def test_an_environment_that_makes_no_sense(env: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        Topology.from_env(env)
