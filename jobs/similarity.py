"""How alike two posts are: sets of character 5-grams, their Jaccard similarity, and MinHash to find candidates.

Texts are compared as ``normalise`` leaves them: without case, punctuation or the difference of ё and е. A set of
5-grams is a sorted array of 64-bit hashes. MinHash signatures (rensa's R-MinHash) are cut into bands; texts that
share a band are candidates (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, 3.4), and a candidate counts
only once its true Jaccard similarity has been computed. ``Banding.for_threshold`` chooses bands so that a pair at
the very threshold is missed with a probability of at most ``MAX_MISS``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import rensa
from numpy.typing import NDArray

SHINGLE = 5  # characters
PERMUTATIONS = 128  # slots of a signature
MAX_MISS = 0.005  # chance to miss a pair whose similarity is exactly the threshold
MAX_ROWS = 16
SEED = 20_200_229
_AT_ONCE = 1 << 15  # windows; what is worked on stays in the cache of a core
ALGORITHM = 1  # raise when hashes, signatures or normalisation change: stored artefacts depend on them

Hashes = NDArray[np.uint64]

_WORD = re.compile(r"[^\W_]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15 | 1)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # splitmix64's finaliser


def normalise(text: str) -> str:
    """A text as it is compared: folded case, ё as е, anything but letters, digits and marks as one space.

    A text without letters or digits (emoji, a lone sign) keeps its signs and loses only its runs of spaces.
    """
    folded = text.casefold().replace("ё", "е")
    return " ".join(_WORD.findall(folded)) or " ".join(folded.split())


def _mix(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def shingle_many(normalised: Sequence[str]) -> tuple[Hashes, NDArray[np.uint64]]:
    """5-grams of many normalised texts at once: (hashes one text after the other, offsets; repeats kept).

    A text shorter than a 5-gram is one shingle, an empty one has none.
    """
    padded = [t if len(t) >= SHINGLE or not t else t.ljust(SHINGLE, "\0") for t in normalised]
    lengths = np.fromiter((len(t) for t in padded), np.int64, len(padded))
    counts = np.where(lengths > 0, lengths - SHINGLE + 1, 0)
    offsets = np.zeros(len(padded) + 1, np.uint64)
    np.cumsum(counts, out=offsets[1:])
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32)
    if len(codes) < SHINGLE:
        return np.zeros(0, np.uint64), offsets
    windows = len(codes) - SHINGLE + 1
    within = np.ones(len(codes), bool)
    ends = np.cumsum(lengths)[lengths > 0]
    for back in range(1, SHINGLE):
        within[ends - back] = False  # these windows would reach into the next text
    parts = []
    for start in range(0, windows, _AT_ONCE):
        stop = min(start + _AT_ONCE, windows)
        hashes = codes[start:stop].astype(np.uint64)
        for place in range(1, SHINGLE):
            hashes *= _MULTIPLIER
            hashes += codes[start + place : stop + place]
        parts.append(_mix(hashes[within[start:stop]]))
    return np.concatenate(parts), offsets


def shingles(text: str, *, normalised: bool = False) -> Hashes:
    """The set of a text's 5-grams: sorted, distinct 64-bit hashes. ``normalised``: it went through ``normalise``."""
    flat, _ = shingle_many([text if normalised else normalise(text)])
    return distinct(flat)


def distinct(hashes: Hashes) -> Hashes:
    """Sorted and without repeats; faster than numpy.unique on the few hundred hashes of a post."""
    if len(hashes) < 2:
        return hashes
    ordered = np.sort(hashes)
    first = np.empty(len(ordered), bool)
    first[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def overlap(a: Hashes, b: Hashes) -> int:
    """How many hashes two sets share."""
    if len(a) > len(b):
        a, b = b, a
    if not len(a):
        return 0
    places = np.searchsorted(b, a)
    places[places == len(b)] = len(b) - 1
    return int(np.count_nonzero(b[places] == a))


def jaccard(a: Hashes, b: Hashes) -> float:
    """|A ∩ B| / |A ∪ B| of two sets from ``shingles``; 0 when both are empty."""
    shared = overlap(a, b)
    union = len(a) + len(b) - shared
    return shared / union if union else 0.0


@dataclass(frozen=True)
class Banding:
    """How signatures are cut: ``bands`` bands of ``rows`` slots each, for pairs from ``threshold`` on."""

    threshold: float
    bands: int
    rows: int

    @classmethod
    def for_threshold(cls, threshold: float) -> Banding:
        """The longest bands (fewest false candidates) that miss at most ``MAX_MISS`` at the threshold."""
        for rows in range(MAX_ROWS, 0, -1):
            bands = PERMUTATIONS // rows
            if (1 - threshold**rows) ** bands <= MAX_MISS:
                return cls(threshold, bands, rows)
        return cls(threshold, PERMUTATIONS, 1)

    def keys(self, flat: Hashes, offsets: NDArray[np.uint64]) -> Hashes:
        """Band keys of many texts, from ``shingle_many``: shape (texts, bands)."""
        texts = len(offsets) - 1
        if texts == 0:
            return np.zeros((0, self.bands), np.uint64)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, PERMUTATIONS, SEED)
        slots = np.array(matrix.to_rows(), np.uint64)[:, : self.bands * self.rows]
        slots = slots.reshape(texts, self.bands, self.rows)
        keys = np.full((texts, self.bands), self.rows, np.uint64)
        for row in range(self.rows):
            keys = _mix((keys ^ slots[:, :, row]) * _MULTIPLIER)
        return keys


