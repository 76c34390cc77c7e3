"""What training decides about GPUs. There is none here: torch's answers are made up, what follows from them is real."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import gpus
from jobs.artifacts import ArtifactStore
from jobs.specs import ConfigError, TrainSpec
from jobs.train.surroundings import check_gpus, check_kernels, device_of
from jobs.train.topology import Topology
from tests.conftest import ROOT
from tests.train.datasets import make_dataset
from tests.train.forks import Fork

NO_KERNEL = torch.AcceleratorError if hasattr(torch, "AcceleratorError") else RuntimeError


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """torch for CUDA 13 that cannot use what is there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("BUGURT_GPUS", raising=False)
    monkeypatch.setattr(gpus, "in_sight", lambda: False)
    return monkeypatch


def give(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """torch sees so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100-PCIE-16GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def test_a_job_whose_gpu_is_not_seen_ends(no_gpu: pytest.MonkeyPatch) -> None:
    no_gpu.setenv("BUGURT_GPUS", "1")
    with pytest.raises(ConfigError, match=r"holds 1 GPU, but torch 2\.13\.0 \(CUDA 13\.0\) sees none: .* 580 or newer"):
        check_gpus()
    no_gpu.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match=r"its image has torch 2\.13\.0 for CPUs"):
        check_gpus()
    no_gpu.setattr(torch.cuda, "is_available", lambda: True)
    check_gpus()


def test_one_machine_is_told_and_trains(no_gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_gpus()
        assert not caplog.messages
        no_gpu.setattr(gpus, "in_sight", lambda: True)
        check_gpus()
        no_gpu.setattr(torch.version, "cuda", None)
        check_gpus()
    assert caplog.messages == [
        "there is a GPU here, but torch 2.13.0 cannot use it, so the CPU trains: NVIDIA's driver must be 580 or newer "
        "for CUDA 13",
        "there is a GPU here, but torch 2.13.0 cannot use it, so the CPU trains: it is built for CPUs; install one for "
        "CUDA",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_stage_ends_with_it(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path) -> None:
    spec = TrainSpec(dataset=make_dataset(store), preset="tiny", max_steps=2)
    done = Fork(spec, s3_env, tmp_path, env={"BUGURT_GPUS": "1"})
    assert done.end() == 78, done.text
    assert "this Job holds 1 GPU, but " in done.last
    assert "set gpu = 0 in [cluster.train]" in done.last
    several = Fork(spec, s3_env, tmp_path, env={"BUGURT_GPUS": "2", "BUGURT_TRAIN_PROCESSES": "2"})
    assert several.end() == 78, several.text
    assert "this Job holds 2 GPUs, but " in several.last


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_what_computes_is_said(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path) -> None:
    spec = TrainSpec(dataset=make_dataset(store), preset="tiny", max_steps=2, batch_size=4, precision="fp32")
    done = Fork(spec, s3_env, tmp_path)
    assert done.end() == 0, done.text
    device = store.manifest(spec.ref()).info["device"]
    assert device.startswith("CPU, ")
    assert f"training on {device}, in fp32" in done.text


def test_devices_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, 2)
    assert device_of(1) == "Tesla V100-PCIE-16GB"
    assert device_of(2) == "2 processes with each Tesla V100-PCIE-16GB"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            NO_KERNEL("CUDA error: no kernel image is available for execution on the device"),
            r"torch \S+ \(CUDA 13\.0\) has no code for this GPU \(Tesla V100-PCIE-16GB, compute capability 7\.0\): .*"
            "TORCH_INDEX",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), r"the GPU \(Tesla V100-PCIE-16GB\) has no memory left"),
    ],
    ids=["too old", "full"],
)
def test_a_gpu_that_cannot_compute(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    give(monkeypatch, 1)

    def refuses(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(torch, "ones", refuses)
    with pytest.raises(ConfigError, match=said):
        check_kernels()


def test_what_may_pass_by_itself_is_no_matter_of_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, 1)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise NO_KERNEL("CUDA error: uncorrectable ECC error encountered")

    monkeypatch.setattr(torch, "ones", fails)
    with pytest.raises(NO_KERNEL, match="ECC"):
        check_kernels()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_kernels()  # without a GPU nothing is tried


def test_processes_by_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, 2)
    assert Topology(None).local_processes() == 2
    assert [Topology(n).local_processes() for n in (1, 2)] == [1, 2]
    with pytest.raises(ConfigError, match="BUGURT_TRAIN_PROCESSES is 3, but there are 2 GPUs here"):
        Topology(3).local_processes()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the driver counts them, and torch cannot use them
    assert Topology(None).local_processes() == 1
    assert Topology(3).local_processes() == 3


#: In a process of its own: transformers and accelerate remember for good what they were once told of GPUs.
ARGUMENTS = """
import sys
from types import SimpleNamespace
import torch
from jobs.train.presets import Settings
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 2
torch.cuda.set_device = lambda device: None
from jobs.train.trainer import arguments
plan = SimpleNamespace(
    settings=Settings(), folder=sys.argv[1], total_steps=4, batch_size=8, accumulation=1, seed=0
)
args = arguments(plan, precision="fp32", compiled=False, activation_checkpointing=False)
print(args.device, args.n_gpu, args.train_batch_size)
"""


def test_a_process_takes_one_gpu_of_two(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ARGUMENTS, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "cuda:0 1 8\n", done.stderr
