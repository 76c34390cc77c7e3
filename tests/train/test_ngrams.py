"""Counted and smoothed n-grams: what they are, and the loss against them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from jobs.train import nats as module
from jobs.train.data import Blocks
from jobs.train.nats import Targets, nats
from jobs.train.ngrams import Bigrams, Followers, Trigrams, discounts
from tests.train.datasets import blocks_of, invented_posts


def table_of(bigrams: Bigrams) -> torch.Tensor:
    """p(next | token) as a table."""
    count = len(bigrams.unigram)
    return written_out(bigrams.targets(torch.arange(count), torch.ones(count)))


def written_out(targets: Targets) -> torch.Tensor:
    """Each row's distribution, (rows, vocabulary)."""
    assert targets.rest is not None
    table = targets.rest.factors[:, None] * targets.rest.common[None]
    for row, column, value in targets.pairs(0, len(table)):
        table.index_put_((row, column), value, accumulate=True)
    return table


def contexts_of(followers: Followers) -> list[int]:
    """The context of each of the next tokens."""
    return torch.repeat_interleave(torch.arange(len(followers.rest)), followers.starts.diff()).tolist()


def positions(blocks: Blocks, vocabulary: int) -> tuple[torch.Tensor, ...]:
    """The token before, the token and the next one, of all places that have a next one."""
    return tuple(torch.from_numpy(t) for t in blocks.triples(vocabulary))


def test_pairs_are_counted_within_posts_only() -> None:
    blocks = Blocks.from_lists([([0, 5, 6, 1, 0, 5, 7, 1], [4, 4]), ([0, 5, 6], [3])])
    pairs = Bigrams.of(blocks, 9).pairs
    assert pairs.counts.tolist() == [3, 0, 0, 0, 0, 3, 1, 1, 0]
    assert list(zip(contexts_of(pairs), pairs.following.tolist(), strict=True)) == [
        (0, 5),
        (5, 6),
        (5, 7),
        (6, 1),
        (7, 1),
    ]
    # Too little for discounts of its own: 0.75 of each pair goes to the backoff.
    assert pairs.seen.tolist() == pytest.approx([2.25 / 3, 1.25 / 3, 0.25 / 3, 0.25, 0.25])
    assert pairs.rest[5] == pytest.approx(1.5 / 3)


def test_triples_are_counted_within_posts_only() -> None:
    blocks = Blocks.from_lists([([0, 5, 6, 1, 0, 5, 7, 1], [4, 4]), ([0, 5, 6, 6, 6], [3, 2])])
    assert [t.tolist() for t in positions(blocks, 9)] == [
        [9, 0, 5, 9, 0, 5, 9, 0, 9],
        [0, 5, 6, 0, 5, 7, 0, 5, 6],
        [5, 6, 1, 5, 7, 1, 5, 6, 6],
    ]
    trigrams = Trigrams.of(blocks, 9)
    contexts = [(c // 10, c % 10) for c in trigrams.contexts.tolist()]
    assert contexts == [(0, 5), (5, 6), (5, 7), (9, 0), (9, 6)]
    found = zip(contexts_of(trigrams.triples), trigrams.triples.following.tolist(), strict=True)
    assert [(*contexts[c], f) for c, f in found] == [(0, 5, 6), (0, 5, 7), (5, 6, 1), (5, 7, 1), (9, 0, 5), (9, 6, 6)]
    assert trigrams.triples.counts.tolist() == [3, 1, 1, 3, 1]
    # 5 came after 0 three times, but there was one token before them (none): one kind of context.
    assert trigrams.pairs.counts.tolist() == [1, 0, 0, 0, 0, 2, 2, 1, 0]


def test_a_pair_counts_as_often_as_it_has_different_tokens_before_it() -> None:
    blocks = Blocks.from_lists([([1, 5, 6, 1, 5, 6, 2, 5, 6, 2, 5, 7], [3, 3, 3, 3])])
    trigrams = Trigrams.of(blocks, 8)
    found = zip(contexts_of(trigrams.pairs), trigrams.pairs.following.tolist(), strict=True)
    kinds = dict(zip(found, trigrams.pairs.seen.tolist(), strict=True))
    assert trigrams.pairs.counts[5] == 3  # 1 5 6, 2 5 6 and 2 5 7
    assert (kinds[5, 6], kinds[5, 7]) == pytest.approx((1.25 / 3, 0.25 / 3))
    # p(6 | 1 5): seen twice, 0.75 taken; what is taken goes by the pairs; their rest by how many tokens stand before 6.
    unigram = 1.5 / (1.5 + 1.5 + 2.5 + 8 * 0.5 - 1.5)
    assert trigrams.unigram[6] == pytest.approx(unigram)
    row = trigrams.targets(torch.tensor([1]), torch.tensor([5]), torch.tensor([6]), 1.0)
    assert float(written_out(row)[0, 6]) == pytest.approx(1.25 / 2 + 0.75 / 2 * (1.25 / 3 + 1.5 / 3 * unigram))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # y = 40 / (40 + 2 * 20) = 1/2; 1 - 2y * 20/40, 2 - 3y * 12/20, 3 - 4y * 6/12
        ((40, 20, 12, 6), (0.0, 0.5, 1.1, 2.0)),
        ((10, 100, 1, 100), (0.0, 0.1, 1.9, 0.1)),  # held to at least 0.1, and to 0.1 less than what there is
        ((40, 20, 12, 0), (0.0, 0.75, 0.75, 0.75)),
    ],
)
def test_discounts(counts: tuple[int, ...], expected: tuple[float, ...]) -> None:
    times = np.repeat([1, 2, 3, 4], counts)
    assert discounts(times).tolist() == pytest.approx(expected)