@dataclass(frozen=True)
class Match:
    """A text of an index that is alike: its number (in the order of adding) and the true similarity."""

    number: int
    similarity: float


class SimilarityIndex:
    """Texts that others are compared with: ``add`` some, ``matches`` finds those at or above the threshold.

    Memory: about 8 bytes a band and text (some 170 bytes at 0.8) plus the normalised text as UTF-8.
    """

    _BATCH = 4096

    def __init__(self, threshold: float) -> None:
        """``threshold``: the Jaccard similarity (0 to 1) from which texts count as alike."""
        self.banding = Banding.for_threshold(threshold)
        self._texts: list[bytes] = []
        # What came in bulk lies in sorted arrays, what came singly in dictionaries.
        self._sorted: list[tuple[Hashes, NDArray[np.int64]]] = []
        self._recent: list[dict[int, list[int]]] = [{} for _ in range(self.banding.bands)]

    def __len__(self) -> int:
        return len(self._texts)

    def text(self, number: int) -> str:
        """The normalised text with this number."""
        return self._texts[number].decode("utf-8", "surrogatepass")

    def add_many(self, texts: Iterable[str]) -> None:
        """Add many texts; they get the next numbers in turn."""
        first = len(self._texts)
        blocks: list[Hashes] = []
        batch: list[str] = []

        def flush() -> None:
            blocks.append(self.banding.keys(*shingle_many(batch)))
            self._texts.extend(t.encode("utf-8", "surrogatepass") for t in batch)
            batch.clear()

        for text in texts:
            batch.append(normalise(text))
            if len(batch) == self._BATCH:
                flush()
        if batch:
            flush()
        if not blocks:
            return
        keys = np.concatenate(blocks)
        numbers = np.arange(first, first + len(keys), dtype=np.int64)
        merged = []
        for band in range(self.banding.bands):
            column, owners = keys[:, band], numbers
            if self._sorted:
                column = np.concatenate([self._sorted[band][0], column])
                owners = np.concatenate([self._sorted[band][1], owners])
            order = np.argsort(column, kind="stable")
            merged.append((column[order], owners[order]))
        self._sorted = merged

    def add(self, text: str) -> int:
        """Add one text; returns its number."""
        plain = normalise(text)
        number = len(self._texts)
        self._texts.append(plain.encode("utf-8", "surrogatepass"))
        for table, key in zip(self._recent, self.banding.keys(*shingle_many([plain]))[0].tolist(), strict=True):
            table.setdefault(key, []).append(number)
        return number

    def candidates(self, normalised: str) -> list[int]:
        """Numbers of the texts that share a band with a normalised text, in order."""
        found: set[int] = set()
        keys = self.banding.keys(*shingle_many([normalised]))[0]
        for (column, owners), key in zip(self._sorted, keys, strict=False):
            start, stop = np.searchsorted(column, key, "left"), np.searchsorted(column, key, "right")
            found.update(owners[start:stop].tolist())
        for table, number in zip(self._recent, keys.tolist(), strict=True):
            found.update(table.get(number, ()))
        return sorted(found)

    def candidates_many(self, normalised: Sequence[str]) -> list[list[int]]:
        """As ``candidates`` for many texts at once, at a fraction of the cost."""
        found: list[set[int]] = [set() for _ in normalised]
        keys = self.banding.keys(*shingle_many(normalised))
        for band, (column, owners) in enumerate(self._sorted):
            starts = np.searchsorted(column, keys[:, band], "left")
            stops = np.searchsorted(column, keys[:, band], "right")
            for place in np.flatnonzero(stops > starts).tolist():
                found[place].update(owners[starts[place] : stops[place]].tolist())
        for band, table in enumerate(self._recent):
            if table:
                for place, key in enumerate(keys[:, band].tolist()):
                    found[place].update(table.get(key, ()))
        return [sorted(numbers) for numbers in found]

    def matches(self, text: str) -> list[Match]:
        """The texts that are alike, the most similar first (the earlier one first among equals)."""
        plain = normalise(text)
        own = shingles(plain, normalised=True)
        if not len(own):
            return []
        found = []
        for number in self.candidates(plain):
            other = shingles(self.text(number), normalised=True)
            similarity = jaccard(own, other)
            if similarity >= self.banding.threshold:
                found.append(Match(number, similarity))
        return sorted(found, key=lambda m: (-m.similarity, m.number))

    def best(self, text: str) -> Match | None:
        """The most similar text, or None when none reaches the threshold."""
        found = self.matches(text)
        return found[0] if found else None
