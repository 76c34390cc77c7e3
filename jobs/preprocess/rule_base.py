"""What all rules share: the base class, the verdicts, regular expressions by RE2.

RE2's time is linear in the text whatever the expression is, so neither a careless profile nor a hostile post can
hang a worker (https://github.com/google/re2/wiki/Syntax). In RE2 ``\\w``, ``\\d``, ``\\b`` know ASCII only;
``\\p{L}`` is a letter of any script and ``\\p{N}`` a digit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Self

import re2
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from jobs.preprocess.draft import Draft

MAX_PATTERN = 2000  # characters of one regular expression
MAX_GROWN = 8 * 1024 * 1024  # characters that a rule may make of a post; what scrape takes stays below half of it


@dataclass(frozen=True, slots=True)
class Drop:
    """The post is not wanted; ``detail`` says what was found in it."""

    detail: str = ""


class GrownError(Exception):
    """A rule makes far more of a post than any post is; ``rule``: its number in the profile, once that is known."""

    rule = -1


#: True: the draft was changed; False: it was not.
Verdict = Drop | bool


def compile_pattern(pattern: str, *, ignore_case: bool = False, groups: bool = False) -> Any:
    """An RE2 expression; ``groups``: what its groups match is asked for, which costs time.

    Raises ValueError with RE2's own words when it is none.
    """
    options = re2.Options()
    options.log_errors = False
    options.never_capture = not groups
    options.case_sensitive = not ignore_case
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        words = error.args[0] if error.args else error
        text = words.decode("utf-8", "replace") if isinstance(words, bytes) else str(words)
        raise ValueError(f"{cut_short(pattern)!r} is no regular expression of RE2: {cut_short(text)}") from error


def _checked(pattern: str) -> str:
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"a regular expression may have {MAX_PATTERN} characters, this one has {len(pattern)}")
    compile_pattern(pattern)
    if r"\Q" in pattern:
        try:
            compile_pattern(f"(?:{pattern})")
        except ValueError as error:
            raise ValueError(f"{cut_short(pattern)!r} cannot stand beside others; end every \\Q with \\E") from error
    return pattern


Pattern = Annotated[str, AfterValidator(_checked)]


def any_of(patterns: tuple[str, ...], *, ignore_case: bool) -> Any:
    """One expression for several; None for none."""
    if not patterns:
        return None
    try:
        return compile_pattern("|".join(f"(?:{p})" for p in patterns), ignore_case=ignore_case)
    except ValueError as error:
        raise ValueError(
            f"its {len(patterns)} expressions are too large together; make several rules of it, or shorter repetitions"
        ) from error


def found_somewhere(patterns: tuple[str, ...], *, ignore_case: bool) -> Any:
    """An expression that is found in every text of which a line matches one of the patterns; None where that is
    not certain. One search of the text costs less than one a line, and few posts need the latter."""
    if not patterns or any(re.search(r"\\[AzQ]|\(\?[a-zA-Z]*-", p) for p in patterns):
        return None
    whole = "|".join(f"(?:{p})" for p in patterns)
    try:
        return compile_pattern(rf"(?m)^\s*(?:{whole})\s*$", ignore_case=ignore_case)
    except ValueError:  # a little larger than what is needed, and too large
        return None


def cut_short(text: str, size: int = 100) -> str:
    """A text on one line, for a detail."""
    text = " ".join(text.split())
    return text if len(text) <= size else text[: size - 1] + "…"


class Rule(BaseModel):
    """Base of all rules. ``name`` is what reports call it; it defaults to ``use``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    use: str
    name: str = Field("", max_length=60)

    @model_validator(mode="after")
    def _is_ready(self) -> Self:
        # What is compiled of several expressions may be wrong although each is right; a worker is no place to find out.
        for kind in type(self).__mro__:
            for name, value in vars(kind).items():
                if isinstance(value, cached_property):
                    getattr(self, name)
        return self

    @property
    def label(self) -> str:
        """The name for reports."""
        return self.name or self.use

    def apply(self, draft: Draft) -> Verdict:
        """Change the draft, or ask to drop the post."""
        raise NotImplementedError