def test_pair_distributions_add_up_to_one_and_leave_nothing_impossible() -> None:
    blocks, vocabulary = blocks_of(invented_posts(80))
    bigrams = Bigrams.of(blocks, vocabulary)
    known = bigrams.pairs.counts > 0
    table = table_of(bigrams)[known]
    torch.testing.assert_close(table.sum(1), torch.ones(len(table)))
    assert float(table.min()) > 0
    assert float(bigrams.pairs.counts.sum()) == blocks.targets


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_triple_distributions_add_up_to_one_and_leave_nothing_impossible(share: float) -> None:
    blocks, vocabulary = blocks_of(invented_posts(80))
    trigrams = Trigrams.of(blocks, vocabulary)
    before, token, following = positions(blocks, vocabulary)
    table = written_out(trigrams.targets(before, token, following, share))
    torch.testing.assert_close(table.sum(1), torch.ones(len(table)))
    assert float(table.min()) > 0 if share else float(table.max()) == 1
    soft = written_out(trigrams.targets(before, token, following, 1.0))
    hard = torch.nn.functional.one_hot(following, vocabulary).float()
    torch.testing.assert_close(table, share * soft + (1 - share) * hard)


def test_triples_tell_more_than_pairs_of_posts_that_were_not_counted() -> None:
    posts = invented_posts(900)
    tokens, vocabulary = blocks_of(posts)
    cut = len(tokens) * 9 // 10
    counted, others = (
        Blocks.from_lists([(tokens[i].ids.tolist(), tokens[i].lengths.tolist()) for i in part])
        for part in (range(cut), range(cut, len(tokens)))
    )
    before, token, following = positions(others, vocabulary)
    trigrams = Trigrams.of(counted, vocabulary)
    known = torch.isin(before * (vocabulary + 1) + token, trigrams.contexts)
    before, token, following = before[known], token[known], following[known]
    rows = torch.arange(len(token))
    soft = written_out(trigrams.targets(before, token, following, 1.0))[rows, following]
    pairs = table_of(Bigrams.of(counted, vocabulary))[token, following]
    assert len(rows) > 100
    assert float(soft.log().mean()) > float(pairs.log().mean())


@pytest.mark.parametrize("kind", ["pairs", "triples"])
def test_the_loss_is_the_cross_entropy_with_whole_distributions(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_ROWS", 5)  # several chunks, the last one not full
    monkeypatch.setattr(module, "CPU_LOGITS", 1)
    blocks, vocabulary = blocks_of(invented_posts(80))
    if kind == "pairs":
        bigrams = Bigrams.of(blocks, vocabulary)
        tokens = (bigrams.pairs.counts > 0).nonzero()[:, 0][:13]
        targets = bigrams.targets(tokens, torch.rand(13, generator=torch.Generator().manual_seed(1)))
    else:
        before, token, following = (t[40:53] for t in positions(blocks, vocabulary))
        targets = Trigrams.of(blocks, vocabulary).targets(before, token, following, 0.4)

    def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: Targets) -> torch.Tensor:
        return -(written_out(targets) * (hidden @ weight.T).log_softmax(1)).sum()

    results: list[list[Any]] = []
    for loss_of in (nats, plain):
        hidden = torch.randn(13, 16, generator=torch.Generator().manual_seed(2)).requires_grad_()
        weight = torch.randn(vocabulary, 16, generator=torch.Generator().manual_seed(3)).requires_grad_()
        loss = loss_of(hidden, weight, targets)
        (2 * loss).backward()
        results.append([loss.detach(), hidden.grad, weight.grad])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_products_follow_autocast_and_gradients_do_not() -> None:
    blocks, vocabulary = blocks_of(invented_posts(80))
    targets = Trigrams.of(blocks, vocabulary).targets(*(t[:200] for t in positions(blocks, vocabulary)), 1.0)
    # So large that the sums over rows of what is common to all of them leave float16.
    hidden, weight = (
        torch.full((rows, 8), value, requires_grad=True) for rows, value in ((200, 400.0), (vocabulary, 5.0))
    )
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = nats(hidden, weight, targets)
        loss.backward()
        assert hidden.grad is not None and weight.grad is not None
        assert loss.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
        assert bool(loss.isfinite()) and bool(weight.grad.isfinite().all())
        found[dtype] = float(loss.detach())
        hidden.grad = weight.grad = None
    assert found[torch.bfloat16] == pytest.approx(found[torch.float32], rel=1e-2)
    assert found[torch.float16] == pytest.approx(found[torch.float32], rel=1e-2)


def test_a_head_that_does_not_learn_gets_no_gradient() -> None:
    blocks, vocabulary = blocks_of(invented_posts(80))
    targets = Trigrams.of(blocks, vocabulary).targets(*(t[:9] for t in positions(blocks, vocabulary)), 0.5)
    draw = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(9, 8, generator=draw, requires_grad=True), torch.randn(vocabulary, 8, generator=draw)
    (alone,) = torch.autograd.grad(nats(hidden, weight, targets), [hidden])
    both = torch.autograd.grad(nats(hidden, weight.requires_grad_(), targets), [hidden, weight])
    torch.testing.assert_close(alone, both[0])
