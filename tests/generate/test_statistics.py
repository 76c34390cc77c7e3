"""What a batch is like: the fast way to count equals the definitions, however the posts are cut into pieces."""

from __future__ import annotations

import random
import tracemalloc
import zlib
from typing import Any

import pytest

from jobs.generate import statistics
from jobs.generate.overlap import words
from jobs.generate.statistics import Histogram, TextStatistics, of_texts
from jobs.style import QUANTILES, Form, Style, quantile_key

KINDS = ("КОТ", "кот", "Ёж", "ǅ", "ß", "😀", "12", "—", "Ⅳ", "ⓐ", "@", " @ ", "\n@\n", "\n", "\n\n", " ", "\t")


def style(separator: str | None) -> Style:
    wide = {quantile_key(q): 1.0 for q in QUANTILES}
    form = Form(
        posts=1, characters=wide, lines=wide, segments=wide, line_characters=wide, tokens=wide, separator_share=0.0,
        upper_share=1.0, upper_posts=1.0, multiline_share=0.5, letter_share=0.5,
    )  # fmt: skip
    return Style(
        profile="test", case="lower", restore="upper", separator=separator, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, vocab_size=300, block_size=64, form=form,
    )  # fmt: skip


def texts(count: int) -> list[str]:
    rng = random.Random(1)
    made = ["".join(rng.choices(KINDS, k=rng.randint(0, 40))) for _ in range(count)]
    return ["", "\ud83d", "КОТ И ПЁС", *made]  # half of a surrogate pair, too


def plainly(posts: list[str], separator: str | None, sample: int) -> dict[str, Any]:
    """By the definitions, one post after the other."""
    characters, lines, segments = Histogram(), Histogram(), Histogram()
    separated = upper = several = 0
    grams: list[list[tuple[int, ...]]] = [[], [], []]
    for number, post in enumerate(posts):
        marks = [line.strip() == separator for line in post.split("\n")]
        characters.add(len(post))
        lines.add(len(marks))
        segments.add(1 + sum(now and not before for before, now in zip([False, *marks], marks, strict=False)))
        large, small = sum(c.isupper() for c in post), sum(c.islower() for c in post)
        separated += any(marks)
        upper += large > 0 and large >= 9 * small
        several += len(marks) > 1
        if number < sample:
            ids = [zlib.crc32(w.encode("utf-8", "replace")) for w in words(post)]
            for size in (1, 2, 3):
                grams[size - 1] += [tuple(ids[at : at + size]) for at in range(len(ids) - size + 1)]
    return {
        "posts": len(posts),
        "characters": characters.quantiles(),
        "lines": lines.quantiles(),
        "segments": segments.quantiles(),
        "share_with_separator": round(separated / len(posts), 4),
        "share_upper_case": round(upper / len(posts), 4),
        "share_of_several_lines": round(several / len(posts), 4),
        "distinct": {str(n): round(len(set(g)) / len(g), 4) for n, g in enumerate(grams, start=1)},
        "distinct_posts": min(len(posts), sample),
    }


@pytest.mark.parametrize("separator", ["@", None])
def test_counting_equals_the_definitions(separator: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "SAMPLE", 700)  # its end lies within a piece
    posts = texts(1300)
    expected = plainly(posts, separator, 700)
    assert expected["share_upper_case"] > 0
    assert bool(expected["share_with_separator"]) == bool(separator)
    assert of_texts(posts, style(separator)) == expected
    some_at_a_time = TextStatistics(style(separator))
    for at in range(0, len(posts), 37):
        some_at_a_time.add(posts[at : at + 37])
    assert some_at_a_time.plain() == expected


def test_nothing_to_count() -> None:
    found = of_texts([], None)
    assert found["posts"] == 0
    assert found["characters"] == {}
    assert found["distinct"] == {"1": None, "2": None, "3": None}


def test_a_histogram_grows_up_to_its_bound() -> None:
    counts = Histogram()
    counts.add(3)
    counts.add_many([3, 500, 10**9, -1])
    assert counts.plain() == {"0": 1, "3": 2, "500": 1, "65536": 1}


def test_long_posts_are_counted_in_bounded_memory() -> None:
    many = ("Ы" * 250_000 for _ in range(40))
    tracemalloc.start()
    try:
        assert of_texts(many, None)["posts"] == 40
        assert tracemalloc.get_traced_memory()[1] < 120e6
    finally:
        tracemalloc.stop()
