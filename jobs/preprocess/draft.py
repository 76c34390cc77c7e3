"""A post while the rules work on it: its lines, and what Telegram's formatting says of each line."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

#: What ends a line besides "\n", in text that was pasted together from elsewhere.
OTHER_BREAKS = re.compile("\r\n?|[\v\f\x85\u2028\u2029]")


class Entity(TypedDict):
    """A piece of formatting as ``jobs.record`` has it; offset and length count code points."""

    type: str
    offset: int
    length: int
    url: str | None


@dataclass(frozen=True, slots=True)
class Mark:
    """A piece of formatting that covers a whole line (all of its letters and digits), or else a part of it."""

    type: str
    url: str | None
    whole: bool


@dataclass(slots=True)
class Draft:
    """What a rule sees and changes.

    ``lines`` and ``marks`` belong together, one entry a line; ``marks`` is None for a post without formatting.
    ``kinds``: service, forwarded, via_bot, poll, invoice, album and the kind of media, as they apply.
    ``links``: all addresses of the post, hidden ones included. ``changed_by``: names of the rules that changed it.
    """

    lines: list[str]
    marks: list[tuple[Mark, ...]] | None = None
    kinds: frozenset[str] = frozenset()
    links: Sequence[str] = ()
    changed_by: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        text: str,
        entities: Iterable[Entity] = (),
        *,
        kinds: frozenset[str] = frozenset(),
        links: Sequence[str] = (),
    ) -> Draft:
        """A draft of a raw text; entities have code point offsets into it."""
        found = list(entities)
        lines = text.split("\n")
        marks = _marks(lines, found) if found else None
        if OTHER_BREAKS.search(text):
            lines, marks = _split_further(lines, marks)
        return cls(lines, marks, kinds, links)

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines)

    def set_text(self, text: str) -> None:
        """Replace the whole text. Marks stay where the number of lines does."""
        lines = text.split("\n")
        if len(lines) != len(self.lines):
            self.marks = None
        self.lines = lines

    def keep(self, numbers: Sequence[int]) -> None:
        """Keep these lines only, by number."""
        self.lines = [self.lines[n] for n in numbers]
        if self.marks is not None:
            self.marks = [self.marks[n] for n in numbers]

    def marks_of(self, number: int) -> tuple[Mark, ...]:
        """Formatting of one line."""
        return self.marks[number] if self.marks is not None else ()


def _marks(lines: Sequence[str], entities: Sequence[Entity]) -> list[tuple[Mark, ...]]:
    found: list[list[Mark]] = [[] for _ in lines]
    starts = []
    at = 0
    for line in lines:
        starts.append(at)
        at += len(line) + 1
    for entity in entities:
        first, last = entity["offset"], entity["offset"] + entity["length"]
        for number in range(max(bisect_right(starts, first) - 1, 0), len(lines)):
            line, start = lines[number], starts[number]
            if start >= last:
                break
            low, high = max(first - start, 0), min(last - start, len(line))
            if low < high or (low == high and not line and first <= start < last):
                rest = line[:low] + line[high:]
                found[number].append(Mark(entity["type"], entity["url"], not any(map(str.isalnum, rest))))
    return [tuple(marks) for marks in found]


def _split_further(
    lines: Sequence[str], marks: Sequence[tuple[Mark, ...]] | None
) -> tuple[list[str], list[tuple[Mark, ...]] | None]:
    new_lines: list[str] = []
    new_marks: list[tuple[Mark, ...]] = []
    for number, line in enumerate(lines):
        # "\r\n" at a line's end is one break, and its "\n" is gone already
        for piece in OTHER_BREAKS.split(line.removesuffix("\r")):
            new_lines.append(piece)
            new_marks.append(marks[number] if marks is not None else ())
    return new_lines, new_marks if marks is not None else None
