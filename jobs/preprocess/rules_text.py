"""Rules that change the text of a post."""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from jobs.preprocess import pii
from jobs.preprocess.draft import Draft
from jobs.preprocess.rule_base import MAX_GROWN, GrownError, Pattern, Rule, Verdict, compile_pattern


class Replace(Rule):
    """Replace what ``pattern`` finds by ``with``: ``\\1`` in it is the first group, ``\\\\`` a backslash."""

    use: Literal["replace"]
    pattern: Pattern
    by: str = Field(alias="with", max_length=1000)
    ignore_case: bool = False

    @model_validator(mode="after")
    def _groups_exist(self) -> Self:
        if any(p > self._pattern.groups for p in self._parts if isinstance(p, int)):
            raise ValueError(f"{self.by!r} names a group that {self.pattern!r} does not have")
        return self

    @cached_property
    def _pattern(self) -> Any:
        return compile_pattern(self.pattern, ignore_case=self.ignore_case, groups=True)

    @cached_property
    def _parts(self) -> list[str | int]:
        # Not RE2's own templates: its wrapper garbles those that are not ASCII.
        return [
            int(p[1]) if re.fullmatch(r"\\[0-9]", p) else "\\" if p == r"\\" else p
            for p in re.split(r"(\\[0-9\\])", self.by)
        ]

    def apply(self, draft: Draft) -> Verdict:
        text = draft.text

        made = 0

        def replacement(match: Any) -> str:
            nonlocal made
            found = "".join(p if isinstance(p, str) else match.group(p) or "" for p in self._parts)
            made += len(found)
            if made > MAX_GROWN:
                raise GrownError
            return found

        changed, count = self._pattern.subn(replacement, text)
        if not count or changed == text:
            return False
        draft.set_text(changed)
        return True


