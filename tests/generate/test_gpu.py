"""What generation decides about GPUs. There is none here: libraries' answers are made up, what follows is real."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ctranslate2
import pytest
import torch

from jobs.artifacts import ArtifactStore
from jobs.generate.engines import ct2
from jobs.specs import ConfigError, GenerateSpec
from tests.conftest import ROOT, RunStage
from tests.generate.batches import spec_of
from tests.generate.models import MadeModel
from tests.generate.test_engines import engine_of

MISSING = "libcublasLt.so.12: cannot open shared object file: No such file or directory"
Machine = Callable[[int, str | None, str | None], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """``machine(gpus, missing, held)``: what CTranslate2 sees, what cuBLAS lacks, what BUGURT_GPUS says."""

    def made(gpus: int, missing: str | None, held: str | None) -> None:
        monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: gpus)
        monkeypatch.setattr(ct2, "load_cublas", lambda: missing)
        monkeypatch.delenv("BUGURT_GPUS", raising=False)
        if held is not None:
            monkeypatch.setenv("BUGURT_GPUS", held)

    return made


@pytest.mark.parametrize(
    ("device", "gpus", "missing", "held", "expected"),
    [
        ("auto", 0, None, None, "cpu"),
        ("auto", 1, None, None, "cuda"),
        ("auto", 1, None, "1", "cuda"),
        ("auto", 1, MISSING, None, "cpu"),
        ("cuda", 1, None, None, "cuda"),
        ("cpu", 1, None, "1", "cpu"),
        ("cpu", 0, MISSING, "1", "cpu"),
    ],
)
def test_the_device(
    machine: Machine, caplog: pytest.LogCaptureFixture, device: Any, gpus: int, missing: str | None, held: str | None,
    expected: str,
) -> None:  # fmt: skip
    machine(gpus, missing, held)
    with caplog.at_level(logging.WARNING):
        assert ct2.device_of(GenerateSpec(device=device)) == expected
    left_out = [f"the GPU is not used, for CTranslate2 needs cuBLAS of CUDA 12 ({MISSING}): {ct2._INSTALL}"]
    assert caplog.messages == (left_out if gpus and missing and device == "auto" else [])


@pytest.mark.parametrize(
    ("device", "gpus", "missing", "held", "said"),
    [
        ("cuda", 0, None, None, "device=cuda, but CTranslate2 sees no GPU here"),
        ("cuda", 0, None, "1", r"this Job holds 1 GPU, but CTranslate2 \S+ \(CUDA 12\) sees none: .* 525 or newer"),
        ("auto", 0, None, "1", r"runtime_class = \"nvidia\" in \[cluster.generate\]"),
        ("auto", 1, MISSING, "1", "cannot open .* generate image with CUDA=12, or set device=cpu, or gpu = 0"),
        ("cuda", 1, MISSING, "1", "build the generate image with CUDA=12"),
        ("cuda", 1, MISSING, None, r"pip install 'nvidia-cublas-cu12<13', or use device=cpu"),
        ("auto", 0, None, "many", "BUGURT_GPUS must be the number"),
    ],
)
def test_a_device_that_cannot_be_had(
    machine: Machine, device: Any, gpus: int, missing: str | None, held: str | None, said: str
) -> None:
    machine(gpus, missing, held)
    with pytest.raises(ConfigError, match=said):
        ct2.device_of(GenerateSpec(device=device))


#: In a process of its own, for what is loaded stays: any shared library stands in for cuBLAS.
LOADING = """
import shutil, sys
from pathlib import Path
import ctranslate2
from jobs.generate.engines import ct2
import _ctypes
site = Path(sys.argv[1])
ctranslate2.__file__ = str(site / "ctranslate2" / "__init__.py")
print(ct2.load_cublas())
folder = site / "nvidia" / "cublas" / "lib"
folder.mkdir(parents=True)
for name in ("libcublasLt.so.12", "libcublas.so.12"):
    shutil.copy(_ctypes.__file__, folder / name)
