"""Which posts are held out. A cluster of duplicates never stands on both sides."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from jobs.preprocess.corpus import Ints
from jobs.specs import DataError


def held_out(
    cluster: Ints, names: list[bytes], order_in_time: Ints, *, how: str, share: float, seed: int
) -> NDArray[np.bool_]:
    """Which posts are held out; True for at least one and at most half of them.

    ``cluster``: each post's cluster, 0 … n-1; ``names``: a lasting name of each cluster; ``order_in_time``: each
    post's rank, oldest first. ``how``: ``hash`` takes clusters in the order of a seeded hash of their names, so
    that a post stays on its side when others are added; ``time`` takes the newest posts.

    Raises DataError when there is only one cluster.
    """
    sizes = np.bincount(cluster, minlength=len(names))
    if len(sizes) < 2:
        these = (
            "there is one alone (in a file of text an empty line parts posts, or the line that scrape.separator names)"
            if len(cluster) == 1
            else f"these {len(cluster)} are all alike"
        )
        raise DataError(f"a dataset needs at least two different posts, one to train on and one to hold out; {these}")
    target = max(1, round(share * len(cluster)))
    if how == "hash":
        ranks = np.array([_hash(name, seed) for name in names], np.uint64)
        order = np.argsort(ranks, kind="stable")
    else:
        # A cluster counts by its oldest post: if that one is trained on, its newer copies must be, too.
        oldest = np.full(len(sizes), np.iinfo(np.int64).max)
        np.minimum.at(oldest, cluster, order_in_time)
        order = np.argsort(-oldest, kind="stable")
    chosen = np.zeros(len(sizes), bool)
    taken = 0
    for number in order.tolist():
        if taken >= target:
            break
        if taken + sizes[number] <= max(target, 1):
            chosen[number] = True
            taken += int(sizes[number])
    if not taken:  # every cluster is larger than what is asked for: the smallest one, as long as it is no majority
        smallest = min(order.tolist(), key=lambda n: (sizes[n], n))
        chosen[smallest] = True
    found: NDArray[np.bool_] = chosen[cluster]
    return found


def _hash(name: bytes, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8, key=seed.to_bytes(8, "little")).digest(), "little")
