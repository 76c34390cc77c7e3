"""What a batch is like, beside the training posts: lengths, form, distinct runs of words, closeness.

Sums and histograms only, so that memory does not grow with the number of posts; distinct runs are counted on the
first ``SAMPLE`` posts of either side, because their share falls with the size of what is counted.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.generate.overlap import words
from jobs.similarity import distinct
from jobs.style import QUANTILES, Style, quantile_key

SAMPLE = 5000  # posts on which distinct-n is counted
_BATCH = 512  # texts looked at together
_CHARACTERS = 1 << 20  # of texts looked at together, but for the last one: some 30 bytes a character meanwhile
_LONGEST = 65_536  # longer counts as this long


class Histogram:
    """Counts of small whole numbers."""

    def __init__(self) -> None:
        self._counts = np.zeros(64, np.int64)

    def add(self, value: int) -> None:
        """Count one value."""
        self.add_many([value])

    def add_many(self, values: Sequence[int]) -> None:
        """Count some values."""
        found = np.bincount(np.clip(np.array(values, np.int64), 0, _LONGEST), minlength=len(self._counts))
        found[: len(self._counts)] += self._counts
        self._counts = found

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


class _Cases:
    """Counts letters by case, each sign of the alphabet being looked at once."""

    def __init__(self) -> None:
        self._known = np.zeros(0x110000, bool)
        self._upper, self._lower = np.zeros(0x110000, bool), np.zeros(0x110000, bool)

    def count(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Upper-case and lower-case characters of each text."""
        codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
        for code in np.flatnonzero(np.bincount(codes) if len(codes) else []).tolist():
            if not self._known[code]:
                self._known[code] = True
                self._upper[code], self._lower[code] = chr(code).isupper(), chr(code).islower()
        ends = np.cumsum([0, *map(len, texts)])

        def within(table: NDArray[np.bool_]) -> NDArray[np.int64]:
            found: NDArray[np.int64] = np.diff(np.concatenate([[0], np.cumsum(table[codes])])[ends])
            return found

        return within(self._upper), within(self._lower)


class TextStatistics:
    """Of texts that are added some at a time: all at once cost a fraction of one by one."""

    def __init__(self, style: Style | None) -> None:
        self._separator = style.separator if style else None
        self.posts = 0
        self._characters, self._lines, self._segments = Histogram(), Histogram(), Histogram()
        self._shares = Counter[str]()
        self._cases = _Cases()
        self._grams: list[list[NDArray[np.uint64]]] = [[], [], []]

    def add(self, texts: Sequence[str]) -> None:
        """Count some posts."""
        for batch in _batches(texts):
            self._add(batch)

    def _add(self, texts: Sequence[str]) -> None:
        breaks = [text.count("\n") for text in texts]
        self._characters.add_many([len(text) for text in texts])
        self._lines.add_many([count + 1 for count in breaks])
        self._segments.add_many([self._segments_of(text) for text in texts])
        upper, lower = self._cases.count(texts)
        self._shares["upper"] += int(np.count_nonzero((upper > 0) & (upper >= 9 * lower)))
        self._shares["multiline"] += sum(map(bool, breaks))
        if self.posts < SAMPLE:
            self._add_grams(texts[: SAMPLE - self.posts])
        self.posts += len(texts)

    def _segments_of(self, text: str) -> int:
        """How many segments a text has; counts it, too, if it has separators."""
        if self._separator is None or self._separator not in text:
            return 1
        marks = [line.strip() == self._separator for line in text.split("\n")]
        self._shares["separator"] += any(marks)
        return 1 + sum(now and not before for before, now in zip([False, *marks], marks, strict=False))

    def _add_grams(self, texts: Sequence[str]) -> None:
        """Hashes of the runs of one, two and three words, none of which reaches from one text into the next."""
        posts = [words(text) for text in texts]
        flat = np.array([zlib.crc32(w.encode("utf-8", "replace")) for post in posts for w in post], np.uint64)
        # How many words are left in its text from each word on.
        left = np.array([n for post in posts for n in range(len(post), 0, -1)], np.int64)
        for size in range(1, 4):
            begins = np.flatnonzero(left >= size)
            grams = flat[begins]
            for place in range(1, size):
                grams = grams * np.uint64(0x9E3779B97F4A7C15) + flat[begins + place]
            self._grams[size - 1].append(grams)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        total = max(1, self.posts)
        shares = {}
        for size, grams in enumerate(self._grams, start=1):
            every = np.concatenate(grams) if grams else np.zeros(0, np.uint64)
            shares[str(size)] = round(len(distinct(every)) / len(every), 4) if len(every) else None
        return {
            "posts": self.posts,
            "characters": self._characters.quantiles(),
            "lines": self._lines.quantiles(),
            "segments": self._segments.quantiles(),
            "share_with_separator": round(self._shares["separator"] / total, 4),
            "share_upper_case": round(self._shares["upper"] / total, 4),
            "share_of_several_lines": round(self._shares["multiline"] / total, 4),
            "distinct": shares,
            "distinct_posts": min(self.posts, SAMPLE),
        }


def of_texts(texts: Iterable[str], style: Style | None) -> dict[str, Any]:
    """Statistics of the training posts."""
    found = TextStatistics(style)
    for batch in _batches(texts):
        found.add(batch)
    return found.plain()


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if len(batch) >= _BATCH or size >= _CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
