"""The longest shared run of words, against the plain way of finding it."""

from __future__ import annotations

import random

import pytest

from jobs.generate.overlap import OverlapIndex, words


def plainly(text: str, posts: list[str], reach: int) -> int:
    """The longest shared run by trying everything."""
    own, best = words(text), 0
    for post in posts:
        theirs = words(post)
        for i in range(len(own)):
            for j in range(len(theirs)):
                length = 0
                while i + length < len(own) and j + length < len(theirs) and own[i + length] == theirs[j + length]:
                    length += 1
                best = max(best, length)
    return min(best, reach)


@pytest.mark.parametrize("reach", [1, 2, 3, 5, 8, 13])
def test_equals_the_plain_way(reach: int) -> None:
    rng = random.Random(reach)
    vocabulary = [f"слово{i}" for i in range(25)]
    posts = [" ".join(rng.choices(vocabulary, k=rng.randint(0, 30))) for _ in range(40)]
    texts = [" ".join(rng.choices([*vocabulary, "чужое"], k=rng.randint(0, 25))) for _ in range(30)]
    texts += [posts[3], f"{posts[4]} {posts[5]}", ""]
    index = OverlapIndex(posts, reach=reach)
    for text, run in zip(texts, index.longest(texts), strict=True):
        assert run.length == plainly(text, posts, reach)
        if run.length:
            assert run.post is not None
            assert " ".join(words(run.text)) in " ".join(words(posts[run.post]))


def test_case_punctuation_and_yo_do_not_hide_a_run() -> None:
    index = OverlapIndex(["ЕДЕТЕ С БАТЕЙ\n@\nВЕЗЁТЕ ПОМИДОРЫ!"], reach=10)
    run = index.longest(["Ура: едете, с батей — везете помидоры"])[0]
    assert run.length == 5
    assert run.text == "едете, с батей — везете помидоры"


def test_a_run_does_not_cross_from_post_to_post() -> None:
    index = OverlapIndex(["раз два", "три четыре"], reach=10)
    assert index.longest(["раз два три четыре"])[0].length == 2


def test_one_search_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)
    posts = [" ".join(rng.choices("абвгдежзик", k=20)) for _ in range(50)]
    index = OverlapIndex(posts, reach=9)
    whole = index.longest(posts[:20])
    monkeypatch.setattr("jobs.generate.overlap._CELLS", 50)
    assert index.longest(posts[:20]) == whole
    assert [r.length for r in whole] == [9] * 20


def test_no_training_posts() -> None:
    assert OverlapIndex([], reach=5).longest(["что угодно", ""])[0].length == 0
