"""The split and its check, over made-up similarities: what is compared again after a mend, and what is not."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.preprocess import select
from jobs.preprocess.duplicates import UnionFind
from jobs.specs import DataError


@dataclass
class Numbers:
    """Stands for rows: whose numbers they are is all that the stubs want to know."""

    of: np.ndarray

    def part(self, which: Any) -> Numbers:
        return Numbers(self.of[which])


class Corpus:
    """As many posts, in some order of time."""

    digests = keys = buckets = None

    def __init__(self, size: int, seed: int) -> None:
        self.rows = Numbers(np.arange(size))
        self._times = np.random.default_rng(seed).permutation(size)

    def __len__(self) -> int:
        return len(self._times)

    def in_time(self) -> np.ndarray:
        return self._times

    def name(self, number: int) -> str:
        return f"x/{number}"


def settled(spec: Any, corpus: Any, alike: np.ndarray) -> select.Selection:
    """The split for which all of both sides is compared each time."""
    sets = UnionFind(len(corpus))
    while True:
        chosen = select._choose(spec, corpus, sets, np.arange(len(corpus)), corpus.in_time())
        train, held = chosen.kept[~chosen.held_out], chosen.kept[chosen.held_out]
        ones, others = np.nonzero(alike[np.ix_(train, held)])
        if not len(ones):
            return chosen
        for a, b in zip(train[ones].tolist(), held[others].tolist(), strict=True):
            sets.union(a, b)


def test_only_what_changed_sides_is_compared_again_and_nothing_slips_through(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(3)
    found: dict[int, int] = {}  # pairs by the number of the comparison
    compared: dict[int, int] = {}
    for seed in range(300):
        size = draw.randint(4, 60)
        alike = np.zeros((size, size), bool)
        for _ in range(draw.randint(0, size)):
            a, b = draw.sample(range(size), 2)
            alike[a, b] = alike[b, a] = True

        def leaks(train: Numbers, held: Numbers, *rest: Any, alike: np.ndarray = alike) -> np.ndarray:
            number = rest[-1]
            pairs = np.argwhere(alike[np.ix_(train.of, held.of)])
            found[number] = found.get(number, 0) + len(pairs)
            compared[number] = compared.get(number, 0) + len(train.of) * len(held.of)
            return pairs

        monkeypatch.setattr(select, "leaks", leaks)
        monkeypatch.setattr(select, "clusters", lambda *_, size=size: (UnionFind(size), np.arange(size)))
        corpus: Any = Corpus(size, seed)
        spec = SimpleNamespace(
            near_duplicates=0.8, max_repeats=draw.choice((1, 2, 5)), split=draw.choice(("hash", "time")),
            validation=draw.choice((0.1, 0.3, 0.45)), seed=seed,
        )  # fmt: skip
        ctx: Any = SimpleNamespace(
            spec=spec, progress=SimpleNamespace(update=lambda **_: None), check_stop=lambda: None, workdir=None,
            log=logging.getLogger("test"),
        )  # fmt: skip
        try:
            expected = settled(spec, corpus, alike)
        except DataError:  # all of them are alike
            with pytest.raises(DataError):
                select.select(ctx, corpus, None, lambda chosen: None)  # type: ignore[arg-type]
            continue
        chosen = select.select(ctx, corpus, None, lambda chosen: None)  # type: ignore[arg-type]
        assert chosen.kept.tolist() == expected.kept.tolist()
        assert chosen.held_out.tolist() == expected.held_out.tolist()
        assert chosen.roots.tolist() == expected.roots.tolist()
    assert found[1] == compared[1] == 0  # at first all are new to their sides
    assert found[2] > 20 and found[3] > 20, "both comparisons after a mend find what only they can"
    assert compared[2] + compared[3] < compared[0]