# Zero-width and invisible signs, direction marks, soft hyphens, controls, noncharacters, lone surrogates. The
# joiner U+200D stays between emoji, where it makes one sign of several.
_REMOVED = (
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u180e\u200b\u200c\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\ufdd0-\ufdef\ud800-\udfff\U000e0000-\U000e0fff"
)
_JOINER = "(?<![\u00a9\u00ae\u203c-\u3299\ufe0f\U0001f000-\U0001faff])\u200d"
_STRIPPED = re.compile(f"[{_REMOVED}]|{_JOINER}")
# Characters that need none of this: a quick look decides for most posts.
_USUAL = re.compile(
    "[\n\x20-\x7e\u00a1-\u00ac\u00ae-\u02ff\u0370-\u0482\u048a-\u0590\u2010-\u2027\u2030-\u205e\u20a0-\u20cf"
    "\u2190-\u2bff\u2e00-\u2e7f\u3001-\u3029\U0001f000-\U0001faff]*"
)
_BLANKS = re.compile("[\t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_MARKS_SUSPECTED = re.compile("[^\x00-\u02ff\u0370-\u0482\u048a-\u0590\u2010-\u20cf\u2100-\u2fff\U0001f000-\U0001faff]")
_MARK_RUN = compile_pattern(r"\pM+")


class CleanCharacters(Rule):
    """Take out invisible characters and put one form in the place of several.

    Removed: zero-width characters, byte order marks, direction marks, soft hyphens, controls, lone surrogates.
    Every kind of space becomes a space. ``replace``: further characters or words to replace. Runs of more than
    ``max_marks`` combining marks are cut. ``normalise``: Unicode's NFC, so that й is one character.
    """

    use: Literal["clean_characters"]
    replace: dict[str, str] = Field(default_factory=dict, max_length=1000)
    normalise: Literal["NFC", "none"] = "NFC"
    max_marks: int = Field(4, ge=1, le=30)

    @model_validator(mode="after")
    def _replaces_within_lines(self) -> Self:
        if "" in self.replace:
            raise ValueError("'replace' cannot replace nothing")
        if any("\n" in part for pair in self.replace.items() for part in pair):
            raise ValueError("'replace' works within lines; it cannot hold line breaks")
        return self

    def apply(self, draft: Draft) -> Verdict:
        before = text = draft.text
        if _USUAL.fullmatch(text):
            if self.normalise == "NFC" and not text.isascii():
                text = unicodedata.normalize("NFC", text)
            return self._replaced(draft, before, text)
        text = _STRIPPED.sub("", text)
        text = _BLANKS.sub(" ", text)
        if _MARKS_SUSPECTED.search(text):
            # Cut runs first: putting marks in order takes time quadratic in the length of a run.
            text = _MARK_RUN.sub(lambda match: match.group()[: self.max_marks], text)
        if self.normalise == "NFC":
            text = unicodedata.normalize("NFC", text)
        return self._replaced(draft, before, text)

    def _replaced(self, draft: Draft, before: str, text: str) -> bool:
        for old, new in self.replace.items():
            if len(new) > len(old) and len(text) + text.count(old) * (len(new) - len(old)) > MAX_GROWN:
                raise GrownError
            text = text.replace(old, new)
        if text == before:
            return False
        draft.set_text(text)
        return True


class NormaliseSeparator(Rule):
    """Lines that are only a separator become exactly ``separator``; those at the post's ends go.

    ``variants`` matches a whole line that stands for one separator. A line of several separators («@@@») becomes
    as many lines (five at most), for it is a pause. Blank lines next to separators go. ``split_glued``: a line
    that begins or ends with a separator and a space is parted there.
    """

    use: Literal["normalise_separator"]
    separator: str = Field("@", min_length=1, max_length=20)
    variants: Pattern = "[@＠]"
    split_glued: bool = True

    MAX_RUN: ClassVar[int] = 5

    @model_validator(mode="after")
    def _stands_alone(self) -> Self:
        if self.separator != self.separator.strip() or "\n" in self.separator:
            raise ValueError("'separator' has no spaces at its ends and no line breaks")
        return self

    @cached_property
    def _variants(self) -> Any:
        return compile_pattern(self.variants)

    @cached_property
    def _run(self) -> Any:
        return compile_pattern(rf"(?:(?:{self.variants})\s*)+")

    def apply(self, draft: Draft) -> Verdict:
        before = draft.lines
        # Most posts have the separator alone on its lines and nothing else to mend.
        others = "\n".join(line for line in before if line != self.separator)
        if self._variants.search(others):
            parts = [self._parts(line) for line in before]
        elif self.separator not in before or self._in_order(draft.text):
            return False
        else:
            parts = [[line.strip()] for line in before]
        after: list[str] = []
        pending_blank = 0
        for pieces in parts:
            for piece in pieces:
                if not piece:
                    pending_blank += 1
                    continue
                at_separator = piece == self.separator or not after or after[-1] == self.separator
                if pending_blank and not at_separator:
                    after.extend([""] * pending_blank)
                pending_blank = 0
                after.append(piece)
        after.extend([""] * pending_blank)
        start, end = 0, len(after)
        while start < end and (after[start] == self.separator or not after[start]):
            start += 1
        while end > start and (after[end - 1] == self.separator or not after[end - 1]):
            end -= 1
        after = after[start:end]
        if after == before:
            return False
        draft.set_text("\n".join(after))
        return True

    def _in_order(self, text: str) -> bool:
        """Whether there is no blank line, no space at the end of a line, and no separator at an end of the text."""
        if text != text.strip() or any(pair in text for pair in ("\n\n", " \n", "\n ")):
            return False
        return not text.startswith(self.separator + "\n") and not text.endswith("\n" + self.separator)

    def _parts(self, line: str) -> list[str]:
        line = line.strip()
        if not line:
            return [""]
        if self._run.fullmatch(line):
            count = sum(1 for _ in self._variants.finditer(line))
            return [self.separator] * min(count, self.MAX_RUN)
        if not self.split_glued:
            return [line]
        front, back = [], []
        for mark in (self.separator + " ",):
            if line.startswith(mark):
                front, line = [self.separator], line[len(mark) :].strip()
        if line.endswith(" " + self.separator):
            back, line = [self.separator], line[: -len(self.separator) - 1].strip()
        return [*front, line, *back]


_SPACES = re.compile(" {2,}")
_OTHER_SPACE = re.compile("[^\\S \n]")


class Tidy(Rule):
    """Strip the ends of lines and of the post; keep at most ``max_blank_lines`` in a row; one space for several."""

    use: Literal["tidy"]
    max_blank_lines: int = Field(1, ge=0, le=100)
    collapse_spaces: bool = True

    def apply(self, draft: Draft) -> Verdict:
        if self._is_tidy(draft.text):
            return False
        kept: list[int] = []
        lines: list[str] = []
        blanks = 0
        for number, line in enumerate(draft.lines):
            stripped = line.strip()
            if self.collapse_spaces and "  " in stripped:
                stripped = _SPACES.sub(" ", stripped)
            if stripped:
                blanks = 0
            else:
                blanks += 1
                if blanks > self.max_blank_lines or not kept:
                    continue
            kept.append(number)
            lines.append(stripped)
        while lines and not lines[-1]:
            lines.pop()
            kept.pop()
        if lines == draft.lines:
            return False
        if not lines:
            changed = draft.lines != [""]
            draft.lines, draft.marks = [""], None
            return changed
        draft.keep(kept)
        draft.lines = lines
        return True

    def _is_tidy(self, text: str) -> bool:
        """A quick look that most posts pass; a post that does not may be tidy all the same."""
        bad = (" \n", "\n ", "  ", "\n" * (self.max_blank_lines + 2))
        return text == text.strip() and not any(b in text for b in bad) and not _OTHER_SPACE.search(text)


class MaskPii(Rule):
    """Mask phone numbers, e-mail addresses and @mentions (and t.me links to people and channels)."""

    use: Literal["mask_pii"]
    phone: str | None = Field("[телефон]", max_length=40, description="what stands instead; unset: leave them")
    email: str | None = Field("[почта]", max_length=40)
    mention: str | None = Field("[имя]", max_length=40)

    def apply(self, draft: Draft) -> Verdict:
        before = draft.text
        after = pii.mask(before, phone=self.phone, email=self.email, mention=self.mention)
        if after == before:
            return False
        draft.set_text(after)
        return True
