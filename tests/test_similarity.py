"""Similarity: sets of 5-grams and their Jaccard similarity as the definition has it, and an index that finds."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.similarity import (
    MAX_MISS,
    SHINGLE,
    Banding,
    SimilarityIndex,
    jaccard,
    normalise,
    overlap,
    shingle_many,
    shingles,
)
from tests.preprocess.texts import near, posts

ANY = st.text(max_size=40)  # lone surrogates among it


def grams(text: str) -> set[str]:
    """The definition: all 5-character pieces, a shorter text being one piece."""
    return {text[n : n + SHINGLE] for n in range(max(1, len(text) - SHINGLE + 1))} if text else set()


@given(ANY, ANY)
def test_jaccard_is_that_of_the_sets(a: str, b: str) -> None:
    one, other = grams(normalise(a)), grams(normalise(b))
    union = one | other
    expected = len(one & other) / len(union) if union else 0.0
    assert jaccard(shingles(a), shingles(b)) == pytest.approx(expected)
    assert overlap(shingles(a), shingles(b)) == len(one & other)


@given(st.lists(ANY, max_size=12))
def test_many_at_once_are_each_by_itself(texts: list[str]) -> None:
    plain = [normalise(t) for t in texts]
    flat, offsets = shingle_many(plain)
    assert offsets[0] == 0
    assert offsets[-1] == len(flat)
    for number, text in enumerate(plain):
        own = flat[int(offsets[number]) : int(offsets[number + 1])]
        assert np.array_equal(np.unique(own), shingles(text, normalised=True))
        assert len(own) == (max(1, len(text) - SHINGLE + 1) if text else 0)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("ЁЖИК,  Ёжик!", "ежик ежик"),
        ("РАЗ\n@\nДВА", "раз два"),
        ("snake_case — да", "snake case да"),
        ("  ", ""),
        ("", ""),
        ("😂  😂", "😂 😂"),
        ("@", "@"),
        ("STRASSE straße", "strasse strasse"),
        ("\ud800", "\ud800"),
    ],
)
def test_normalise(text: str, plain: str) -> None:
    assert normalise(text) == plain
    assert normalise(plain) == plain


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_miss_hardly_a_pair_at_the_threshold(threshold: float) -> None:
    banding = Banding.for_threshold(threshold)
    assert (1 - threshold**banding.rows) ** banding.bands <= MAX_MISS
    assert banding.bands * banding.rows <= 128


def test_keys_do_not_depend_on_company_or_order() -> None:
    texts = [normalise(t) for t in posts(50)] + ["", "a"]
    banding = Banding.for_threshold(0.8)
    together = banding.keys(*shingle_many(texts))
    for number in (0, 17, 50, 51):
        assert np.array_equal(banding.keys(*shingle_many([texts[number]]))[0], together[number])
    assert banding.keys(*shingle_many([])).shape == (0, banding.bands)


def test_stored_keys_stay_what_they_are() -> None:
    """Datasets made elsewhere must stay the same: a change here needs a new ALGORITHM and stage version."""
    keys = Banding.for_threshold(0.8).keys(*shingle_many(["кот ищет носки по средам"]))
    assert keys.shape == (1, 21)
    assert [int(k) for k in keys[0, :2]] == KNOWN_KEYS


KNOWN_KEYS = [17796814360347767582, 17778309755637183695]


@pytest.mark.parametrize("how", ["in bulk", "one by one", "both"])
def test_the_index_finds_what_a_comparison_with_all_finds(how: str) -> None:
    draw = random.Random(2)
    texts = posts(200, seed=2)
    texts += [near(draw.choice(texts), draw) for _ in range(60)]
    index = SimilarityIndex(0.7)
    half = {"in bulk": len(texts), "one by one": 0, "both": 100}[how]
    index.add_many(texts[: half // 2])
    index.add_many(texts[half // 2 : half])
    assert [index.add(t) for t in texts[half:]] == list(range(half, len(texts)))
    assert len(index) == len(texts)
    sets = [shingles(t) for t in texts]
    missed = found = 0
    for number in range(150, len(texts)):
        expected = {n for n, s in enumerate(sets) if jaccard(sets[number], s) >= 0.7}
        matches = index.matches(texts[number])
        got = {m.number for m in matches}
        assert got <= expected
        assert all(m.similarity == jaccard(sets[number], sets[m.number]) for m in matches)
        assert [m.similarity for m in matches] == sorted((m.similarity for m in matches), reverse=True)
        assert number in got
        found += len(got)
        missed += len(expected - got)
    assert found > 130
    assert missed <= 0.02 * found


def test_an_empty_index_and_empty_texts() -> None:
    index = SimilarityIndex(0.8)
    assert index.best("кот") is None
    index.add("")
    index.add_many([])
    assert index.matches("") == []
    index.add("кот пришёл домой")
    best = index.best("КОТ ПРИШЁЛ ДОМОЙ!")
    assert best is not None
    assert (best.number, best.similarity) == (1, 1.0)
