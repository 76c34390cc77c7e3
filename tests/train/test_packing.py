"""Packed posts are computed as if each were alone, and the data order is what it says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from jobs.train.data import IGNORE, Block, Blocks, GlobalBatches, Rows, Separate, count_targets, steps_for
from jobs.train.head import PlainHead
from jobs.train.packing import choose_layout, logits_of, packs_rightly
from tests.train.networks import small_gpt2

VOCABULARY = 50


def some_blocks(seed: int = 0) -> Blocks:
    """Blocks of random posts."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(5):
        lengths = draw.integers(2, 12, draw.integers(1, 5)).tolist()
        made.append((draw.integers(3, VOCABULARY, sum(lengths)).tolist(), lengths))
    return Blocks.from_lists(made)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_of_packed_posts_are_those_of_posts_alone(attention: str) -> None:
    model, blocks = small_gpt2(VOCABULARY, attention=attention).eval(), some_blocks()
    with torch.no_grad():
        packed = logits_of(model, Rows(2)([blocks[i] for i in range(len(blocks))]))
        for row in range(len(blocks)):
            start = 0
            for length in blocks[row].lengths:
                post = Block(blocks[row].ids[start : start + length], np.array([length]))
                alone = logits_of(model, Separate(2)([post]))[0]
                torch.testing.assert_close(packed[row, start : start + length], alone, atol=1e-5, rtol=1e-4)
                start += int(length)


def test_both_layouts_have_one_loss_and_none_of_it_on_padding() -> None:
    model, blocks = small_gpt2(VOCABULARY).eval(), some_blocks(1)
    chosen = [blocks[i] for i in range(len(blocks))]
    sums = []
    for layout in (Rows(2), Separate(2)):
        batch = layout(chosen)
        assert count_targets(batch) == blocks.targets
        with torch.no_grad():
            sums.append(float(PlainHead().nats(logits_of(model, batch), batch["labels"])))
            spoilt = {**batch, "input_ids": batch["input_ids"].clone()}
            padding = (batch["labels"] == IGNORE) & (batch["input_ids"] == 2)
            assert padding.any()
            spoilt["input_ids"][padding] = 7
            assert float(PlainHead().nats(logits_of(model, spoilt), batch["labels"])) == pytest.approx(
                sums[-1], rel=1e-6
            )
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)


def test_labels_are_the_next_token_of_the_same_post() -> None:
    batch = Rows(9)(
        [Block(np.array([1, 2, 3, 4, 5], np.int32), np.array([2, 3])), Block(np.array([6, 7], np.int32), np.array([2]))]
    )
    assert batch["labels"].tolist() == [[2, IGNORE, 4, 5, IGNORE], [7, IGNORE, IGNORE, IGNORE, IGNORE]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 1, 2]]
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 7, 9, 9, 9]]


def test_a_model_that_mixes_packed_posts_up_is_found_out() -> None:
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4))
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    assert packs_rightly(small_gpt2(VOCABULARY).eval(), 2, VOCABULARY)
    assert packs_rightly(llama, 2, VOCABULARY)
    assert not packs_rightly(mamba, 2, VOCABULARY)  # its state runs on from post to post
    assert choose_layout(mamba, 2, VOCABULARY)[0] == "separate"


def batches(blocks: int, batch: int, accumulation: int, rank: int, world: int, first: int = 0) -> Iterator[list[int]]:
    """What one process gets in 9 steps."""
    return iter(
        GlobalBatches(
            blocks,
            seed=3,
            batch_size=batch,
            accumulation=accumulation,
            steps=9,
            first_step=first,
            rank=rank,
            world=world,
        )
    )


def steps_of(blocks: int, batch: int, accumulation: int, world: int) -> list[list[int]]:
    """The blocks of each step, whoever computes them."""
    steps: list[list[int]] = [[] for _ in range(9)]
    for rank in range(world):
        for number, chosen in enumerate(batches(blocks, batch, accumulation, rank, world)):
            steps[number // accumulation].extend(chosen)
    return steps


@pytest.mark.parametrize("blocks", [1, 5, 12, 30])
def test_a_step_has_the_same_blocks_however_it_is_shared(blocks: int) -> None:
    whole = steps_of(blocks, 12, 1, 1)
    for batch, accumulation, world in ((6, 2, 1), (3, 4, 1), (6, 1, 2), (3, 2, 2), (1, 4, 3)):
        assert [sorted(s) for s in steps_of(blocks, batch, accumulation, world)] == [sorted(s) for s in whole]
    flat = [b for s in whole for b in s]
    for epoch in range(len(flat) // blocks):
        assert sorted(flat[epoch * blocks : (epoch + 1) * blocks]) == list(range(blocks))
    assert list(batches(blocks, 12, 1, 0, 1, first=4)) == whole[4:]


def test_epochs_become_steps() -> None:
    assert steps_for(1, 100, 8) == 13
    assert steps_for(2, 100, 8) == 25
    assert steps_for(0.001, 100, 8) == 1
