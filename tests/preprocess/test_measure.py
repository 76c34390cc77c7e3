"""Measures of many texts at once are those of each text by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.preprocess.measure import LONGEST_LINE, case_counts, counted_quantiles, measure, quantiles

TEXTS = st.lists(st.text() | st.text("@\nаБ -", max_size=20), max_size=8)


def segments(text: str, separator: str | None) -> int:
    """1 and one more for each run of separator lines."""
    lines = text.split("\n")
    return 1 + sum(a == separator and (n == 0 or lines[n - 1] != separator) for n, a in enumerate(lines))


@given(TEXTS, st.sampled_from(["@", "--", None]))
def test_each_text_by_itself(texts: list[str], separator: str | None) -> None:
    found, counts = measure(texts, separator)
    lines = [t.split("\n") for t in texts]
    flat = "".join(texts).isascii() or max(map(ord, "".join(texts)), default=0) < 0x10000
    assert found.characters.tolist() == [len(t) for t in texts]
    assert found.lines.tolist() == [len(n) for n in lines]
    assert found.separators.tolist() == [n.count(separator) if separator else 0 for n in lines]
    assert found.segments.tolist() == [segments(t, separator) for t in texts]
    if flat:  # beyond the basic plane nothing counts as a letter
        assert found.upper.tolist() == [sum(map(str.isupper, t)) for t in texts]
        assert found.lower.tolist() == [sum(map(str.islower, t)) for t in texts]
        assert found.letters.tolist() == [sum(map(str.isalpha, t)) for t in texts]
    assert found.visible.tolist() == [sum(not c.isspace() for c in t) for t in texts]
    expected = [len(line) for n in lines for line in n if line != separator]
    assert np.repeat(np.arange(LONGEST_LINE + 1), counts).tolist() == sorted(expected)
    upper, lower = case_counts(texts)
    assert upper.tolist() == found.upper.tolist()
    assert lower.tolist() == found.lower.tolist()


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60))
def test_quantiles_by_counts_are_quantiles(values: list[int]) -> None:
    one = quantiles(np.array(values))
    other = counted_quantiles(np.bincount(values))
    assert one["p00"] == other["p00"] == min(values)
    assert one["p100"] == other["p100"] == max(values)
    assert set(one.values()) | set(other.values()) <= {float(v) for v in values}
    for key in one:
        assert np.sum(np.array(values) < one[key]) <= np.sum(np.array(values) <= other[key])


@pytest.mark.parametrize(
    "find", [lambda: quantiles(np.zeros(0, np.int64)), lambda: counted_quantiles(np.zeros(5, int))]
)
def test_quantiles_of_nothing(find) -> None:  # type: ignore[no-untyped-def]
    assert set(find().values()) == {0.0}
