"""What a stage says of GPUs that its Job holds and a library does not see."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import gpus
from jobs.specs import ConfigError


@pytest.mark.parametrize(("text", "count"), [(None, 0), ("", 0), ("0", 0), ("1", 1), ("8", 8)])
def test_what_a_job_holds(monkeypatch: pytest.MonkeyPatch, text: str | None, count: int) -> None:
    monkeypatch.delenv("BUGURT_GPUS", raising=False)
    if text is not None:
        monkeypatch.setenv("BUGURT_GPUS", text)
    assert gpus.held() == count


@pytest.mark.parametrize("text", ["one", "-1", "1.5", "²"])
def test_what_is_no_number(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("BUGURT_GPUS", text)
    with pytest.raises(ConfigError, match="BUGURT_GPUS must be the number of the Job's GPUs"):
        gpus.held()


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, True), ("0", True), ("1,0", True), ("", False), ("-1", False)]
)
def test_a_gpu_that_may_be_used(monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: bool) -> None:
    there = True
    monkeypatch.setattr(Path, "exists", lambda self: there and str(self) == "/dev/nvidia0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.in_sight() is expected
    there = False
    assert not gpus.in_sight()


def test_each_sentence_names_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUGURT_GPUS", "1")
    assert str(gpus.unseen("train", "torch 2.13.0", "13.0")) == (
        "this Job holds 1 GPU, but torch 2.13.0 (CUDA 13.0) sees none: on the node NVIDIA's driver must be 580 or "
        'newer for CUDA 13; on k3s set runtime_class = "nvidia" in [cluster.train]; or set gpu = 0 in [cluster.train]'
    )
    monkeypatch.setenv("BUGURT_GPUS", "2")
    assert str(gpus.unseen("train", "torch 2.13.0", None)) == (
        "this Job holds 2 GPUs, but its image has torch 2.13.0 for CPUs: build it with one for CUDA "
        "(images/README.md), or set gpu = 0 in [cluster.train]"
    )
    assert "525 or newer for CUDA 12" in gpus.driver_for("12")
    assert gpus.driver_for("14.1") == "NVIDIA's driver may be too old for CUDA 14"
