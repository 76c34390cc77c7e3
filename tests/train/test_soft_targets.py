"""A share of each target from counted trigrams: where in a batch which trigram counts, and when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.artifacts import ArtifactStore
from jobs.specs import SpecError, TrainSpec
from jobs.train import soft_targets as module
from jobs.train.data import IGNORE, Rows
from jobs.train.head import choose_head
from jobs.train.ngrams import Trigrams
from jobs.train.presets import PRESETS, Settings, resolve
from jobs.train.soft_targets import share_of, training_nats
from tests.train.datasets import blocks_of, invented_posts, make_dataset
from tests.train.forks import Fork
from tests.train.networks import small_gpt2
from tests.train.test_ngrams import written_out

ROOT = Path(__file__).resolve().parents[2]


def test_each_place_of_a_batch_has_its_own_trigram() -> None:
    blocks, vocabulary = blocks_of(invented_posts(60))
    model = small_gpt2(vocabulary, dropout=0.0)
    with torch.no_grad():
        batch = Rows(2)([blocks[i] for i in range(4)])
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
        nats = training_nats(blocks, vocabulary, 0.3, choose_head(model, vocabulary))
        hidden = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
        found = float(nats(hidden, batch))
        # The same from the posts one by one, with whole tables.
        trigrams, expected = Trigrams.of(blocks, vocabulary), 0.0
        for row, positions, labels, out in zip(
            batch["input_ids"].tolist(), batch["position_ids"].tolist(), batch["labels"].tolist(), logits, strict=True
        ):
            for place, label in enumerate(labels):
                if label == IGNORE:
                    continue
                before = row[place - 1] if positions[place] else vocabulary
                target = trigrams.targets(*(torch.tensor([t]) for t in (before, row[place], label)), 0.3)
                expected -= float((written_out(target)[0] * out[place].log_softmax(0)).sum())
    assert found == pytest.approx(expected, rel=1e-4)


def test_nothing_is_counted_where_nothing_is_wanted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocks, vocabulary = blocks_of(invented_posts(60))
    model = small_gpt2(vocabulary, dropout=0.0)
    head = choose_head(model, vocabulary)
    batch = Rows(2)([blocks[0]])
    with monkeypatch.context() as counting, torch.no_grad():
        counting.setattr(Trigrams, "of", lambda blocks, vocabulary: pytest.fail("they are counted"))
        output = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
        assert training_nats(blocks, vocabulary, 0.0, head)(output, batch) == head.nats(output, batch["labels"])
    monkeypatch.setattr(module, "MOST", blocks.tokens)
    assert share_of(Settings(soft_targets=0.5), blocks) == 0.5
    assert not caplog.records
    monkeypatch.setattr(module, "MOST", blocks.tokens - 1)
    assert share_of(Settings(), blocks) == 0
    assert not caplog.records
    assert share_of(Settings(soft_targets=0.5), blocks) == 0
    assert "no soft targets: the posts have" in caplog.text


def test_presets() -> None:
    assert PRESETS["default"][1].soft_targets == PRESETS["tiny"][1].soft_targets == 0.5
    assert not any(p.soft_targets for p in (*PRESETS["reference"], PRESETS["default"][0], PRESETS["tiny"][0]))
    assert resolve(TrainSpec(soft_targets=0.0), from_scratch=True).soft_targets == 0
    with pytest.raises(SpecError, match="'soft_targets' is for models from nothing"):
        resolve(TrainSpec(soft_targets=0.3), from_scratch=False)


@pytest.mark.slow
def test_a_model_that_sees_its_posts_often_says_new_ones_better(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path
) -> None:
    posts = (ROOT / "examples" / "posts.txt").read_text("utf-8").split("\n---\n")  # invented ones are too regular
    dataset = make_dataset(store, posts[:150])
    bits = {}
    for share in (0.0, 0.5):
        spec = TrainSpec.model_validate(
            {
                "dataset": dataset, "model": "scratch:tiny", "batch_size": 2, "max_steps": 80, "eval_steps": 40,
                "dropout": 0.0, "soft_targets": share,
            }
        )  # fmt: skip
        done = Fork(spec, s3_env, tmp_path)
        assert done.end() == 0, done.text
        bits[share] = store.manifest(spec.ref()).info["bits_per_character"]
    assert bits[0.5] < 0.99 * bits[0.0], bits
