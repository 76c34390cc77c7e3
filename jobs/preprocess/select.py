"""Which posts make the dataset: duplicates out, the rest split, the split checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.preprocess.corpus import Ints
from jobs.preprocess.duplicates import UnionFind, capped, clusters
from jobs.preprocess.gather import Context, Corpus
from jobs.preprocess.leaks import leaks
from jobs.preprocess.pool import Workers
from jobs.preprocess.split import held_out
from jobs.specs import PreprocessSpec


@dataclass(slots=True)
class Selection:
    """Which posts are in the dataset, and on which side."""

    stay: NDArray[np.bool_]
    first_equal: Ints
    roots: Ints
    kept: Ints  # numbers of the posts that stay
    cluster: Ints  # one entry a kept post
    held_out: NDArray[np.bool_]
    leaks_mended: int = 0


def select(ctx: Context, corpus: Corpus, workers: Workers, chose: Callable[[Selection], None]) -> Selection:
    """Find clusters, cap them, split; and mend what the exact check of the split still finds.

    ``chose`` gets each selection before its check; what the last one got is what is returned.
    """
    spec = ctx.spec
    ctx.progress.update(message="looking for duplicates")

    def tick(done: int, total: int) -> None:
        ctx.progress.update(message="verifying near-duplicates", done=done, total=total, unit="pairs")
        ctx.check_stop()

    sets, first = clusters(corpus.rows, corpus.digests, corpus.keys, spec.near_duplicates, workers, tick)
    in_time = corpus.in_time()
    were_train = were_held = np.zeros(len(corpus), bool)
    joined: list[tuple[int, int]] = []
    for attempt in range(1000):
        chosen = _choose(spec, corpus, sets, first, in_time)
        chose(chosen)
        ctx.progress.update(message="checking the split")
        train, held = np.zeros(len(corpus), bool), np.zeros(len(corpus), bool)
        train[chosen.kept[~chosen.held_out]] = True
        held[chosen.kept[chosen.held_out]] = True
        before = len(joined)
        # What stood on these sides before has been compared: when the split was mended, only few posts change sides.
        for number, (a, b) in enumerate(((train & ~were_train, held), (train & were_train, held & ~were_held))):
            ones, others = np.flatnonzero(a), np.flatnonzero(b)
            found = leaks(
                corpus.rows.part(ones), corpus.rows.part(others), corpus.buckets, spec.near_duplicates,
                ctx.workdir, workers, 2 * attempt + number,
            )  # fmt: skip
            ctx.check_stop()
            joined += [(int(ones[one]), int(others[other])) for one, other in found.tolist()]
        if any(train[one] and held[other] for one, other in joined[:before]):
            raise RuntimeError("the split parts what was joined")
        if len(joined) == before:
            break
        for one, other in joined[before:]:
            sets.union(one, other)
        were_train, were_held = train, held
    else:
        raise RuntimeError("the split does not settle")
    if joined:
        ctx.log.info("the check of the split found %d pairs that MinHash had missed", len(joined))
    chosen.leaks_mended = len(joined)
    ctx.log.info(
        "%d posts are in the dataset, %d of them held out; %d duplicates left out",
        len(chosen.kept), int(chosen.held_out.sum()), len(corpus) - len(chosen.kept),
    )  # fmt: skip
    return chosen


def _choose(spec: PreprocessSpec, corpus: Corpus, sets: UnionFind, first: Ints, in_time: Ints) -> Selection:
    roots = sets.roots()
    stay = capped(roots, in_time, spec.max_repeats)
    kept = np.flatnonzero(stay)
    distinct, cluster = np.unique(roots[kept], return_inverse=True)
    names = [corpus.name(n).encode("utf-8", "replace") for n in distinct.tolist()]
    rank = np.empty(len(kept), np.int64)
    rank[np.argsort(in_time[kept], kind="stable")] = np.arange(len(kept))
    cluster = cluster.reshape(-1).astype(np.int64)
    held = held_out(cluster, names, rank, how=spec.split, share=spec.validation, seed=spec.seed)
    return Selection(stay, first, roots, kept, cluster, held)


def left_out(corpus: Corpus, chosen: Selection) -> Iterator[tuple[int, str, str]]:
    """(number, rule, detail) of every post that is left out as a duplicate."""
    in_time = corpus.in_time()
    oldest: dict[int, int] = {}
    for number in chosen.kept.tolist():
        root = int(chosen.roots[number])
        if root not in oldest or in_time[number] < in_time[oldest[root]]:
            oldest[root] = number
    equal = {int(chosen.first_equal[n]) for n in chosen.kept.tolist()}
    for number in np.flatnonzero(~chosen.stay).tolist():
        exact = int(chosen.first_equal[number]) in equal
        yield number, "duplicate" if exact else "near_duplicate", f"of {corpus.name(oldest[int(chosen.roots[number])])}"


def top_repeats(corpus: Corpus, chosen: Selection, most: int = 10) -> list[tuple[int, str]]:
    """(posts, text) of the largest clusters."""
    sizes = np.bincount(chosen.roots, minlength=len(corpus))
    order = np.argsort(-sizes, kind="stable")[:most]
    top = order[sizes[order] > 1]
    texts = corpus.rows.part(top).texts() if len(top) else []
    return [(int(sizes[n]), text[:300]) for n, text in zip(top.tolist(), texts, strict=True)]
