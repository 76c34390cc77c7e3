"""Posts: the record that every source becomes, and the columns of the Parquet shards that it is kept in.

A ``posts`` artefact is an ordered list of Parquet shards, ancestors' first. A row is one version of a post: a
scrape that finds a post edited or deleted adds a row for it and never touches the old one. Readers take, for each
``(channel, id)``, the row that comes last in the order of the shards, and leave out those that are ``deleted``.

Columns:

=============  ==========================================================================================
id             the message's number in its channel (of an album: of its first message); for sources without
               numbers, the position in the file, from 1
channel        a name that stays the same through all scrapes of one artefact's chain
channel_id     Telegram's number of the channel, without the -100 of bots; null for plain files
version        1 for the first row of a post, one more for each later one
deleted        the post is gone: the row says only that
date           when it was posted, seconds, UTC
edit_date      when it was last edited visibly, seconds, UTC
text           as it was written: no Markdown, nothing stripped
entities       formatting: ``type`` as Desktop exports name it (bold, text_link, hashtag …), ``offset`` and
               ``length`` in Unicode code points, so that ``text[offset:offset + length]`` is the piece;
               ``url``: the target of a text_link, ``tg://user?id=N`` of a mention_name,
               ``tg://emoji?id=N`` of a custom_emoji
links          every address in the post once, hidden behind text or written out
views, forwards, replies   counts, or null where the source does not have them
reactions      ``emoji`` (or ``custom:ID``, ``paid``) and ``count``
reply_to       the id of the post that this one answers
album_id       Telegram's number of the album, of which all parts are this one post
media          photo, video, document, audio, voice, sticker, animation, webpage, location, contact, poll,
               invoice or other; of an album the first part's
media_count    attached files: more than 1 in an album
forwarded_from name or number of the original author's chat
via_bot        the inline bot that made it
poll, invoice  flags
service        the action of a service message (pin_message …), which is kept and flagged, not a post
author         the author's signature
permalink      https://t.me/… where the channel has an address
=============  ==========================================================================================
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from jobs.artifacts import ArtifactStore, Manifest

SHARDS = "part-*.parquet"
BATCH_ROWS = 4096
#: Kinds of media that are files and count in ``media_count``.
FILES = ("photo", "video", "document", "audio", "voice", "sticker", "animation")


class Column(NamedTuple):
    """A column of a shard, or a field of a structure in one.

    ``kind``: string, int32, int64, bool, seconds (a moment in UTC), or the fields of a structure. ``many``: a list of
    them; it may be empty, and is never null.
    """

    name: str
    kind: str | tuple[Column, ...]
    null: bool = False
    many: bool = False


ENTITY = (Column("type", "string"), Column("offset", "int32"), Column("length", "int32"), Column("url", "string", True))
REACTION = (Column("emoji", "string"), Column("count", "int64"))
#: The one description of a shard: the schema of those who write shards and of those who read them is made from it.
COLUMNS = (
    Column("id", "int64"),
    Column("channel", "string"),
    Column("channel_id", "int64", null=True),
    Column("version", "int32"),
    Column("deleted", "bool"),
    Column("date", "seconds", null=True),
    Column("edit_date", "seconds", null=True),
    Column("text", "string"),
    Column("entities", ENTITY, many=True),
    Column("links", "string", many=True),
    Column("views", "int64", null=True),
    Column("forwards", "int64", null=True),
    Column("replies", "int64", null=True),
    Column("reactions", REACTION, many=True),
    Column("reply_to", "int64", null=True),
    Column("album_id", "int64", null=True),
    Column("media", "string", null=True),
    Column("media_count", "int32"),
    Column("forwarded_from", "string", null=True),
    Column("via_bot", "string", null=True),
    Column("poll", "bool"),
    Column("invoice", "bool"),
    Column("service", "string", null=True),
    Column("author", "string", null=True),
    Column("permalink", "string", null=True),
)


@dataclass(slots=True)
class Post:
    """One version of a post; the module's docstring describes the fields. ``date`` and ``edit_date`` are aware."""

    id: int
    channel: str
    text: str = ""
    channel_id: int | None = None
    version: int = 1
    deleted: bool = False
    date: datetime | None = None
    edit_date: datetime | None = None
    #: ``{"type", "offset", "length", "url"}`` each, in code points
    entities: list[dict[str, Any]] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    views: int | None = None
    forwards: int | None = None
    replies: int | None = None
    reactions: list[dict[str, Any]] = field(default_factory=list)  # ``{"emoji", "count"}`` each
    reply_to: int | None = None
    album_id: int | None = None
    media: str | None = None
    media_count: int = 0
    forwarded_from: str | None = None
    via_bot: str | None = None
    poll: bool = False
    invoice: bool = False
    service: str | None = None
    author: str | None = None
    permalink: str | None = None


def fetch_shards(store: ArtifactStore, manifest: Manifest, folder: Path) -> list[Path]:
    """Download and verify an artefact's shards; their paths in the artefact's order."""
    store.download(manifest.ref, folder, SHARDS, manifest=manifest)
    return [folder / entry.path for entry in manifest.matching(SHARDS)]


def utf16_spans(text: str, spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Convert (offset, length) from UTF-16 code units, which Telegram counts, to code points of a Python string.

    A span that ends beyond the text is cut there; one that begins or ends within a surrogate pair is widened to
    the whole character.
    """
    spans = list(spans)
    if not spans:
        return []
    if utf16_length(text) == len(text):  # both counts are the same
        size = len(text)
        if all(o >= 0 and n >= 0 and o + n <= size for o, n in spans):
            return spans
        bounds = [(min(max(o, 0), size), min(max(o + n, 0), size)) for o, n in spans]
        return [(start, max(end - start, 0)) for start, end in bounds]
    starts = [0]  # where each code point begins, in units; the last one is the end of the text
    for char in text:
        starts.append(starts[-1] + (2 if char > "\uffff" else 1))
    found = []
    for offset, length in spans:
        start = min(bisect_right(starts, max(offset, 0)) - 1, len(text))
        end = min(bisect_left(starts, max(offset + length, 0)), len(text))
        found.append((start, max(end - start, 0)))
    return found


def utf16_length(text: str) -> int:
    """How many UTF-16 code units a text has."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
