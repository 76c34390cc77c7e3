"""The train stage as a process: a dataset in, a model out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.artifacts import ArtifactStore
from jobs.specs import TrainSpec
from tests.conftest import RunStage
from tests.train.datasets import make_dataset

SMALL = {"model": "scratch:tiny", "preset": "tiny", "batch_size": 4, "max_steps": 30, "eval_steps": 10}


@pytest.mark.plain
@pytest.mark.slow
def test_a_dataset_becomes_a_model_that_others_can_load(
    store: ArtifactStore, run_stage: RunStage, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dataset = make_dataset(store)
    spec = TrainSpec.model_validate({**SMALL, "dataset": dataset})
    done = run_stage(spec)
    assert done.code == 0, done.stderr
    manifest = store.manifest(spec.ref())
    assert manifest.inputs == {"dataset": dataset}
    assert {"model.safetensors", "config.json", "generation_config.json", "style.json", "README.md"} <= {
        f.path for f in manifest.files
    }
    store.download(spec.ref(), tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    metrics = [json.loads(line) for line in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()]
    held_out: list[Any] = [m["eval_loss"] for m in metrics if "eval_loss" in m]
    assert len(held_out) == 3
    assert held_out[-1] < held_out[0] < 6.3  # below log(512), what knowing nothing costs
    assert manifest.info["best_loss"] == min(held_out)
    assert not list(store.bucket.list("runs/test/train/checkpoints/"))
    assert_told(tmp_path / "m", metrics, dataset)
    progress = json.loads(store.bucket.get_bytes("runs/test/train/progress.json"))
    assert (progress["done"], progress["total"], progress["unit"]) == (30, 30, "steps")
    shown = progress["metrics"]
    assert shown["held_out_loss"] == round(manifest.info["best_loss"], 4)
    assert shown["epoch"] > 1
    assert 0 < shown["loss"] < 6.3
    assert shown["tokens_per_second"] > 0
    assert shown["seconds_left"] == 0
    assert 50 < shown["memory_mib"] < 20_000
    again = run_stage(spec)
    assert again.code == 0
    assert "nothing to do" in again.last


def assert_told(folder: Path, metrics: list[dict[str, float]], dataset: str) -> None:
    """Card, report, TensorBoard events and generation config say what the metrics say."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for tag, name in (("train/loss", "loss"), ("held_out/bits_per_character", "bits_per_character")):
        expected = [(m["step"], pytest.approx(m[name], rel=1e-6)) for m in metrics if name in m]
        assert [(e.step, e.value) for e in events.Scalars(tag)] == expected
    best = min(m["bits_per_character"] for m in metrics if "bits_per_character" in m)
    card = (folder / "README.md").read_text(encoding="utf-8")
    for said in (dataset, f"{best:.4f}", "| learning_rate |", "| tokens train |", "## Limits"):
        assert said in card
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 4
    assert "Bits per character" in page
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    style = json.loads((folder / "style.json").read_text(encoding="utf-8"))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert generation[name] == style[name]
