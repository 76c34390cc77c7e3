"""What a generated post must not carry: phone numbers, e-mail addresses, @mentions, links, card numbers.

A model may have learnt them from posts or make up ones that belong to somebody.
"""

from __future__ import annotations

import re

_ZONES = "ru|su|рф|by|ua|kz|com|net|org|info|biz|io|me|tv|cc|ly|app|dev|online|site|shop|xyz|club|pro|link"

PATTERNS: dict[str, re.Pattern[str]] = {
    "email": re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"),
    # Telegram's user names: five or more Latin letters, digits, _ (four for collectible ones).
    "mention": re.compile(r"(?<![\w@])@[A-Za-z][A-Za-z0-9_]{3,31}(?!\w)"),
    "link": re.compile(rf"(?:https?://|www\.|t\.me/)\S+|(?<![\w.@-])[\w-]+(?:\.[\w-]+)*\.(?:{_ZONES})(?![\w-])", re.I),
    "phone": re.compile(
        r"(?<![\d+])(?:\+?7|8)[\s(-]*\d{3}[\s)-]*\d{3}[\s-]*\d{2}[\s-]*\d{2}(?!\d)|(?<!\d)\+\d(?:[\s()-]*\d){9,13}(?!\d)"
    ),
    "card": re.compile(r"(?<!\d)(?:\d{4}[ -]?){3}\d{4}(?!\d)"),
}
_DIGIT = re.compile(r"\d")


def find_pii(text: str) -> list[str]:
    """The kinds of personal data in a text, in the order of ``PATTERNS``."""
    digits = _DIGIT.search(text) is not None
    possible = {
        "email": "@" in text,
        "mention": "@" in text,
        "link": "." in text or "/" in text,
        "phone": digits,
        "card": digits,
    }
    return [kind for kind, pattern in PATTERNS.items() if possible[kind] and pattern.search(text)]
