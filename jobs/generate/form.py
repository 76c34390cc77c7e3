"""Whether a text has the form of the channel's posts: lines, segments, case, separators.

Bounds come from the measured form of the training posts (``jobs.style.Form``) with some room, because a form that
one training post in a hundred has is still the channel's.
"""

from __future__ import annotations

from collections.abc import Mapping

from jobs.style import Form, Style

_ROOM = 1.5  # times the largest that is usual (the 99th percentile) is still accepted
_MOST = 0.98  # a property that so many training posts have is the channel's rule
_UPPER = 0.9  # capitals among cased letters from which a post counts as upper-case, as in Form.upper_posts


class FormGate:
    """Says what is wrong with a text's form, or nothing."""

    def __init__(self, style: Style) -> None:
        form = style.form
        self._style = style
        self._lines = _top(form, "lines")
        self._segments = _top(form, "segments")
        self._line_characters = _top(form, "line_characters")
        self._letters = form.letter_share / 2
        self._needs_separator = style.separator is not None and form.separator_share >= _MOST
        self._forbids_lines = form.multiline_share <= 1 - _MOST
        self._upper = form.upper_posts >= _MOST or style.restore == "upper"

    def problem(self, text: str) -> str | None:
        """One word for the first thing that is wrong, or None."""
        lines = text.split("\n")
        separator = self._style.separator
        if separator is not None:
            marks = [line.strip() == separator for line in lines]
            if marks[0] or marks[-1]:
                return "separator at an end"
            if self._needs_separator and not any(marks):
                return "no separator"
            inside = any(separator in line.split() for line, mark in zip(lines, marks, strict=True) if not mark)
            if inside and self._style.form.separator_share >= 0.5:
                return "separator inside a line"
            segments = 1 + sum(now and not before for before, now in zip([False, *marks], marks, strict=False))
            if segments > self._segments:
                return "too many segments"
        if len(lines) > self._lines or (self._forbids_lines and len(lines) > 1):
            return "too many lines"
        if max(map(len, lines)) > self._line_characters:
            return "line too long"
        if "\n\n\n\n" in text:
            return "empty lines"
        visible = sum(map(len, text.split()))
        if sum(map(str.isalpha, text)) < self._letters * visible:
            return "few letters"
        if self._upper:
            upper, lower = sum(map(str.isupper, text)), sum(map(str.islower, text))
            if upper < _UPPER * (upper + lower):
                return "case"
        return None


def _top(form: Form, what: str) -> float:
    """The largest that is accepted: the 99th percentile with room, or the maximum where that is less."""
    quantiles: Mapping[str, float] = getattr(form, what)
    top = quantiles.get("p100", float("inf"))
    usual = quantiles.get("p99", top)
    return max(1.0, min(top, usual * _ROOM) if top > usual else usual * _ROOM)
