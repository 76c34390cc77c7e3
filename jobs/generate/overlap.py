"""The longest run of words that a text shares with any training post: a suffix array over words.

The corpus is one array of word numbers with a mark after every post, so that a run never crosses from one post
into the next. Its suffixes are sorted by their first ``reach`` words by prefix doubling (Manber and Myers, 1990);
a binary search then finds, for all positions of many texts at once, the neighbours among the suffixes, one of
which shares the longest run. Exact, with no hashing of runs, in 12 bytes a word of the corpus.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")
_MARK = 0  # after each post; texts never contain it
_CELLS = 4_000_000  # numbers compared at once; bounds the memory of a search

Ints = NDArray[np.int64]


def fold(text: str) -> str:
    """The text as words are compared: without case, ё as е."""
    return text.casefold().replace("ё", "е")


def words(text: str) -> list[str]:
    """The words of a text as they are compared: runs of letters and digits, folded."""
    return _WORD.findall(fold(text))


@dataclass(frozen=True)
class Run:
    """A run of shared words: how many (at most the index's reach), the words, and the training post's number."""

    length: int
    text: str
    post: int | None


class OverlapIndex:
    """Finds shared runs of up to ``reach`` words with the posts that it was built from."""

    def __init__(self, posts: Iterable[str], *, reach: int) -> None:
        self.reach = reach
        self._vocabulary: dict[str, int] = {}
        chunks: list[NDArray[np.int32]] = []
        starts = [0]
        number = self._vocabulary.setdefault
        total = 0
        for post in posts:
            ids = [number(w, len(self._vocabulary) + 1) for w in words(post)]
            ids.append(_MARK)
            chunks.append(np.array(ids, np.int32))
            total += len(ids)
            starts.append(total)
        self._starts = np.array(starts, np.int64)
        self._words = np.concatenate(chunks) if chunks else np.zeros(0, np.int32)
        self._order = self._sort()
        # Where the suffixes of each first word begin in that order.
        self._bounds = np.searchsorted(self._words[self._order], np.arange(len(self._vocabulary) + 2))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def _sort(self) -> NDArray[np.int32]:
        """Suffixes in the order of their first ``reach`` words."""
        count = len(self._words)
        order = np.argsort(self._words, kind="stable").astype(np.int32)
        rank = _ranks(self._words[order], order)
        step = 1
        while step < self.reach:
            after = np.zeros(count, np.int64)
            after[: count - step] = rank[step:] + 1 if step < count else 0
            key = rank * (count + 2) + after
            order = np.argsort(key, kind="stable").astype(np.int32)
            rank = _ranks(key[order], order)
            step *= 2
            if count and int(rank.max()) == count - 1:
                break  # all different by now
        return order

    def longest(self, texts: Sequence[str]) -> list[Run]:
        """For each text its longest run of words shared with one post."""
        spans = [[(m.start(), m.end()) for m in _WORD.finditer(text)] for text in texts]
        unknown = len(self._vocabulary) + 1
        ids = [
            [self._vocabulary.get(fold(text[a:b]), unknown) for a, b in places]
            for text, places in zip(texts, spans, strict=True)
        ]
        lengths, posts = self._search(ids)
        runs: list[Run] = []
        at = 0
        for text, places in zip(texts, spans, strict=True):
            here = lengths[at : at + len(places)]
            best = int(here.argmax()) if len(here) else 0
            length = int(here[best]) if len(here) else 0
            if length:
                shared = text[places[best][0] : places[best + length - 1][1]]
                runs.append(Run(length, " ".join(shared.split()), int(posts[at + best])))
            else:
                runs.append(Run(0, "", None))
            at += len(places)
        return runs

    def _search(self, texts: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
        """For each position of each text: length of the longest shared run that begins there, and the post."""
        total = sum(len(t) for t in texts)
        lengths, posts = np.zeros(total, np.int64), np.full(total, -1, np.int64)
        if not total or not len(self._words):
            return lengths, posts
        # Each row holds the words from a position on; -1 fills up behind a text's end and matches nothing.
        rows = np.full((total, self.reach), -1, np.int32)
        at = 0
        for text in texts:
            padded = np.full(len(text) + self.reach, -1, np.int32)
            padded[: len(text)] = text
            if len(text):
                rows[at : at + len(text)] = np.lib.stride_tricks.sliding_window_view(padded, self.reach)[: len(text)]
            at += len(text)
        step = max(1, _CELLS // self.reach)
        for begin in range(0, total, step):
            part = slice(begin, begin + step)
            lengths[part], posts[part] = self._search_rows(rows[part])
        return lengths, posts

    def _suffixes(self, places: Ints) -> NDArray[np.int32]:
        """The first ``reach`` words of the suffixes at these places of the order; marks fill up at the end."""
        at = self._order[places].astype(np.int64)[:, None] + np.arange(self.reach)
        found: NDArray[np.int32] = self._words[np.minimum(at, len(self._words) - 1)]
        found[at >= len(self._words)] = _MARK
        return found

    def _search_rows(self, rows: NDArray[np.int32]) -> tuple[Ints, Ints]:
        # Suffixes with the same first word stand together: the search begins between the bounds of that word.
        known = (rows[:, 0] > 0) & (rows[:, 0] < len(self._bounds) - 1)
        first = np.where(known, rows[:, 0], 0)
        low = np.where(known, self._bounds[first], 0)
        high = np.where(known, self._bounds[first + 1], 0)
        active = np.flatnonzero(low < high)
        while len(active):
            middle = (low[active] + high[active]) // 2
            suffix, wanted = self._suffixes(middle), rows[active]
            differs = suffix != wanted
            place = differs.argmax(axis=1)
            line = np.arange(len(active))
            smaller = differs[line, place] & (suffix[line, place] < wanted[line, place])
            low[active] = np.where(smaller, middle + 1, low[active])
            high[active] = np.where(smaller, high[active], middle)
            active = active[low[active] < high[active]]
        best, owner = np.zeros(len(rows), np.int64), np.full(len(rows), -1, np.int64)
        found = np.flatnonzero(known)
        for neighbour in (low[found] - 1, low[found]):
            place = np.clip(neighbour, 0, len(self._order) - 1)
            differs = self._suffixes(place) != rows[found]
            same = np.where(differs.any(axis=1), differs.argmax(axis=1), self.reach)
            better = same > best[found]
            best[found] = np.where(better, same, best[found])
            owner[found] = np.where(better, self._order[place], owner[found])
        posts = np.where(owner >= 0, np.searchsorted(self._starts, owner, side="right") - 1, -1)
        return best, posts


def _ranks(sorted_keys: NDArray[np.generic], order: NDArray[np.int32]) -> Ints:
    """Rank of every suffix: equal keys, equal ranks."""
    ranks = np.zeros(len(order), np.int64)
    if len(order):
        steps = np.concatenate([[0], np.cumsum(sorted_keys[1:] != sorted_keys[:-1])])
        ranks[order] = steps
    return ranks
