"""Profiles: what is done to a channel's posts, as a TOML file with an ordered list of rules.

The built-in ones lie in ``profiles/``; their comments explain how to write another.
"""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jobs.preprocess.draft import Draft
from jobs.preprocess.rule_base import MAX_GROWN, Drop, GrownError
from jobs.preprocess.rules import KINDS, AnyRule
from jobs.preprocess.rules_text import MaskPii
from jobs.specs import SpecError, describe

MAX_SIZE = 1024 * 1024  # bytes of a profile


class Profile(BaseModel):
    """A profile. ``separator``: the line between a post's segments; ``case``: for ``case = auto`` in the spec."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")
    description: str = Field("", max_length=2000)
    separator: Annotated[str, Field(min_length=1, max_length=20)] | None = None
    case: Literal["auto", "keep", "lower"] = "auto"
    rule: tuple[AnyRule, ...] = Field((), max_length=500)

    @model_validator(mode="after")
    def _names_differ(self) -> Profile:
        seen: set[str] = set()
        for number, rule in enumerate(self.rule):
            if rule.label in seen or rule.label in RESERVED:
                why = "is used by the stage itself" if rule.label in RESERVED else "is there twice"
                raise _RuleError(number, f"the name {rule.label!r} {why}; give this rule another 'name'")
            seen.add(rule.label)
        return self

    def with_masking(self) -> Profile:
        """The same with ``mask_pii`` as its last change, if it has none yet."""
        if any(isinstance(rule, MaskPii) for rule in self.rule):
            return self
        mask = MaskPii(use="mask_pii")
        return self.model_copy(update={"rule": (*self.rule, mask)})

    def clean(self, draft: Draft) -> tuple[str, str] | None:
        """Apply the rules in order. None: the post stays; else the dropping rule's name and its detail.

        Raises GrownError, which names the rule, when one makes too much of the post.
        """
        for number, rule in enumerate(self.rule):
            try:
                verdict = rule.apply(draft)
            except GrownError as error:
                error.rule = number
                raise
            if isinstance(verdict, Drop):
                return rule.label, verdict.detail
            if verdict:
                draft.changed_by.append(rule.label)
        return None


#: What the stage itself calls its reasons; a rule must not be mistaken for them.
RESERVED = frozenset({"duplicate", "near_duplicate"})


class _RuleError(ValueError):
    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def builtin_names() -> list[str]:
    """Names of the profiles that come with the program."""
    folder = resources.files("jobs.preprocess") / "profiles"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def builtin_text(name: str) -> str:
    """The TOML text of a built-in profile. Raises SpecError when there is none of that name."""
    if name not in builtin_names():
        raise SpecError(f"there is no profile {name!r}; the built-in ones are {', '.join(builtin_names())}")
    return (resources.files("jobs.preprocess") / "profiles" / f"{name}.toml").read_text(encoding="utf-8")


def parse_profile(text: str, where: str) -> Profile:
    """Read a profile; ``where`` names the file. Raises SpecError with the line of what is wrong."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        what = re.sub(r"\s*\(at .*\)$", "", str(error))
        place = f"line {found[1]}" if found else "its end"
        raise SpecError(f"{where}, {place}: this is not TOML: {what}") from error
    except RecursionError as error:
        raise SpecError(f"{where}: this is not TOML that anybody would write: it is nested too deeply") from error
    except ValueError as error:  # Python's own bound on the digits of a number
        raise SpecError(f"{where}: this is not TOML that anybody would write: a number has no end") from error
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise SpecError(_sentence(error, text, data, where)) from error


def grown(profile: Profile, rule: int, post: str, text: str, where: str) -> SpecError:
    """The error for a rule that makes too much of a post. ``post``: the post's name; ``text``: the profile's TOML."""
    label = profile.rule[rule].label
    return SpecError(
        f"{where}, line {find_line(text, rule, [])}: rule {rule + 1} ({label}): makes more than {MAX_GROWN} characters "
        f"of the post {post}; let it add less"
    )


def _sentence(error: ValidationError, text: str, data: dict[str, Any], where: str) -> str:
    first = error.errors(include_url=False)[0]
    location = [part for part in first["loc"] if part not in KINDS]  # pydantic names the union's member, too
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, _RuleError):
        location = ["rule", cause.number]
    more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    number = location[1] if len(location) > 1 and location[0] == "rule" and isinstance(location[1], int) else None
    keys = [str(p)[:60] for p in (location[2:] if number is not None else location)]
    line = find_line(text, number, keys)
    rules = data.get("rule")
    which = ""
    if number is not None and isinstance(rules, list) and isinstance(rules[number], dict):
        rule = rules[number]
        which = f"rule {number + 1} ({str(rule.get('name') or rule.get('use') or 'without a name')[:60]}): "
    if first["type"] == "union_tag_invalid":
        tag = str(first.get("ctx", {}).get("tag", ""))[:60]
        line = find_line(text, number, ["use"])
        problem = f"there is no rule {tag!r}; the rules are {', '.join(KINDS)}"
    elif first["type"] == "union_tag_not_found":
        problem = "'use' is missing: it says which rule this is"
    else:
        sentence = describe(error, "")
        problem = re.sub(r"; and \d+ more$", "", sentence).partition(": ")[2].strip()
        problem = re.sub(r"^[\w.]*?(?:" + "|".join(KINDS) + r")[\w.\-]*: ", "", problem)
        field = ".".join(k for k in keys if not k.isdigit())
        if field and not problem.startswith(f"{field}: "):
            problem = f"{field}: {problem}"
    return f"{where}, line {line}: {which}{problem}{more}"


_HEADER = re.compile(r"^\s*\[+\s*(?P<name>[^\]]*?)\s*\]")


def find_line(text: str, rule: int | None, keys: list[str]) -> int:
    """The line (from 1) that a parsed value was written in; that of its rule's header when it is not to be found.

    tomllib keeps no positions. This looks for the ``rule``-th ``[[rule]]`` and the key below it, which finds
    everything that is written as the built-in profiles are.
    """
    lines = text.splitlines()
    key = keys[0] if keys else None
    seen = -1
    header = 1
    inside = rule is None
    for number, line in enumerate(lines, 1):
        found = _HEADER.match(line)
        if found:
            name = found["name"].replace(" ", "")
            if name == "rule" and line.lstrip().startswith("[["):
                seen += 1
                if rule is not None and seen > rule:
                    break
                inside = seen == rule
                if inside:
                    header = number
            elif inside and key is not None and name == f"rule.{key}":
                return _within(lines, number, keys[1:])
            elif rule is None:
                inside = False
            continue
        if inside and key is not None and re.match(rf"""\s*["']?{re.escape(key)}["']?\s*[=.]""", line):
            return _within(lines, number, keys[1:])
    return header


def _within(lines: list[str], start: int, rest: list[str]) -> int:
    """The line of an array's element: elements that have a line of their own are counted."""
    if not rest or not rest[0].isdigit() or "]" in lines[start - 1].partition("=")[2]:
        return start
    element = int(rest[0])
    for number in range(start, len(lines)):
        stripped = lines[number].strip()
        if stripped.startswith("]"):
            break
        if stripped.startswith(("'", '"')):
            if element == 0:
                return number + 1
            element -= 1
    return start
