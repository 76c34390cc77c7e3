"""The rules that a profile is made of, all in one type; ``profiles/bugurt.toml`` lists them for people."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from jobs.preprocess.rules_select import (
    DropEmpty,
    DropKind,
    DropLanguage,
    DropLines,
    DropLong,
    DropPost,
    DropShort,
    KeepPost,
    StripFooter,
    StripHeader,
)
from jobs.preprocess.rules_text import CleanCharacters, MaskPii, NormaliseSeparator, Replace, Tidy

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
