"""What a batch is like, beside the training posts: lengths, form, distinct runs of words, closeness.

Sums and histograms only, so that memory does not grow with the number of posts; distinct runs are counted on the
first ``SAMPLE`` posts of either side, because their share falls with the size of what is counted.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.generate.overlap import words
from jobs.style import QUANTILES, Style, quantile_key

SAMPLE = 5000  # posts on which distinct-n is counted
_LONGEST = 65_536  # longer counts as this long


class Histogram:
    """Counts of small whole numbers."""

    def __init__(self) -> None:
        self._counts = np.zeros(64, np.int64)

    def add(self, value: int) -> None:
        """Count one value."""
        value = min(max(value, 0), _LONGEST)
        if value >= len(self._counts):
            self._counts = np.concatenate([self._counts, np.zeros(value + 1, np.int64)])
        self._counts[value] += 1

    def quantiles(self) -> dict[str, int]:
        """The quantiles of ``jobs.style``, by the nearest rank; empty without values."""
        total = int(self._counts.sum())
        if not total:
            return {}
        cumulated = np.cumsum(self._counts)
        return {quantile_key(q): int(np.searchsorted(cumulated, max(1, np.ceil(q * total)))) for q in QUANTILES}

    def plain(self) -> dict[str, int]:
        """How often each value occurred, by the value."""
        return {str(v): int(self._counts[v]) for v in np.flatnonzero(self._counts)}


class TextStatistics:
    """Of texts that are added one after the other."""

    def __init__(self, style: Style | None) -> None:
        self._separator = style.separator if style else None
        self.posts = 0
        self._characters, self._lines, self._segments = Histogram(), Histogram(), Histogram()
        self._shares = Counter[str]()
        self._grams: list[list[NDArray[np.uint64]]] = [[], [], []]

    def add(self, text: str) -> None:
        """Count one post."""
        lines = text.split("\n")
        marks = [line.strip() == self._separator for line in lines]
        segments = 1 + sum(now and not before for before, now in zip([False, *marks], marks, strict=False))
        self._characters.add(len(text))
        self._lines.add(len(lines))
        self._segments.add(segments)
        upper, lower = sum(map(str.isupper, text)), sum(map(str.islower, text))
        self._shares["separator"] += any(marks)
        self._shares["upper"] += upper > 0 and upper >= 9 * lower
        self._shares["multiline"] += len(lines) > 1
        if self.posts < SAMPLE:
            self._add_grams(text)
        self.posts += 1

    def _add_grams(self, text: str) -> None:
        ids = np.array([zlib.crc32(w.encode("utf-8", "replace")) for w in words(text)], np.uint64)
        for size in range(1, 4):
            if len(ids) >= size:
                grams = ids[: len(ids) - size + 1].copy()
                for place in range(1, size):
                    grams = grams * np.uint64(0x9E3779B97F4A7C15) + ids[place : len(ids) - size + 1 + place]
                self._grams[size - 1].append(grams)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        total = max(1, self.posts)
        distinct = {}
        for size, grams in enumerate(self._grams, start=1):
            every = np.concatenate(grams) if grams else np.zeros(0, np.uint64)
            distinct[str(size)] = round(len(np.unique(every)) / len(every), 4) if len(every) else None
        return {
            "posts": self.posts,
            "characters": self._characters.quantiles(),
            "lines": self._lines.quantiles(),
            "segments": self._segments.quantiles(),
            "share_with_separator": round(self._shares["separator"] / total, 4),
            "share_upper_case": round(self._shares["upper"] / total, 4),
            "share_of_several_lines": round(self._shares["multiline"] / total, 4),
            "distinct": distinct,
            "distinct_posts": min(self.posts, SAMPLE),
        }


def of_texts(texts: Iterable[str], style: Style | None) -> dict[str, Any]:
    """Statistics of the training posts."""
    found = TextStatistics(style)
    for text in texts:
        found.add(text)
    return found.plain()
