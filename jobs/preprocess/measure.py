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
    chars = [chr(code) for code in range(0x10000)]
    tests = ((UPPER, str.isupper), (LOWER, str.islower), (LETTER, str.isalpha), (SPACE, str.isspace))
    table = np.zeros(0x10000 + 1, np.uint8)
    for value, test in tests:
        table[:-1] += value * np.array([test(c) for c in chars], np.uint8)
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
    size = len(texts)
    # All lines of all texts as one sequence; a line break after each text parts them.
    codes = _codes("\n".join([*texts, ""]))
    ends = np.flatnonzero(codes == ord("\n"))
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])[: len(ends)]
    lengths = ends - starts
    lines = np.array([t.count("\n") + 1 for t in texts], np.int64)
    owner = np.repeat(np.arange(size), lines)
    alone = np.zeros(len(lengths), bool)
    if separator is not None:
        alone = lengths == len(separator)
        for place, char in enumerate(separator):
            alone[alone] = codes[starts[alone] + place] == ord(char)
    run_begins = alone.copy()
    run_begins[1:] &= ~(alone[:-1] & (owner[1:] == owner[:-1]))
    counts = np.bincount(np.minimum(lengths[~alone], LONGEST_LINE), minlength=LONGEST_LINE + 1)
    classes, bounds = _classify(texts)
    characters = np.diff(bounds)
    found = Measures(
        characters=characters,
        lines=lines,
        segments=1 + np.bincount(owner[run_begins], minlength=size),
        separators=np.bincount(owner[alone], minlength=size),
        upper=_sums(classes & UPPER != 0, bounds),
        lower=_sums(classes & LOWER != 0, bounds),
        letters=_sums(classes & LETTER != 0, bounds),
        visible=characters - _sums(classes & SPACE != 0, bounds),
    )
    return found, counts


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _classify(texts: Sequence[str]) -> tuple[NDArray[np.uint8], Ints]:
    codes = _codes("".join(texts))
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
