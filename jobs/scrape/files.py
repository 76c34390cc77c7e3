"""Scrape from files that were handed in: which of them is read, as what, and into which posts."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from jobs.artifacts import FileEntry, Manifest
from jobs.record import Post
from jobs.scrape.archive import open_archive
from jobs.scrape.base import Base
from jobs.scrape.desktop import find_chat, read_chat
from jobs.scrape.met import Met
from jobs.scrape.plain import read_jsonl, read_text
from jobs.scrape.shards import ShardWriter
from jobs.scrape.tolerant import Opener
from jobs.scrape.window import Window
from jobs.specs import DataError, ScrapeSpec
from jobs.stage import StageContext

Context = StageContext[ScrapeSpec]

PEEK = 4096
ZIP_SIGNS = (b"PK\x03\x04", b"PK\x05\x06")  # a member comes first, or the end of an archive without any
_FORMATS = {".json": "desktop", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text"}


def run(ctx: Context) -> str | None:
    """Read ``spec.source`` and commit its posts; the parent's reference when nothing is new."""
    source = ctx.input("source")
    base = Base.of(ctx)
    where, opener, size = _open(ctx, source)
    found = _read(ctx, source, where, opener, size)
    channel = base.check_channel(found.name, found.channel_id)
    out = ShardWriter(ctx, base)
    met = _merge(ctx, found, channel, base, out)
    if not out.rows:
        if base.ref is not None:
            ctx.log.info("nothing is new in %s since %s", where, base.ref)
            return base.ref
        raise DataError(f"{where} holds no posts" + (" within the limits that were given" if met else ""))
    info = {
        "channel": channel,
        "channel_id": found.channel_id,
        "newest_id": max(base.newest_id, out.cursor),
        "source": found.kind,
        "title": found.name,
    }
    out.commit(info=info, base=base)
    if found.kind == "text" and met == 1:
        ctx.log.warning("all of %s is one post: an empty line parts posts, or the line that 'separator' names", where)
    ctx.log.info("%d posts and %d service messages from %s", out.counts["posts"], out.counts["service"], where)
    return None


@dataclass(frozen=True)
class _Found:
    """What a file turned out to be: its posts, its format, the channel's name and number."""

    posts: Iterator[Post]
    kind: str
    name: str
    channel_id: int | None
    where: str


def _merge(ctx: Context, found: _Found, channel: str, base: Base, out: ShardWriter) -> int:
    """Add what is new or changed. Returns the number of records met."""
    window = Window.of(ctx.spec)
    start, known = base.resync(ctx, window)
    met = nameless = 0
    seen = Met()
    template: Post | None = None
    newest = base.newest_id
    whole = True  # whether the file was read to its end, so that what was not met is gone
    for post in found.posts:
        ctx.check_stop()
        met += 1
        post.channel = channel
        template = post
        if post.id < 1:
            nameless += 1
            continue
        if not window.accepts(post):
            continue
        if post.id <= base.newest_id:
            if start is None or post.date is None or post.date < start:
                continue
            changed = known.compare(post)
            if changed is not None:
                out.add(changed, newest)
            continue
        if window.limit is not None and post.service is None and out.counts["posts"] >= window.limit:
            whole = False
            break
        # What stands there twice, as in exports that were put together by hand, is a post and its newer version.
        post.version += seen.before(post.id)
        parts = post.media_count if found.kind == "desktop" else 1  # an album's parts are numbered on
        newest = max(newest, post.id + max(parts - 1, 0))
        out.add(post, newest)
        if out.rows % 1000 == 0:
            ctx.progress.update(message=f"reading {found.where}", done=out.counts["posts"], unit="posts")
    if nameless:
        # A supergroup's export has its past as a small group under negative numbers, which mean nothing to Telegram.
        ctx.log.warning("%d messages without a number of their own (below 1) are left out", nameless)
    if template is not None and whole:
        for number in known.gone_before(None):
            out.add(known.deletion(number, template), newest)
    return met


