"""Whether a held-out post has a near-duplicate in train, exactly.

MinHash may miss a pair at the very threshold; a held-out loss must not be flattered by it. So every held-out post
is looked up in train by filtering on rare 5-grams (prefix filtering: Chaudhuri, Ganti, Kaushik 2006; Bayardo, Ma,
Srikant 2007; with more than one element to be shared: Wang, Li, Feng 2012). A set of Jaccard similarity t or more to
a set of n elements lacks at most l = n - ceil(t n) of them. So of its l + k rarest ones at least k are shared, and
the k rarest shared ones are among those of both sets: only the rarest of both are compared, and a post that shares
fewer than k cannot be similar. The larger k, the fewer are left to be looked at and the more there is to compare; half
of l is where both cost least. Nor can sets whose sizes differ too much be similar, so that of those that have a
5-gram only a range of sizes is looked at. For the few that are left, the similarity is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.preprocess.clean import bucket_of
from jobs.preprocess.corpus import Ints, Rows, pieces
from jobs.preprocess.pool import Workers, share_size
from jobs.similarity import Hashes, distinct, jaccard, shingle_many, shingles

POSTS_A_TASK = 1 << 11  # with twice as many, what is made of them does not stay in a cache
_COUNTS = (1 << 20) - 1  # what occurs more often counts as so often
_COUNTED = 1 << 19  # counters of an array that pairs are counted in: four megabytes, which stay in a cache


def lacking(size: int, threshold: float) -> int:
    """How many of a set's ``size`` elements a set can lack and still be similar to it."""
    return size - math.ceil(threshold * size - 1e-9)


def to_share(size: int, threshold: float) -> int:
    """How many of the rarest elements of a set of ``size`` are to be found in one that is similar to it."""
    return 1 + lacking(size, threshold) // 2


def rarity(hashes: Hashes, buckets: Ints) -> Hashes:
    """What elements are ordered by, the rarest first: numbers below 2**52, nearly all of them different."""
    found: Hashes = np.minimum(buckets[bucket_of(hashes)], _COUNTS).astype(np.uint64)
    found <<= np.uint64(32)
    found |= hashes & np.uint64(0xFFFFFFFF)
    return found


def among_rarest(flat: Hashes, offsets: Ints, buckets: Ints, threshold: float) -> tuple[NDArray[np.bool_], Ints]:
    """Which 5-grams of some posts (from ``shingle_many``) are to be compared with others', and the posts' least sizes.

    The 5-grams are at least those that a similar post must share, as many as the largest one that can be similar asks
    for. The sizes are those of the posts' sets, or by some few less where two 5-grams are of the same rarity. Raises
    ValueError for more than ``POSTS_A_TASK`` posts.
    """
    sizes = np.diff(offsets)
    if len(sizes) > POSTS_A_TASK:
        raise ValueError(f"{len(sizes)} posts at once; {POSTS_A_TASK} have room for their numbers")
    wanted = np.array(
        [lacking(n, threshold) + to_share(math.floor(n / threshold + 1e-9), threshold) for n in sizes.tolist()],
        np.int64,
    )
    keys = rarity(flat, buckets)
    # One sort for all posts: a post's number stands above the 52 bits.
    ordered = np.repeat(np.arange(len(sizes), dtype=np.uint64) << np.uint64(52), sizes)
    ordered |= keys
    ordered.sort()
    # A set has an element once, so that repeats have the rank of the first.
    rank = np.zeros(len(ordered), np.int32)
    np.cumsum(ordered[1:] != ordered[:-1], out=rank[1:])
    filled = np.flatnonzero(sizes)
    first = rank[offsets[filled]]
    bounds = np.zeros(len(sizes), np.uint64)
    # where a post has fewer, all of its own
    last = np.searchsorted(rank, first + wanted[filled] - 1)
    bounds[filled] = ordered[np.minimum(last, offsets[filled + 1] - 1)]
    found: NDArray[np.bool_] = keys <= np.repeat(bounds & np.uint64((1 << 52) - 1), sizes)
    different = np.zeros(len(sizes), np.int64)
    different[filled] = rank[offsets[filled + 1] - 1] - first + 1
    return found, different


def write_rare(held_out: Rows, buckets: Ints, threshold: float, folder: Path) -> None:
    """Write the rare 5-grams of the held-out posts, sorted, whose they are, and how many must be found again."""
    hashes: list[Hashes] = []
    needed = np.zeros(len(held_out), np.int64)
    sizes = np.zeros(len(held_out), np.int64)
    for piece in held_out.pieces(POSTS_A_TASK):
        flat, offsets = shingle_many(held_out.part(piece).texts("plain"))
        for number, own in enumerate(map(distinct, np.split(flat, offsets[1:-1].astype(np.int64))), piece.start):
            may_lack = lacking(len(own), threshold)
            rare = own[np.lexsort((own, rarity(own, buckets)))][: may_lack + to_share(len(own), threshold)]
            hashes.append(rare)
            needed[number], sizes[number] = len(rare) - may_lack, len(own)
    flat = np.concatenate(hashes or [np.zeros(0, np.uint64)])
    owners = np.repeat(np.arange(len(hashes)), [len(h) for h in hashes])
    order = np.lexsort((sizes[owners], flat))
    hashes_once, places = np.unique(flat[order], return_inverse=True)
    np.save(folder / "rare-hashes.npy", hashes_once)
    np.save(folder / "rare-keys.npy", _key(places, sizes[owners[order]]))
    np.save(folder / "rare-owners.npy", owners[order])
    np.save(folder / "rare-needed.npy", needed)
    # A table of one byte for each hash's first bits, some 16 times as long as there are hashes, for a quick no.
    bits = max(16, (16 * len(flat)).bit_length())
    present = np.zeros(1 << bits, bool)
    present[_place(flat, present)] = True
    np.save(folder / "rare-filter.npy", present)
    np.save(folder / "rare-buckets.npy", buckets)


