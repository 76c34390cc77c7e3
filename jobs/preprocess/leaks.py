"""Whether a held-out post has a near-duplicate in train, exactly.

MinHash may miss a pair at the very threshold; a held-out loss must not be flattered by it. So every held-out post
is looked up in train by prefix filtering (Chaudhuri, Ganti, Kaushik 2006; Bayardo, Ma, Srikant 2007): order each
set of n 5-grams by how rare they are; two sets of Jaccard similarity t or more share one of the first
n - ceil(t n) + 1 of the first set. Few posts contain those rare 5-grams, and their similarity is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.preprocess.clean import bucket_of
from jobs.preprocess.corpus import Ints, Rows
from jobs.preprocess.duplicates import VerifyTask, verify_pairs
from jobs.preprocess.pool import Workers
from jobs.similarity import Hashes, normalise, shingle_many, shingles

POSTS_A_TASK = 4096
_FILTER_BITS = 22


def prefix_length(size: int, threshold: float) -> int:
    """How many of a set's ``size`` elements are enough to find every set that is similar to it."""
    return size - math.ceil(threshold * size - 1e-9) + 1


def write_prefixes(held_out: Rows, buckets: Ints, threshold: float, folder: Path) -> None:
    """Write the rare 5-grams of the held-out posts, sorted, and whose they are."""
    hashes: list[Hashes] = []
    owners: list[Ints] = []
    for start in range(0, len(held_out), POSTS_A_TASK):
        for number, text in enumerate(held_out.part(slice(start, start + POSTS_A_TASK)).texts(), start):
            own = shingles(normalise(text), normalised=True)
            if len(own):
                rare = own[np.lexsort((own, buckets[bucket_of(own)]))][: prefix_length(len(own), threshold)]
                hashes.append(rare)
                owners.append(np.full(len(rare), number, np.int64))
    flat = np.concatenate(hashes or [np.zeros(0, np.uint64)])
    order = np.argsort(flat, kind="stable")
    np.save(folder / "prefix-hashes.npy", flat[order])
    np.save(folder / "prefix-owners.npy", np.concatenate(owners or [np.zeros(0, np.int64)])[order])
    present = np.zeros(1 << _FILTER_BITS, bool)
    present[_place(flat)] = True
    np.save(folder / "prefix-filter.npy", present)
    _load.cache_clear()


def _place(hashes: Hashes) -> Ints:
    return (hashes >> np.uint64(64 - _FILTER_BITS)).astype(np.int64)


@lru_cache(maxsize=1)
def _load(folder: Path, version: int) -> tuple[Hashes, Ints, NDArray[np.bool_]]:
    return (
        np.load(folder / "prefix-hashes.npy", mmap_mode="r"),
        np.load(folder / "prefix-owners.npy", mmap_mode="r"),
        np.load(folder / "prefix-filter.npy"),
    )


@dataclass(frozen=True, slots=True)
class LeakTask:
    """Some posts of train, ``start`` being the number of the first, to look up among the held-out ones."""

    train: Rows
    held_out: Rows
    start: int
    folder: Path
    version: int
    threshold: float


def find_leaks(task: LeakTask) -> NDArray[np.int64]:
    """Pairs (number in train, number among the held-out) that are near-duplicates; shape (pairs, 2)."""
    prefixes, owners, present = _load(task.folder, task.version)
    flat, offsets = shingle_many([normalise(t) for t in task.train.texts()])
    suspects = np.flatnonzero(present[_place(flat)])
    found = flat[suspects]
    low = np.searchsorted(prefixes, found, "left")
    counts = np.searchsorted(prefixes, found, "right") - low
    hit = counts > 0
    if not hit.any():
        return np.zeros((0, 2), np.int64)
    low, counts = low[hit], counts[hit]
    posts = np.searchsorted(offsets.astype(np.int64), suspects[hit], "right") - 1
    # every occurrence of each hash among the prefixes
    inner = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    pairs = np.unique(np.stack([np.repeat(posts, counts), owners[np.repeat(low, counts) + inner]], axis=1), axis=0)
    trained, train_places = np.unique(pairs[:, 0], return_inverse=True)
    held, held_places = np.unique(pairs[:, 1], return_inverse=True)
    one, other = task.train.part(trained), task.held_out.part(held)
    both = Rows(one.folder, one.stem, np.concatenate([one.files, other.files]), np.concatenate([one.rows, other.rows]))
    places = np.stack([train_places.reshape(-1), held_places.reshape(-1) + len(trained)], axis=1)
    alike = verify_pairs(VerifyTask(both, places, task.threshold))
    found_pairs: NDArray[np.int64] = pairs[alike] + np.array([task.start, 0])
    return found_pairs


def leaks(
    train: Rows, held_out: Rows, buckets: Ints, threshold: float, folder: Path, workers: Workers, version: int
) -> NDArray[np.int64]:
    """All pairs (number in train, number among the held-out) of Jaccard similarity at or above the threshold.

    ``buckets``: how often the 5-grams of each bucket occur in the corpus; ``version``: differs from call to call.
    """
    write_prefixes(held_out, buckets, threshold, folder)
    tasks = (
        LeakTask(train.part(slice(s, s + POSTS_A_TASK)), held_out, s, folder, version, threshold)
        for s in range(0, len(train), POSTS_A_TASK)
    )
    return np.concatenate([np.zeros((0, 2), np.int64), *workers.map(find_leaks, tasks)])