def _open(ctx: Context, source: Manifest) -> tuple[str, Opener, int]:
    """The one file to read: its name for errors, its opener, its size in bytes (packed, in an archive)."""
    entry = _choose(source)
    name = str(source.info.get("name") or "")
    where = name if len(source.files) == 1 and name else entry.path
    with ctx.store.open(source.ref, entry) as raw:
        head = raw.read(PEEK)
    if not head:
        raise DataError(f"{where} is empty")
    if not head.startswith(ZIP_SIGNS):
        return where, lambda: ctx.store.open(source.ref, entry), entry.size
    local = ctx.workdir / "source"
    ctx.store.download(source.ref, local, entry.path, manifest=source)
    inside, opener = open_archive(local / entry.path, where)
    return inside, opener, entry.size


def _choose(source: Manifest) -> FileEntry:
    if not source.files:
        raise DataError(f"{source.ref} holds no files; hand in a Telegram Desktop export, a .jsonl or a .txt file")
    named = [e for e in source.files if PurePosixPath(e.path).name == "result.json"]
    if len(named) == 1:
        return named[0]
    if len(source.files) == 1:
        return source.files[0]
    names = ", ".join(e.path[:80] for e in source.files[:5])
    raise DataError(
        f"{source.ref} holds {len(source.files)} files ({names} …) and not one result.json; hand in one file"
    )


def _read(ctx: Context, source: Manifest, where: str, opener: Opener, size: int) -> _Found:
    spec = ctx.spec
    # In the bucket a file may have another name than its owner gave it; either may tell what it is.
    kind = _format(spec, [where.rpartition(", ")[2], *(e.path for e in source.files)], where, opener)
    if spec.chat is not None and kind != "desktop":
        raise DataError(f"{where} is no Telegram Desktop export, so it has no chats; leave the option 'chat' out")
    advance = _Progress(ctx, size)
    if kind == "desktop":
        chat = find_chat(opener, where, spec.chat)
        ctx.log.info("reading the chat %s from %s", chat.label, where)
        return _Found(read_chat(opener, where, chat, advance=advance), kind, chat.label, chat.id, where)
    name = PurePosixPath(str(source.info.get("name") or where)).stem or "posts"
    if kind == "jsonl":
        posts = read_jsonl(opener, where, name, advance=advance)
    else:
        posts = read_text(opener, where, name, spec.separator, advance=advance)
    return _Found(posts, kind, name, None, where)


def _format(spec: ScrapeSpec, names: list[str], where: str, opener: Opener) -> str:
    if spec.format != "auto":
        return spec.format
    known = next((_FORMATS[s] for n in names if (s := PurePosixPath(n).suffix.lower()) in _FORMATS), None)
    if known is not None:
        return known
    with opener() as raw:
        return _guess(raw, where)


def _guess(raw: BinaryIO, where: str) -> str:
    head = raw.read(PEEK).removeprefix(codecs.BOM_UTF8).lstrip()
    first = head.partition(b"\n")[0]
    if head.startswith(b"{"):
        return "jsonl" if first.rstrip().endswith(b"}") and b'"messages"' not in first else "desktop"
    if head.lower().startswith((b"<!doctype", b"<html")):
        raise DataError(f"{where} is an HTML page; export again with the format 'Machine-readable JSON'")
    if b"\0" in head:
        raise DataError(f"{where} is neither an export, nor JSON Lines, nor text")
    return "text"


class _Progress:
    """Turns the bytes that were read into a share for the user's eyes, at most once a hundredth."""

    def __init__(self, ctx: Context, size: int) -> None:
        self._ctx, self._size, self._shown = ctx, max(size, 1), -1

    def __call__(self, consumed: int) -> None:
        share = min(100 * consumed // self._size, 100)
        if share != self._shown:
            self._shown = share
            self._ctx.progress.update(read_percent=share)
