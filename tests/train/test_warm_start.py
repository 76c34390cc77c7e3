"""A model from nothing begins as the bigram model of its posts, and nothing of that gets lost or is done twice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.artifacts import ArtifactStore
from jobs.specs import SpecError, TrainSpec
from jobs.train import warm_start as module
from jobs.train.data import Blocks
from jobs.train.journal import Journal
from jobs.train.ngrams import Bigrams
from jobs.train.presets import PRESETS, Settings, resolve
from jobs.train.warm_start import drawn, steps_of, warm_start, without_attention
from tests.train import hooks
from tests.train.datasets import blocks_of, invented_posts, make_dataset
from tests.train.forks import Fork
from tests.train.networks import small_gpt2
from tests.train.test_ngrams import table_of
from tests.train.test_resume import SPEC, committed, undisturbed, weights

SAID = "a bigram model after"


def plan_of(blocks: Blocks, passes: float = 20.0, **settings: Any) -> Any:
    """A plan of 10,000 steps in one process."""
    return SimpleNamespace(
        settings=Settings(warm_start_passes=passes, **settings),
        train=blocks,
        seed=3,
        total_steps=10_000,
        batch_size=4,
        accumulation=1,
        world=1,
        rank=0,
        journal=Journal(),
        report=lambda **_: None,
        stopped=lambda: False,
        clock=lambda: 0.0,
    )


def test_the_chances_of_a_batch_add_up_to_its_size() -> None:
    chance = drawn(torch.tensor([1e6, 100.0, 4.0, 1.0, 0.0]), 3)
    assert float(chance.sum()) == pytest.approx(3, abs=1e-4)
    assert chance[0] == 1
    assert chance[4] == 0
    assert float(chance[2] / chance[3]) == pytest.approx(2)
    assert drawn(torch.tensor([3.0, 0.0, 2.0]), 128).tolist() == [1, 0, 1]  # fewer contexts than a batch has room for


def test_the_model_begins_as_a_bigram_model() -> None:
    blocks, vocabulary = blocks_of(invented_posts(400))
    model = small_gpt2(vocabulary, width=64)
    plan = plan_of(blocks, passes=150.0)
    warm_start(plan, model, "fp32")
    assert model.training
    model.eval()
    bigrams = Bigrams.of(blocks, vocabulary)
    first, second = (torch.from_numpy(t) for t in blocks.pairs())
    table = table_of(bigrams)
    counted = -float(table[first, second].log().mean())
    without = -float(bigrams.pairs.counts.div(bigrams.pairs.counts.sum())[second].clamp(min=1e-9).log().mean())
    row = torch.from_numpy(blocks[0].ids.astype("int64"))[None]
    with torch.no_grad():
        alone = without_attention(model, torch.arange(vocabulary)) @ model.lm_head.weight.T
        # At any position, whatever came before, it says what it says of the token alone.
        torch.testing.assert_close(model(row).logits[0], alone[row[0]], atol=1e-4, rtol=1e-4)
        fitted = -float(alone.log_softmax(1)[first, second].mean())
    assert counted < fitted < counted + 0.25 * (without - counted)
    (record,) = plan.journal.history
    assert record["warm_start_steps"] == steps_of(plan)
    assert record["warm_start_loss"] == pytest.approx(fitted, rel=0.1)


def test_the_same_plan_gives_the_same_weights() -> None:
    blocks, vocabulary = blocks_of(invented_posts(60))
    made = []
    for noise in (1, 2):
        model = small_gpt2(vocabulary, width=64)
        torch.manual_seed(noise)  # nothing is drawn from the generator of all
        warm_start(plan_of(blocks), model, "fp32")
        made.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(made[0].values(), made[1].values(), strict=True))


def test_it_takes_a_share_of_the_training_at_most() -> None:
    blocks, _ = blocks_of(invented_posts(200))
    plan = plan_of(blocks)
    contexts = len(set(blocks.pairs()[0].tolist()))
    assert steps_of(plan) == -(-20 * contexts // module.batch_of(contexts))
    plan.total_steps = 8
    assert 0 < steps_of(plan) <= 0.25 * 8 * 4 * 64 / 32 + 1
    plan.settings = Settings(warm_start_passes=0)
    assert steps_of(plan) == 0

    now = iter(range(1000))
    timed = plan_of(blocks, max_minutes=1.0)
    timed.clock = lambda: float(next(now))
    warm_start(timed, small_gpt2(600, width=64), "fp32")
    assert timed.journal.history[0]["warm_start_steps"] == 15  # a second each, a quarter of a minute
    assert timed.journal.seconds == timed.journal.warm_start_seconds > 0


def test_presets() -> None:
    assert PRESETS["default"][1].warm_start_passes > 0
    assert PRESETS["tiny"][1].warm_start_passes > 0
    assert not any(p.warm_start_passes for p in (*PRESETS["reference"], PRESETS["default"][0], PRESETS["tiny"][0]))
    with pytest.raises(SpecError, match="from nothing"):
        resolve(TrainSpec.model_validate({"warm_start_passes": 3}), from_scratch=False)


def test_a_signal_ends_it_and_a_resumed_training_does_not_begin_anew(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path
) -> None:
    spec = TrainSpec.model_validate({**SPEC, "dataset": make_dataset(store), "checkpoint_steps": 5})
    expected = undisturbed(store, s3_env, tmp_path, spec)
    early = Fork(spec, s3_env, tmp_path, run="one", hook=hooks.signal_in_the_warm_start)
    assert early.end() == 143, early.text
    assert "interrupted at step 0" in early.last
    assert SAID not in early.text
    assert committed(store, "one") == []
    first = Fork(spec, s3_env, tmp_path, run="one")
    first.wait_for("checkpoint 10 is in the bucket")
    assert first.end(Fork.TERM) == 143
    assert first.text.count(SAID) == 1
    second = Fork(spec, s3_env, tmp_path, run="one")
    assert second.end() == 0, second.text
    assert SAID not in second.text
    assert weights(store, spec.ref()) == expected
    assert store.manifest(spec.ref()).info["warm_start_seconds"] > 0