print(ct2.load_cublas(), *sorted({line.split()[-1] for line in open("/proc/self/maps") if "cublas" in line}))
"""


@pytest.mark.skipif(bool(ctranslate2.get_cuda_device_count()), reason="there is a GPU here, and perhaps cuBLAS")
def test_cublas_is_loaded_from_beside_ctranslate2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADING, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.splitlines()
    assert before == MISSING
    folder = tmp_path / "nvidia" / "cublas" / "lib"
    assert after == f"None {folder / 'libcublas.so.12'} {folder / 'libcublasLt.so.12'}"


@pytest.mark.skipif(bool(ctranslate2.get_cuda_device_count()), reason="there is a GPU here")
def test_the_stage_ends_where_its_gpu_is_not_seen(
    store: ArtifactStore, run_stage: RunStage, untrained: MadeModel
) -> None:
    spec = spec_of(untrained.put(store))
    result = run_stage(spec, env={"BUGURT_GPUS": "1"})
    assert result.code == 78
    assert "this Job holds 1 GPU, but CTranslate2 " in result.last
    other = run_stage(spec_of(untrained.put(store), engine="transformers"), env={"BUGURT_GPUS": "1"})
    assert other.code == 78
    assert "this Job holds 1 GPU, but " in other.last and "[cluster.generate]" in other.last


@pytest.mark.parametrize(("device", "rows"), [("cpu", 1), ("cuda", 16)])
def test_a_session_begins_with_as_many_rows_as_a_batch_may_have_on_a_gpu(
    store: ArtifactStore, untrained: MadeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, rows: int
) -> None:
    engine = engine_of(store, untrained.put(store), tmp_path / "m", micro_batch=16)
    assert isinstance(engine, ct2.CTranslate2Engine)
    asked: list[int] = []
    generator = SimpleNamespace(generate_batch=lambda prompts, **settings: asked.append(len(prompts)))
    monkeypatch.setattr(ct2, "open_generator", lambda *args: generator)
    monkeypatch.setattr(engine, "_device", device)
    engine.session(1)
    assert asked == [rows]


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_the_reference_engine_takes_bf16_where_the_gpu_has_it(
    store: ArtifactStore, untrained: MadeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool,
    expected: str,
) -> None:  # fmt: skip
    from transformers import PreTrainedModel

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 or including_emulation)
    monkeypatch.setattr(PreTrainedModel, "to", lambda self, device: self)
    engine = engine_of(
        store, untrained.put(store), tmp_path / "m", engine="transformers", device="auto", compute_type="auto"
    )
    assert engine.label.endswith(f"{expected} on cuda")
    assert engine._model.dtype == getattr(torch, expected)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("place", "error", "said"),
    [
        (
            "jobs.generate.engines.ct2.open_generator",
            RuntimeError("CUDA failed with error out of memory"),
            r"16 posts at once do not fit into memory \(CUDA failed with error out of memory\): lower 'micro_batch'",
        ),
        (
            "jobs.generate.stage.open_engine",
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            r"the model does not fit into memory \(CUDA out of memory\. .*\): take a smaller one",
        ),
    ],
    ids=["session", "engine"],
)
def test_no_memory_for_the_model(
    store: ArtifactStore, in_shards: Callable[..., None], untrained: MadeModel, monkeypatch: pytest.MonkeyPatch,
    place: str, error: Exception, said: str,
) -> None:  # fmt: skip
    def refuses(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(place, refuses)
    spec = spec_of(untrained.put(store))
    with pytest.raises(ConfigError, match=said):
        in_shards(spec)
    assert store.find(spec.ref()) is None


def test_another_error_of_the_model_is_none_of_memory(
    store: ArtifactStore, in_shards: Callable[..., None], untrained: MadeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*args: Any) -> Any:
        raise RuntimeError("CUDA failed with error unspecified launch failure")

    monkeypatch.setattr("jobs.generate.engines.ct2.open_generator", refuses)
    with pytest.raises(RuntimeError, match="launch failure"):
        in_shards(spec_of(untrained.put(store)))
