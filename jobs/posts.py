"""Posts: the record that every source becomes, its Parquet schema, and how to read the latest versions.

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

import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.artifacts import ArtifactStore, Manifest
from jobs.specs import DataError

SHARDS = "part-*.parquet"
BATCH_ROWS = 4096
#: Kinds of media that are files and count in ``media_count``.
FILES = ("photo", "video", "document", "audio", "voice", "sticker", "animation")

_TIME = pa.timestamp("s", tz="UTC")
ENTITY = pa.struct(
    [
        pa.field("type", pa.string(), nullable=False),
        pa.field("offset", pa.int32(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("url", pa.string()),
    ]
)
REACTION = pa.struct([pa.field("emoji", pa.string(), nullable=False), pa.field("count", pa.int64(), nullable=False)])
POST_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("channel", pa.string(), nullable=False),
        pa.field("channel_id", pa.int64()),
        pa.field("version", pa.int32(), nullable=False),
        pa.field("deleted", pa.bool_(), nullable=False),
        pa.field("date", _TIME),
        pa.field("edit_date", _TIME),
        pa.field("text", pa.string(), nullable=False),
        pa.field("entities", pa.list_(ENTITY), nullable=False),
        pa.field("links", pa.list_(pa.string()), nullable=False),
        pa.field("views", pa.int64()),
        pa.field("forwards", pa.int64()),
        pa.field("replies", pa.int64()),
        pa.field("reactions", pa.list_(REACTION), nullable=False),
        pa.field("reply_to", pa.int64()),
        pa.field("album_id", pa.int64()),
        pa.field("media", pa.string()),
        pa.field("media_count", pa.int32(), nullable=False),
        pa.field("forwarded_from", pa.string()),
        pa.field("via_bot", pa.string()),
        pa.field("poll", pa.bool_(), nullable=False),
        pa.field("invoice", pa.bool_(), nullable=False),
        pa.field("service", pa.string()),
        pa.field("author", pa.string()),
        pa.field("permalink", pa.string()),
    ]
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


def to_batch(posts: Sequence[Post]) -> pa.RecordBatch:
    """Posts as one batch of POST_SCHEMA."""
    columns = [pa.array([getattr(p, f.name) for p in posts], type=f.type) for f in POST_SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=POST_SCHEMA)


def open_shard(path: Path) -> pq.ParquetWriter:
    """A shard to be written batch by batch, BATCH_ROWS rows each but the last, so that equal posts give equal bytes."""
    return pq.ParquetWriter(path, POST_SCHEMA, compression="zstd", compression_level=3)


def write_shard(posts: Sequence[Post], path: Path) -> None:
    """Write a shard at once. The same posts always give the same bytes with the same version of pyarrow."""
    with open_shard(path) as file:
        for start in range(0, len(posts), BATCH_ROWS):
            file.write_batch(to_batch(posts[start : start + BATCH_ROWS]))


def read_posts(store: ArtifactStore, ref: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The latest version of every post of a ``posts`` artefact, without deleted ones, as batches.

    ``columns``: names out of POST_SCHEMA, None for all. Order: that of the shards, within a shard that of its
    rows; a post that was edited stands where its newest version does. Memory: one batch, and some 30 bytes a
    row for the search of the latest versions; the shards lie in a temporary folder until the end.

    Raises NotFoundError when there is no such artefact, and DataError when it is damaged.
    """
    manifest = store.manifest(ref)
    with tempfile.TemporaryDirectory(prefix="bugurt-posts-") as folder:
        yield from latest_posts(fetch_shards(store, manifest, Path(folder)), columns)


def fetch_shards(store: ArtifactStore, manifest: Manifest, folder: Path) -> list[Path]:
    """Download and verify an artefact's shards; their paths in the artefact's order."""
    store.download(manifest.ref, folder, SHARDS, manifest=manifest)
    return [folder / entry.path for entry in manifest.matching(SHARDS)]


def latest_posts(shards: Sequence[Path], columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """As ``read_posts``, over shards that lie in files, given in their order."""
    wanted = POST_SCHEMA.names if columns is None else list(columns)
    unknown = sorted(set(wanted) - set(POST_SCHEMA.names))
    if unknown:
        raise ValueError(f"posts have no column {', '.join(unknown)}")
    if not shards:
        return
    keep = _latest_rows(shards)
    first = done = 0  # number of the batch's first row; rows of ``keep`` that are used up
    for batch in _batches(shards, wanted):
        # ``keep`` is sorted, so this batch's rows are the next few of it.
        near = keep.slice(done, batch.num_rows)
        count = pc.sum(pc.less(near, first + batch.num_rows)).as_py() or 0
        if count == batch.num_rows:
            yield batch
        elif count:
            yield batch.take(pc.subtract(near.slice(0, count), first))
        first += batch.num_rows
        done += count


def _latest_rows(shards: Sequence[Path]) -> pa.Int64Array:
    """Numbers (over all shards) of the rows that are their post's latest and not deleted, ascending."""
    parts = [pa.Table.from_batches([b]) for b in _batches(shards, ["channel", "id", "deleted"])]
    if not parts:
        return pa.array([], pa.int64())
    keys = pa.concat_tables(parts)
    keys = keys.append_column("row", pa.array(range(keys.num_rows), pa.int64()))
    newest = keys.group_by(["channel", "id"]).aggregate([("row", "max")])["row_max"].combine_chunks()
    newest = newest.take(pc.sort_indices(newest))
    alive = pc.invert(keys["deleted"].take(newest))
    return cast(pa.Int64Array, pa.chunked_array([newest]).filter(alive).combine_chunks())


def _batches(shards: Iterable[Path], columns: list[str]) -> Iterator[pa.RecordBatch]:
    for path in shards:
        try:
            with pq.ParquetFile(path) as file:
                missing = [n for n in columns if n not in file.schema_arrow.names]
                if missing:
                    raise DataError(f"{path.name} has no column {missing[0]!r}; it is no shard of posts")
                schema = pa.schema([POST_SCHEMA.field(n) for n in columns])  # Parquet itself has no whole seconds
                for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                    yield batch.select(columns).cast(schema)
        except pa.ArrowInvalid as error:
            raise DataError(f"{path.name} is no readable Parquet file: {str(error)[:200]}") from error


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
