"""Whether a held-out post has a near-duplicate in train, exactly.

MinHash may miss a pair at the very threshold; a held-out loss must not be flattered by it. So every held-out post
is looked up in train by filtering on rare 5-grams (prefix filtering: Chaudhuri, Ganti, Kaushik 2006; Bayardo, Ma,
Srikant 2007). A set of Jaccard similarity t or more to a set of n elements lacks at most n - ceil(t n) of them. So
of any m elements it has at least m - (n - ceil(t n)): the rarest ones are looked up, twice as many as may be
lacking, and a post that has fewer than half of them cannot be similar. For the few that have, the similarity is
computed.
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


def lacking(size: int, threshold: float) -> int:
    """How many of a set's ``size`` elements a set can lack and still be similar to it."""
    return size - math.ceil(threshold * size - 1e-9)


def write_rare(held_out: Rows, buckets: Ints, threshold: float, folder: Path) -> None:
    """Write the rare 5-grams of the held-out posts, sorted, whose they are, and how many must be found again."""
    hashes: list[Hashes] = []
    needed = np.zeros(len(held_out), np.int64)
    for start in range(0, len(held_out), POSTS_A_TASK):
        for number, text in enumerate(held_out.part(slice(start, start + POSTS_A_TASK)).texts(), start):
            own = shingles(normalise(text), normalised=True)
            may_lack = lacking(len(own), threshold)
            rare = own[np.lexsort((own, buckets[bucket_of(own)]))][: 2 * may_lack + 1]
            hashes.append(rare)
            needed[number] = len(rare) - may_lack
    flat = np.concatenate(hashes or [np.zeros(0, np.uint64)])
    order = np.argsort(flat, kind="stable")
    np.save(folder / "rare-hashes.npy", flat[order])
    np.save(folder / "rare-owners.npy", np.repeat(np.arange(len(hashes)), [len(h) for h in hashes])[order])
    np.save(folder / "rare-needed.npy", needed)
    # A table of one byte for each hash's first bits, some 16 times as long as there are hashes, for a quick no.
    bits = max(16, (16 * len(flat)).bit_length())
    present = np.zeros(1 << bits, bool)
    present[_place(flat, present)] = True
    np.save(folder / "rare-filter.npy", present)


def _place(hashes: Hashes, table: NDArray[np.bool_]) -> Ints:
    return (hashes >> np.uint64(65 - len(table).bit_length())).astype(np.int64)


@lru_cache(maxsize=1)
def _load(folder: Path, version: int) -> tuple[Hashes, Ints, Ints, NDArray[np.bool_]]:
    names = ("rare-hashes", "rare-owners", "rare-needed", "rare-filter")
    hashes, owners, needed, present = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in names)
    return hashes, owners, needed, present


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
    rare, owners, needed, present = _load(task.folder, task.version)
    flat, offsets = shingle_many([normalise(t) for t in task.train.texts()])
    suspects = np.flatnonzero(present[_place(flat, present)])
    posts = np.searchsorted(offsets.astype(np.int64), suspects, "right") - 1
    # a 5-gram counts once a post, however often it is there
    order = np.lexsort((flat[suspects], posts))
    posts, found = posts[order], flat[suspects][order]
    once = np.ones(len(found), bool)
    once[1:] = (found[1:] != found[:-1]) | (posts[1:] != posts[:-1])
    posts, found = posts[once], found[once]
    low = np.searchsorted(rare, found, "left")
    counts = np.searchsorted(rare, found, "right") - low
    hit = counts > 0
    if not hit.any():
        return np.zeros((0, 2), np.int64)
    low, counts = low[hit], counts[hit]
    # every occurrence of each hash among the rare ones
    inner = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    held = owners[np.repeat(low, counts) + inner]
    encoded, shared = np.unique(np.repeat(posts[hit], counts) * len(needed) + held, return_counts=True)
    encoded = encoded[shared >= needed[encoded % len(needed)]]
    if not len(encoded):
        return np.zeros((0, 2), np.int64)
    pairs = np.stack([encoded // len(needed), encoded % len(needed)], axis=1)
    trained, train_places = np.unique(pairs[:, 0], return_inverse=True)
    tested, held_places = np.unique(pairs[:, 1], return_inverse=True)
    one, other = task.train.part(trained), task.held_out.part(tested)
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
    write_rare(held_out, buckets, threshold, folder)
    tasks = (
        LeakTask(train.part(slice(s, s + POSTS_A_TASK)), held_out, s, folder, version, threshold)
        for s in range(0, len(train), POSTS_A_TASK)
    )
    return np.concatenate([np.zeros((0, 2), np.int64), *workers.map(find_leaks, tasks)])
