"""The train stage as a process: a dataset in, a model out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.artifacts import ArtifactStore
from jobs.specs import TrainSpec
from tests.conftest import RunStage
from tests.train.datasets import make_dataset

SMALL = {"model": "scratch:tiny", "preset": "tiny", "batch_size": 4, "max_steps": 30, "eval_steps": 10}


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
    again = run_stage(spec)
    assert again.code == 0
    assert "nothing to do" in again.last
