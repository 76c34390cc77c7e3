"""Clusters, the split and its check, against what an exhaustive comparison says."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.preprocess.clean import BUCKETS, bucket_of
from jobs.preprocess.corpus import KEPT, Rows, write_arrow
from jobs.preprocess.duplicates import GROUP, UnionFind, candidate_pairs, capped, clusters, first_of_equals
from jobs.preprocess.leaks import lacking, leaks
from jobs.preprocess.pool import Workers
from jobs.preprocess.split import held_out
from jobs.similarity import Banding, jaccard, normalise, shingle_many, shingles
from jobs.specs import DataError
from tests.preprocess.texts import fortunes, near, posts

THRESHOLD = 0.8


def rows_of(texts: list[str], folder: Path) -> Rows:
    """The texts as the first pass leaves them, in three files."""
    files, rows = [], []
    for number, start in enumerate(range(0, len(texts), len(texts) // 3 + 1)):
        part = texts[start : start + len(texts) // 3 + 1]
        columns = {
            "text": part,
            "plain": [normalise(t) for t in part],
            "id": list(range(len(part))),
            "channel": ["x"] * len(part),
        }
        table = pa.table({n: columns.get(n, pa.nulls(len(part), KEPT.field(n).type)) for n in KEPT.names}, schema=KEPT)
        write_arrow(table, folder / f"kept-{number:05d}.arrow")
        files += [number] * len(part)
        rows += range(len(part))
    sizes = np.array([len(t.encode()) + len(normalise(t).encode()) for t in texts], np.int64)
    return Rows(folder, "kept", np.array(files, np.int64), np.array(rows, np.int64), sizes)


def digests_of(texts: list[str]) -> np.ndarray:
    from jobs.preprocess.clean import _digests

    return _digests([normalise(t) for t in texts])


def keys_of(texts: list[str]) -> np.ndarray:
    return Banding.for_threshold(THRESHOLD).keys(*shingle_many([normalise(t) for t in texts]))


def alike_pairs(texts: list[str], threshold: float = THRESHOLD) -> set[tuple[int, int]]:
    sets = [shingles(t) for t in texts]
    return {
        (a, b) for a in range(len(texts)) for b in range(a + 1, len(texts)) if jaccard(sets[a], sets[b]) >= threshold
    }


def exact_join(texts: list[str]) -> set[tuple[int, int]]:
    """The same by inverted lists over the 5-grams themselves: for more texts, and without the hashes."""
    having: dict[str, list[int]] = {}
    sizes: list[int] = []
    found = set()
    for number, text in enumerate(map(normalise, texts)):
        own = {text[i : i + 5] for i in range(max(1, len(text) - 4))} if text else set()
        shared = Counter(other for gram in own for other in having.get(gram, ()))
        found |= {(o, number) for o, n in shared.items() if n >= THRESHOLD * (sizes[o] + len(own) - n)}
        sizes.append(len(own))
        for gram in own:
            having.setdefault(gram, []).append(number)
    return found


def with_repeats(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    texts = posts(count, seed)
    for _ in range(count // 5):
        texts.append(near(draw.choice(texts), draw))
        texts.append(draw.choice(texts).lower() + "!")
    draw.shuffle(texts)
    return texts


def components(size: int, pairs: set[tuple[int, int]]) -> list[int]:
    sets = UnionFind(size)
    for a, b in pairs:
        sets.union(a, b)
    return sets.roots().tolist()


def test_clusters_are_those_of_an_exhaustive_comparison(tmp_path: Path) -> None:
    texts = with_repeats(300, seed=3)
    pairs = alike_pairs(texts)
    assert len(pairs) > 100
    with Workers(1, "jobs.preprocess.tasks") as workers:
        sets, first = clusters(rows_of(texts, tmp_path), digests_of(texts), keys_of(texts), THRESHOLD, workers)
    assert sets.roots().tolist() == components(len(texts), pairs)
    for number, leader in enumerate(first.tolist()):
        assert normalise(texts[number]) == normalise(texts[leader])
        assert leader == min(n for n, t in enumerate(texts) if normalise(t) == normalise(texts[number]))


def test_the_exact_join_is_exact() -> None:
    texts = with_repeats(150, seed=9)
    assert exact_join(texts) == alike_pairs(texts)


@pytest.mark.skipif(not fortunes(), reason="fortunes-ru is not installed")
def test_recall_and_precision_on_real_texts(tmp_path: Path) -> None:
    """At least 98 % of the pairs of an exact join at 0.8, and none below."""
    real = [t for t in fortunes() if len(t) > 40][:2500]
    draw = random.Random(5)
    texts = real + [near(draw.choice(real), draw) for _ in range(500)]
    exact = exact_join(texts)
    keys = keys_of(texts)
    pairs = candidate_pairs(keys, np.arange(len(texts)))
    sets = {n: shingles(texts[n]) for n in np.unique(pairs).tolist()}
    found = {(a, b) for a, b in pairs.tolist() if jaccard(sets[a], sets[b]) >= THRESHOLD}
    assert len(exact) > 200
    assert found <= exact
    assert len(found) >= 0.98 * len(exact)


def test_more_processes_find_the_same(tmp_path: Path) -> None:
    texts = with_repeats(200, seed=4)
    rows, digests, keys = rows_of(texts, tmp_path), digests_of(texts), keys_of(texts)
    found = []
    for count in (1, 2):
        with Workers(count, "jobs.preprocess.tasks") as workers:
            found.append(clusters(rows, digests, keys, THRESHOLD, workers)[0].roots().tolist())
    assert found[0] == found[1]


def test_a_large_group_of_template_posts_is_one_cluster(tmp_path: Path) -> None:
    stem = "ПРОГНОЗ ПОГОДЫ: С УТРА ДОЖДЬ, ДНЁМ ДОЖДЬ, ВЕЧЕРОМ ДОЖДЬ, НОЧЬЮ ОПЯТЬ ДОЖДЬ, ЗОНТ НЕ ЗАБУДЬ, ВЫПУСК НОМЕР "
    texts = [f"{stem}{n}" for n in range(GROUP * 4)]
    with Workers(1, "jobs.preprocess.tasks") as workers:
        sets, _ = clusters(rows_of(texts, tmp_path), digests_of(texts), keys_of(texts), THRESHOLD, workers)
    assert set(sets.roots().tolist()) == {0}


def test_candidates_of_a_large_group_grow_with_its_size_only() -> None:
    keys = np.zeros((10_000, 3), np.uint64)
    assert len(candidate_pairs(keys, np.arange(10_000))) < 10_000 * 70


def test_no_texts_at_all() -> None:
    assert len(first_of_equals(np.zeros((0, 2), np.uint64))) == 0
    assert candidate_pairs(np.zeros((0, 3), np.uint64), np.zeros(0, np.int64)).shape == (0, 2)


def test_the_cap_keeps_the_oldest() -> None:
    roots = np.array([0, 1, 0, 0, 1])
    in_time = np.array([4, 3, 2, 1, 0])
    assert capped(roots, in_time, 1).tolist() == [False, False, False, True, True]
    assert capped(roots, in_time, 2).tolist() == [False, True, True, True, True]
    assert capped(roots, in_time, 9).all()


def test_union_find_roots_are_the_smallest_members() -> None:
    sets = UnionFind(6)
    for a, b in ((5, 4), (4, 3), (1, 2), (3, 5)):
        sets.union(a, b)
    assert sets.roots().tolist() == [0, 1, 1, 3, 3, 3]


# -- the check of the split


@pytest.mark.parametrize("size", [1, 2, 3, 10, 33, 100])
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95, 1.0])
def test_how_many_elements_a_similar_set_may_lack(size: int, threshold: float) -> None:
    may_lack = lacking(size, threshold)
    assert (size - may_lack) / size >= threshold - 1e-9  # a subset that lacks so many is similar
    assert (size - may_lack - 1) / size < threshold  # with one more it is not


@pytest.mark.parametrize("threshold", [0.3, 0.5, THRESHOLD, 0.95, 1.0])
def test_the_check_finds_all_pairs_across_and_no_other(tmp_path: Path, threshold: float) -> None:
    texts = with_repeats(200, seed=6)
    # Texts that repeat their own 5-grams, short ones, and one without any.
    texts += [f"{syllable * n} {tail}" for n in (3, 30, 90) for syllable in ("ха", "ай", "ну") for tail in ("", "вот")]
    texts += ["да", "да!", "нет", "", "ладно", "ладно"]
    side = np.array([random.Random(f"{n}").random() < 0.3 for n in range(len(texts))])
    train, held = np.flatnonzero(~side), np.flatnonzero(side)
    rows = rows_of(texts, tmp_path)
    buckets = np.bincount(bucket_of(shingle_many([normalise(t) for t in texts])[0]), minlength=BUCKETS)
    expected = {(a, b) if side[b] else (b, a) for a, b in alike_pairs(texts, threshold) if side[a] != side[b]}
    with Workers(1, "jobs.preprocess.tasks") as workers:
        found = leaks(rows.part(train), rows.part(held), buckets, threshold, tmp_path, workers, 0)
        again = leaks(rows.part(held), rows.part(train), buckets, threshold, tmp_path, workers, 1)
    assert len(expected) > 20
    assert {(int(train[a]), int(held[b])) for a, b in found.tolist()} == expected
    assert {(int(train[b]), int(held[a])) for a, b in again.tolist()} == expected


# -- the split


def split(sizes: list[int], **options: object) -> tuple[np.ndarray, np.ndarray]:
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    settings: dict[str, object] = {"how": "hash", "share": 0.1, "seed": 0, **options}
    names = [f"channel/{n}".encode() for n in range(len(sizes))]
    return cluster, held_out(cluster, names, np.arange(len(cluster)), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["hash", "time"])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.3, 0.49])
@pytest.mark.parametrize(
    "sizes", [[1, 1], [1] * 3, [1] * 1000, [50, 1], [1, 50], [7] * 30, [100, *[1] * 20], [3, 3]], ids=str
)
def test_sides_are_never_empty_never_mixed_and_validation_is_no_majority(
    how: str, share: float, sizes: list[int]
) -> None:
    cluster, held = split(sizes, how=how, share=share)
    assert 0 < held.sum() <= (~held).sum()
    assert not set(cluster[held]) & set(cluster[~held])


def test_the_size_is_what_was_asked_for() -> None:
    for how in ("hash", "time"):
        _, held = split([1] * 2000, how=how, share=0.05)
        assert held.sum() == 100


def test_time_holds_out_the_newest() -> None:
    _, held = split([1] * 100, how="time", share=0.2)
    assert np.flatnonzero(held).tolist() == list(range(80, 100))


def test_the_seed_changes_the_sides_and_nothing_else_does() -> None:
    assert split([1] * 500, seed=1)[1].tolist() == split([1] * 500, seed=1)[1].tolist()
    assert split([1] * 500, seed=1)[1].tolist() != split([1] * 500, seed=2)[1].tolist()


def test_most_posts_stay_on_their_side_when_others_are_added() -> None:
    _, before = split([1] * 1000)
    _, after = split([1] * 1100)
    assert (before != after[:1000]).mean() < 0.02


def test_one_cluster_cannot_be_split() -> None:
    with pytest.raises(DataError, match="at least two different posts"):
        split([5])
