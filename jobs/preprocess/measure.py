"""Counts of many texts at once: characters, lines, letters, capitals; and the form of a corpus out of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import SupportsFloat

import numpy as np
from numpy.typing import NDArray

from jobs.style import QUANTILES, Form, quantile_key

UPPER, LOWER, LETTER, SPACE = 1, 2, 4, 8
LONGEST_LINE = 4096  # lines that are longer count as this long

Ints = NDArray[np.int64]


@lru_cache(maxsize=1)
def _classes() -> NDArray[np.uint8]:
    """The classes of every code point of the basic plane; what lies beyond counts as no letter."""
    table = np.zeros(0x10000 + 1, np.uint8)
    for code in range(0x10000):
        char = chr(code)
        table[code] = UPPER * char.isupper() | LOWER * char.islower() | LETTER * char.isalpha() | SPACE * char.isspace()
    return table


@dataclass(slots=True)
class Measures:
    """One number a text each."""

    characters: Ints
    lines: Ints
    segments: Ints
    separators: Ints
    upper: Ints
    lower: Ints
    letters: Ints
    visible: Ints

    @classmethod
    def concatenate(cls, parts: Sequence[Measures]) -> Measures:
        """Many as one."""
        empty = [np.zeros(0, np.int64)]
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts] or empty) for f in fields(cls)))


def case_counts(texts: Sequence[str]) -> tuple[Ints, Ints]:
    """Capitals and lower-case letters of each text."""
    classes, starts = _classify(texts)
    return _sums(classes & UPPER != 0, starts), _sums(classes & LOWER != 0, starts)


def measure(texts: Sequence[str], separator: str | None) -> tuple[Measures, Ints]:
    """Measures of the texts, and how many lines have how many characters (separator lines left out)."""
    classes, starts = _classify(texts)
    counts = np.zeros(LONGEST_LINE + 1, np.int64)
    lines, segments, separators = [], [], []
    lengths: list[int] = []
    for text in texts:
        parts = text.split("\n")
        lines.append(len(parts))
        alone = parts.count(separator) if separator is not None else 0
        separators.append(alone)
        runs = 1
        before = False
        for part in parts:
            now = part == separator
            runs += now and not before
            before = now
            if not now:
                lengths.append(len(part))
        segments.append(runs)
    np.add.at(counts, np.minimum(np.array(lengths, np.int64), LONGEST_LINE), 1)
    characters = np.diff(starts)
    found = Measures(
        characters=characters,
        lines=np.array(lines, np.int64),
        segments=np.array(segments, np.int64),
        separators=np.array(separators, np.int64),
        upper=_sums(classes & UPPER != 0, starts),
        lower=_sums(classes & LOWER != 0, starts),
        letters=_sums(classes & LETTER != 0, starts),
        visible=characters - _sums(classes & SPACE != 0, starts),
    )
    return found, counts


def _classify(texts: Sequence[str]) -> tuple[NDArray[np.uint8], Ints]:
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    starts = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(t) for t in texts], out=starts[1:])
    return _classes()[np.minimum(codes, 0x10000)], starts


def _sums(flags: NDArray[np.bool_], starts: Ints) -> Ints:
    total = np.zeros(len(flags) + 1, np.int64)
    np.cumsum(flags, out=total[1:])
    return total[starts[1:]] - total[starts[:-1]]


def share(part: SupportsFloat, whole: SupportsFloat) -> float:
    """part / whole, rounded so that it reads well; 0 of nothing."""
    return round(float(part) / float(whole), 6) if float(whole) else 0.0


def quantiles(values: Ints) -> dict[str, float]:
    """Quantiles by the keys of ``jobs.style``; nearest ranks, so that every value occurs."""
    if not len(values):
        return {quantile_key(q): 0.0 for q in QUANTILES}
    found = np.quantile(values, QUANTILES, method="nearest")
    return {quantile_key(q): float(v) for q, v in zip(QUANTILES, found, strict=True)}


def counted_quantiles(counts: Ints) -> dict[str, float]:
    """As ``quantiles``, from how often each value 0, 1, 2 … occurs."""
    total = int(counts.sum())
    if not total:
        return {quantile_key(q): 0.0 for q in QUANTILES}
    reached = np.cumsum(counts)
    ranks = [min(round(q * (total - 1)), total - 1) for q in QUANTILES]
    return {quantile_key(q): float(np.searchsorted(reached, r + 1)) for q, r in zip(QUANTILES, ranks, strict=True)}


def form_of(measures: Measures, line_counts: Ints, tokens: Ints, language: str | None) -> Form:
    """The form of the posts that were measured."""
    posts = len(measures.characters)
    cased = measures.upper + measures.lower
    return Form(
        posts=posts,
        characters=quantiles(measures.characters),
        lines=quantiles(measures.lines),
        segments=quantiles(measures.segments),
        line_characters=counted_quantiles(line_counts),
        tokens=quantiles(tokens),
        separator_share=share(np.count_nonzero(measures.separators), posts),
        upper_share=share(measures.upper.sum(), cased.sum()),
        upper_posts=share(np.count_nonzero((cased > 0) & (measures.upper >= 0.9 * cased)), posts),
        multiline_share=share(np.count_nonzero(measures.lines > 1), posts),
        letter_share=share(measures.letters.sum(), measures.visible.sum()),
        language=language,
    )
