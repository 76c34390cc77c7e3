"""Dropout that begins when the posts are seen again."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from jobs.artifacts import ArtifactStore
from jobs.specs import TrainSpec
from jobs.train.dropout import LateDropout
from jobs.train.presets import resolve
from tests.train import hooks
from tests.train.datasets import invented_posts, make_dataset
from tests.train.forks import Fork


def rates(model: torch.nn.Module) -> set[float]:
    """All rates that a model has now."""
    return {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}


def test_the_rate_follows_from_the_passes_alone() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=8, n_embd=8, n_layer=1, n_head=1, attn_pdrop=0.2))
    dropout = LateDropout(model, 0.2, 2)
    for epochs, expected in ((0.0, 0.0), (1.99, 0.0), (2.0, 0.2), (7.0, 0.2), (0.5, 0.0)):
        dropout.at(epochs)
        assert rates(model) == {expected}
    LateDropout(model, 0.2, 2).at(3.0)  # as after a batch that did not fit: the rates were 0 when it was made
    assert rates(model) == {0.2}


def test_a_model_that_is_fine_tuned_keeps_its_own() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=8, n_embd=8, n_layer=1, n_head=1, attn_pdrop=0.3))
    before = rates(model)
    settings = resolve(TrainSpec(), from_scratch=False)
    LateDropout(model, settings.dropout or 0.0, settings.dropout_after).at(0.0)
    assert rates(model) == before


def test_a_rate_that_the_spec_names_holds_from_the_start() -> None:
    assert resolve(TrainSpec(), from_scratch=True).dropout_after == 2
    named = resolve(TrainSpec(dropout=0.1), from_scratch=True)
    assert (named.dropout, named.dropout_after) == (0.1, 0)


def test_a_training_begins_without(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path) -> None:
    dataset = make_dataset(store, invented_posts(40))
    spec = TrainSpec(dataset=dataset, model="scratch:tiny", batch_size=2, max_steps=30, eval_steps=30)
    done = Fork(spec, s3_env, tmp_path, hook=hooks.dropout_is_told)
    assert done.end() == 0, done.text
    told = re.findall(r"dropout ([\d.]+) after ([\d.]+) passes", done.text)
    assert {rate for rate, passes in told if float(passes) < 2} == {"0.0"}
    assert {rate for rate, passes in told if float(passes) >= 2} == {"0.2"}
