"""Clusters of duplicates: equal texts, and near ones that MinHash proposes and the true similarity confirms.

The clusters are the connected components of the graph whose edges are the confirmed pairs, so they do not depend
on the order in which pairs are looked at, nor on how many processes look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.preprocess.corpus import Ints, Rows, pieces
from jobs.preprocess.pool import Workers
from jobs.similarity import Hashes, jaccard, shingles

PAIRS_A_TASK = 4096
#: Up to this size of a band's group all its pairs are candidates. Larger groups are template posts by the
#: hundred; of those each is compared with its next neighbours in two orders, which costs time linear in the group.
GROUP = 128
NEIGHBOURS = 32


class UnionFind:
    """Disjoint sets of 0 … size-1; the root of each is its smallest member."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, item: int) -> int:
        """The set's root."""
        parent = self._parent
        root = item
        while parent[root] != root:
            root = parent[root]
        while parent[item] != root:
            parent[item], item = root, parent[item]
        return root

    def union(self, a: int, b: int) -> None:
        """Make one set of two."""
        a, b = self.find(a), self.find(b)
        if a != b:
            self._parent[max(a, b)] = min(a, b)

    def roots(self) -> Ints:
        """The root of every item."""
        return np.fromiter((self.find(i) for i in range(len(self._parent))), np.int64, len(self._parent))


def first_of_equals(digests: Hashes) -> Ints:
    """For each text the number of the first one that is equal to it (by the digest of its normalised form)."""
    if not len(digests):
        return np.zeros(0, np.int64)
    order = np.lexsort((np.arange(len(digests)), digests[:, 0], digests[:, 1]))
    ordered = digests[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    leaders = order[begins][np.cumsum(begins) - 1]
    first = np.empty(len(order), np.int64)
    first[order] = leaders
    return first


def candidate_pairs(keys: Hashes, members: Ints) -> NDArray[np.int64]:
    """Pairs (smaller, larger) of ``members`` that share a band key; shape (pairs, 2), distinct and sorted.

    ``keys``: (texts, bands) for all texts; ``members``: the texts to look at, ascending.
    """
    size = len(keys)
    found = [np.zeros(0, np.int64)]
    for band in range(keys.shape[1]):
        column = keys[members, band]
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        same = ordered[1:] == ordered[:-1]
        if not same.any():
            continue
        edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            group = members[order[start : stop + 1]]
            found.append(_pairs_within(group, keys, size))
        if len(found) > 64:
            found = [np.unique(np.concatenate(found))]
    encoded = np.unique(np.concatenate(found))
    return np.stack([encoded // size, encoded % size], axis=1) if len(encoded) else np.zeros((0, 2), np.int64)


def _pairs_within(group: Ints, keys: Hashes, size: int) -> Ints:
    count = len(group)
    if count == 2:  # most groups
        return group[:1] * size + group[1:]
    if count <= GROUP:
        first, second = np.triu_indices(count, 1)
        return group[first] * size + group[second]
    pairs = []
    # Order by all keys brings the most similar together; order by number keeps what was posted together.
    for order in (np.arange(count), np.lexsort(keys[group].T[::-1])):
        line = group[order]
        for step in range(1, NEIGHBOURS + 1):
            a, b = line[:-step], line[step:]
            pairs.append(np.minimum(a, b) * size + np.maximum(a, b))
    return np.unique(np.concatenate(pairs))


@dataclass(frozen=True, slots=True)
class VerifyTask:
    """Pairs to verify: ``pairs`` are numbers of ``rows``."""

    rows: Rows
    pairs: NDArray[np.int64]
    threshold: float


def verify_pairs(task: VerifyTask) -> NDArray[np.bool_]:
    """Which of the pairs are at or above the threshold, by their true Jaccard similarity."""
    texts = task.rows.texts("plain")
    sets: dict[int, Hashes] = {}

    def of(number: int) -> Hashes:
        if number not in sets:
            sets[number] = shingles(texts[number], normalised=True)
        return sets[number]

    return np.fromiter(
        (_alike(of(a), of(b), task.threshold) for a, b in task.pairs.tolist()), np.bool_, len(task.pairs)
    )


def _alike(a: Hashes, b: Hashes, threshold: float) -> bool:
    small, large = sorted((len(a), len(b)))
    return small >= threshold * large and jaccard(a, b) >= threshold


def verified(
    rows: Rows, pairs: NDArray[np.int64], threshold: float, workers: Workers
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """How many pairs have been looked at so far, and those among the last ones that are duplicates."""

    def tasks() -> Iterable[VerifyTask]:
        for piece in pieces(rows.sizes[pairs].sum(axis=1), PAIRS_A_TASK):
            part = pairs[piece]
            distinct, places = np.unique(part, return_inverse=True)
            yield VerifyTask(rows.part(distinct), places.reshape(part.shape), threshold)

    start = 0
    for alike in workers.map(verify_pairs, tasks()):
        part = pairs[start : start + len(alike)]
        start += len(alike)
        yield start, part[alike]


def clusters(
    rows: Rows,
    digests: Hashes,
    keys: Hashes,
    threshold: float,
    workers: Workers,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[UnionFind, Ints]:
    """Clusters of all posts, which are given in their canonical order.

    Returns the sets (the root of a cluster is its first post) and, for each post, the first one whose normalised
    text is equal. ``tick(done, total)`` counts verified candidates.
    """
    first = first_of_equals(digests)
    sets = UnionFind(len(first))
    for number, leader in enumerate(first.tolist()):
        if number != leader:
            sets.union(number, leader)
    leaders = np.unique(first)
    pairs = candidate_pairs(keys, leaders)
    for done, found in verified(rows, pairs, threshold, workers):
        for a, b in found.tolist():
            sets.union(a, b)
        tick(done, len(pairs))
    return sets, first


def capped(roots: Ints, order_in_time: Ints, most: int) -> NDArray[np.bool_]:
    """Which posts stay when a cluster may keep ``most``: its oldest ones.

    ``order_in_time``: each post's rank among all, oldest first.
    """
    order = np.lexsort((order_in_time, roots))
    ordered = roots[order]
    begins = np.ones(len(order), bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(begins)
    place = np.arange(len(order)) - np.repeat(starts, np.diff([*starts.tolist(), len(order)]))
    stay = np.empty(len(order), bool)
    stay[order] = place < most
    return stay
