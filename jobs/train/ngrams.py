"""What follows what in the training posts, counted and smoothed: modified Kneser-Ney (Chen and Goodman 1999).

Pairs of tokens are what a model from nothing begins as (``warm_start``), triples what it is kept near while it trains
(``soft_targets``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from jobs.train.data import Blocks
from jobs.train.nats import Pairs, Rest, Targets

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Followers:
    """Smoothed p(next | context) without what it takes from a shorter context: ``seen[i]`` for ``following[i]``.

    Contexts are numbered; those of context c are ``starts[c]:starts[c + 1]``, and ``rest[c]`` is what is left over.
    ``counts``: how often a context has a next token.
    """

    starts: torch.Tensor
    following: torch.Tensor
    seen: torch.Tensor
    rest: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(cls, context: Ints, following: Ints, times: Ints, contexts: int) -> Followers:
        """From how often each of ``contexts`` contexts has which next token, in their order."""
        total = np.bincount(context, weights=times, minlength=contexts)
        taken = discounts(times)[np.minimum(times, 3)]
        rest = np.bincount(context, weights=taken, minlength=contexts) / np.maximum(total, 1)
        return cls(
            torch.from_numpy(np.searchsorted(context, np.arange(contexts + 1))),
            torch.from_numpy(following),
            torch.from_numpy((times - taken) / total[context]).float(),
            torch.from_numpy(rest).float(),
            torch.from_numpy(total).float(),
        )

    def to(self, device: torch.device) -> Followers:
        """The same on another device."""
        return Followers(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def pairs(self, contexts: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(row, next token, what it gets) for all next tokens of ``contexts``, one a row with its share."""
        low = self.starts[contexts]
        size = self.starts[contexts + 1] - low
        row = torch.repeat_interleave(torch.arange(len(contexts), device=contexts.device), size)
        pair = torch.arange(len(row), device=contexts.device) + (low - size.cumsum(0) + size)[row]
        return row, self.following[pair], self.seen[pair] * shares[row]


def discounts(times: Ints) -> Floats:
    """What is taken from pairs that occur 0, 1, 2, 3 and more times; 0.75 of each where there is too little to tell."""
    n1, n2, n3, n4 = (int((times == k).sum()) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return np.array([0.0, 0.75, 0.75, 0.75])
    y = n1 / (n1 + 2 * n2)
    found = [0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.array([0.0, *(min(max(d, 0.1), k - 0.1) for k, d in enumerate(found) if k)])


def kinds_of(following: Ints, vocabulary: int) -> torch.Tensor:
    """p(next): a token counts as often as it has different ones before it; one that has none gets its share as well."""
    kinds = np.bincount(following, minlength=vocabulary) + 0.5
    return torch.from_numpy(kinds / kinds.sum()).float()


@dataclass(frozen=True)
class Bigrams:
    """Smoothed p(next | token): ``pairs`` and besides, for any next token, ``pairs.rest[token] * unigram[next]``."""

    pairs: Followers
    unigram: torch.Tensor

    @classmethod
    def of(cls, blocks: Blocks, vocabulary: int) -> Bigrams:
        """Count and smooth the pairs within posts."""
        first, second = blocks.pairs()
        pairs, times = np.unique(first * vocabulary + second, return_counts=True)
        context, following = np.divmod(pairs, vocabulary)
        return cls(Followers.of(context, following, times, vocabulary), kinds_of(following, vocabulary))

    def to(self, device: torch.device) -> Bigrams:
        """The same on another device."""
        return Bigrams(self.pairs.to(device), self.unigram.to(device))

    def targets(self, tokens: torch.Tensor, shares: torch.Tensor) -> Targets:
        """What may come after ``tokens``, each counting for its share."""
        return Targets(
            lambda start, stop: [self.pairs.pairs(tokens[start:stop], shares[start:stop])],
            Rest(shares * self.pairs.rest[tokens], self.unigram),
            shares,
        )


@dataclass(frozen=True)
class Trigrams:
    """Smoothed p(next | token, the one before it): of ``triples``, what is left over of ``pairs``, and of ``unigram``.

    ``contexts``: the pairs that have a next token, as ``before * (vocabulary + 1) + token`` in their order; at a post's
    first token ``before`` is ``vocabulary``.
    """

    contexts: torch.Tensor
    triples: Followers
    pairs: Followers
    unigram: torch.Tensor

    @classmethod
    def of(cls, blocks: Blocks, vocabulary: int) -> Trigrams:
        """Count and smooth the triples within posts."""
        before, token, following = blocks.triples(vocabulary)
        context, number = np.unique(before * (vocabulary + 1) + token, return_inverse=True)
        triples, times = np.unique(number * vocabulary + following, return_counts=True)
        number, following = np.divmod(triples, vocabulary)
        # A pair counts as often as it has different tokens before it.
        pairs, kinds = np.unique(context[number] % (vocabulary + 1) * vocabulary + following, return_counts=True)
        token, second = np.divmod(pairs, vocabulary)
        return cls(
            torch.from_numpy(context),
            Followers.of(number, following, times, len(context)),
            Followers.of(token, second, kinds, vocabulary),
            kinds_of(second, vocabulary),
        )

    def to(self, device: torch.device) -> Trigrams:
        """The same on another device."""
        return Trigrams(
            self.contexts.to(device), self.triples.to(device), self.pairs.to(device), self.unigram.to(device)
        )

    def targets(self, before: torch.Tensor, tokens: torch.Tensor, labels: torch.Tensor, share: float) -> Targets:
        """What came after ``tokens``, ``labels``, but ``share`` of it what may come there; all of one length.

        All contexts must occur in the posts that were counted.
        """
        context = torch.searchsorted(self.contexts, before * (len(self.unigram) + 1) + tokens)
        soft = torch.full(tokens.shape, share, device=tokens.device)
        left = soft * self.triples.rest[context]
        hard = torch.full(tokens.shape, 1 - share, device=tokens.device)

        def pairs(start: int, stop: int) -> Pairs:
            part = slice(start, stop)
            rows = torch.arange(len(tokens[part]), device=tokens.device)
            return [
                (rows, labels[part], hard[part]),
                self.triples.pairs(context[part], soft[part]),
                self.pairs.pairs(tokens[part], left[part]),
            ]

        return Targets(pairs, Rest(left * self.pairs.rest[tokens], self.unigram))