def _key(places: Ints, sizes: Ints) -> Ints:
    """What is sorted by hash, and of one hash by the size of the set that has it."""
    found: Ints = (places.astype(np.int64) << 32) + np.minimum(sizes, (1 << 32) - 1)
    return found


def _place(hashes: Hashes, table: NDArray[np.bool_]) -> Ints:
    return (hashes >> np.uint64(65 - len(table).bit_length())).astype(np.int64)


@lru_cache(maxsize=1)
def _load(folder: Path, version: int) -> tuple[Hashes, Ints, Ints, Ints, NDArray[np.bool_], Ints]:
    names = ("hashes", "keys", "owners", "needed", "filter", "buckets")
    # As plain arrays: each look into a memmap makes another one, which takes longer than the look.
    arrays = [np.load(folder / f"rare-{name}.npy", mmap_mode="r").view(np.ndarray) for name in names]
    hashes, keys, owners, needed, present, buckets = arrays
    return hashes, keys, owners, needed, present, buckets


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
    rare, keys, owners, needed, present, buckets = _load(task.folder, task.version)
    flat, numbers = shingle_many(task.train.texts("plain"))
    offsets = numbers.astype(np.int64)
    rarest, sizes = among_rarest(flat, offsets, buckets, task.threshold)
    suspects = np.flatnonzero(rarest)
    suspects = suspects[present[_place(flat[suspects], present)]]
    found = flat[suspects]
    places = np.searchsorted(rare, found)
    places[places == len(rare)] = 0
    hit = rare[places] == found
    if not hit.any():
        return np.zeros((0, 2), np.int64)
    posts, places = np.searchsorted(offsets, suspects[hit], "right") - 1, places[hit]
    least = np.ceil(task.threshold * sizes[posts] - 1e-9).astype(np.int64)
    most = np.floor(np.diff(offsets)[posts] / task.threshold + 1e-9).astype(np.int64)
    first, last = _key(places, least), _key(places, most)
    begins, ends = np.empty(len(places), np.int64), np.empty(len(places), np.int64)
    order = np.argsort(first)  # looked up in their order, the next one is mostly in the cache already
    begins[order] = np.searchsorted(keys, first[order])
    ends[order] = np.searchsorted(keys, last[order], "right")
    found_pairs = []
    own: dict[int, Hashes] = {}
    held: dict[int, Hashes] = {}
    encoded = _suspects(posts, begins, ends - begins, owners, needed)
    for post, other in zip((encoded // len(needed)).tolist(), (encoded % len(needed)).tolist(), strict=True):
        if other not in held:
            (text,) = task.held_out.part(slice(other, other + 1)).texts("plain")
            held[other] = shingles(text, normalised=True)
        if post not in own:
            own[post] = distinct(flat[offsets[post] : offsets[post + 1]])
        if jaccard(own[post], held[other]) >= task.threshold:
            found_pairs.append((task.start + post, other))
    return np.array(found_pairs, np.int64).reshape(-1, 2)


def _suspects(posts: Ints, starts: Ints, counts: Ints, owners: Ints, needed: Ints) -> Ints:
    """The pairs that share enough rare 5-grams, each as ``post * len(needed) + held-out post``, ascending.

    ``posts``: ascending, the post of each 5-gram that was found; ``starts`` and ``counts``: where in ``owners`` those
    stand that have it. Looks at so many posts at once as their pairs leave room for: where a corpus repeats itself,
    there may be hundreds a 5-gram.
    """
    total = len(needed)
    begins = np.flatnonzero(np.diff(posts, prepend=-1))
    ends = np.append(begins[1:], len(posts))
    found = [np.zeros(0, np.int64)]
    hits = np.add.reduceat(counts, begins) if len(begins) else counts
    for piece in pieces(8 * hits, max(1, _COUNTED // max(1, total))):
        part = slice(int(begins[piece.start]), int(ends[piece.stop - 1]))
        count, first = counts[part], int(posts[part.start])
        own = posts[part] - first
        # every held-out post that has the hash; a hash that a post has twice counts twice, which only costs a look
        inner = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        both = np.repeat(own * total, count) + owners[np.repeat(starts[part], count) + inner]
        if (int(own[-1]) + 1) * total <= 16 * len(both):
            shared = np.bincount(both)
            encoded = np.flatnonzero(shared)
            shared = shared[encoded]
        else:
            encoded, shared = np.unique(both, return_counts=True)
        found.append(encoded[shared >= needed[encoded % total]] + first * total)
    return np.concatenate(found)


def leaks(
    train: Rows, held_out: Rows, buckets: Ints, threshold: float, folder: Path, workers: Workers, version: int
) -> NDArray[np.int64]:
    """All pairs (number in train, number among the held-out) of Jaccard similarity at or above the threshold.

    ``buckets``: how often the 5-grams of each bucket occur in the corpus; ``version``: differs from call to call.
    """
    if not len(train) or not len(held_out):
        return np.zeros((0, 2), np.int64)
    write_rare(held_out, buckets, threshold, folder)
    size = share_size(len(train), POSTS_A_TASK)
    tasks = (
        LeakTask(train.part(piece), held_out, piece.start, folder, version, threshold) for piece in train.pieces(size)
    )
    return np.concatenate([np.zeros((0, 2), np.int64), *workers.map(find_leaks, tasks)])
