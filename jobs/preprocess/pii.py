"""Personal data in posts: phone numbers, e-mail addresses, mentions. Written for precision: a post is a text."""

from __future__ import annotations

from typing import Any

import re2

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False


def _compiled(pattern: str) -> Any:
    return re2.compile(pattern, _OPTIONS)


# +CC and seven to twelve more digits, or Russia's 8 (or 7) and ten in groups; numbers inside longer ones are none.
_PHONE = _compiled(
    r"(^|[^\p{L}\p{N}+])"
    r"(\+[1-9][0-9]{0,2}(?:[ \-.()]{0,2}[0-9]){7,12}"
    r"|[78][ \-.]{0,2}\(?[0-9]{3}\)?[ \-.]{0,2}[0-9]{3}[ \-.]?[0-9]{2}[ \-.]?[0-9]{2})"
    r"($|[^\p{L}\p{N}])"
)
_EMAIL = _compiled(r"[\p{L}\p{N}._%+\-]+@(?:[\p{L}\p{N}\-]+\.)+\p{L}{2,}")
# Telegram's names have 4 (bought ones) to 32 characters.
_MENTION = _compiled(r"(^|[^\p{L}\p{N}_@/.])@[A-Za-z][A-Za-z0-9_]{3,31}($|[^A-Za-z0-9_@])")
_LINK = _compiled(r"(?i)(?:https?://)?(?:www\.)?(?:t|telegram)\.me/(?:joinchat/|\+)?[A-Za-z0-9_\-]{3,}(?:/[0-9]+)?")
_DIGITS = _compiled(r"[0-9]{3}|\+[0-9]")


def mask(text: str, *, phone: str | None, email: str | None, mention: str | None) -> str:
    """The text with what was found replaced by the given words; None leaves a kind as it is."""
    for _ in range(3):  # what stands right behind something else, as in 89123456789@name, shows once that is masked
        before, text = text, _mask(text, phone=phone, email=email, mention=mention)
        if text == before:
            break
    return text


def _mask(text: str, *, phone: str | None, email: str | None, mention: str | None) -> str:
    at = "@" in text
    if email is not None and at:
        text = _EMAIL.sub(lambda _: email, text)
    if mention is not None:
        if at:
            text = _all(_MENTION, text, mention)
        if "me/" in text.lower():
            text = _LINK.sub(lambda _: mention, text)
    if phone is not None and _DIGITS.search(text):
        text = _all(_PHONE, text, phone)
    return text


def _all(pattern: Any, text: str, word: str) -> str:
    """Replace the middle of every match; twice, since a sign between two matches belongs to the first one."""
    for _ in range(2):
        text = pattern.sub(lambda m: m.group(1) + word + m.group(pattern.groups), text)
    return text
