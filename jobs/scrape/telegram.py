"""Scrape a channel from Telegram: find it, walk its history, keep what is new or changed."""

from __future__ import annotations

import asyncio
from typing import Any

from telethon import errors

from jobs.record import Post
from jobs.scrape.base import Base, Known
from jobs.scrape.convert import Converter, join_album
from jobs.scrape.history import History, Page
from jobs.scrape.resolve import Entity, EntityCache, Target, parse_target, resolve, unreachable
from jobs.scrape.session import Session, lock_name
from jobs.scrape.shards import ShardWriter
from jobs.scrape.window import Window
from jobs.specs import BugurtError, ConfigError, DataError, ScrapeSpec, SpecError
from jobs.stage import StageContext
from jobs.telegram import TelegramSettings

Context = StageContext[ScrapeSpec]


def run(ctx: Context) -> str | None:
    """Scrape ``spec.channel`` and commit its posts; the parent's reference when nothing is new."""
    if ctx.spec.channel is None:
        raise SpecError("the scrape spec needs the field 'channel'")
    target = parse_target(ctx.spec.channel)
    settings = TelegramSettings.from_env()
    base = Base.of(ctx)
    ctx.handle_stop()
    told: set[str] = set()

    def waiting(sentence: str) -> None:
        ctx.check_stop()
        if sentence not in told:
            told.add(sentence)
            ctx.log.info("the Telegram session is in use; %s", sentence)
            ctx.progress.update(message="waiting: another scrape uses the Telegram session")

    # A session that is used from two places at once is ended by Telegram for good.
    with ctx.store.lease(lock_name(settings), holder=f"the scrape of run {ctx.run}", waiting=waiting) as lease:
        return asyncio.run(_scrape(ctx, settings, lease, target, base))


async def _scrape(ctx: Context, settings: TelegramSettings, lease: Any, target: Target, base: Base) -> str | None:
    shown = str(ctx.spec.channel)
    async with Session(ctx, settings, lease) as session:
        cache = EntityCache(ctx.store.bucket, session.account_id)
        try:
            entity, history = await _open(session, cache, target, shown)
            walk = Walk(ctx, session, base, entity)
            if ctx.spec.takeout:
                await session.begin_takeout()
            success = False
            try:
                await walk.run(history)
                success = True
            finally:
                if not ctx.stop.is_set():
                    await session.end_takeout(success=success)
        except errors.RPCError as error:
            raise unreachable(error, shown) or ConfigError(
                f"Telegram refuses to give {shown}: {_plain(error)}; look at the channel in the app"
            ) from error
    return walk.finish(shown)


def _plain(error: errors.RPCError) -> str:
    return " ".join(str(error).split())[:200]


async def _open(session: Session, cache: EntityCache, target: Target, shown: str) -> tuple[Entity, History]:
    """The channel, out of the cache if it is there and still right, and the measured history."""
    known = cache.get(target)
    entity = known or await resolve(session, target, shown)
    history = History(session, entity.peer)
    try:
        await history.measure()
    except (errors.ChannelInvalidError, errors.PeerIdInvalidError):
        if known is None:
            raise
        cache.forget(target)
        return await _open(session, cache, target, shown)
    if known is None:
        cache.put(target, entity)
    return entity, history


class Walk:
    """One pass over a history: what is new is added, what was there is compared, what is missing is gone."""

    def __init__(self, ctx: Context, session: Session, base: Base, entity: Entity) -> None:
        self._ctx, self._session, self._base, self._entity = ctx, session, base, entity
        self._window = Window.of(ctx.spec)
        label = base.check_channel(entity.label, entity.channel_id)
        self._template = Post(0, label, channel_id=entity.channel_id)
        self._convert = Converter(label, entity.channel_id, entity.username)
        self._out = ShardWriter(ctx, base)
        self._known = Known({})
        self._album: Post | None = None  # the newest post while more parts of it may come
        self._last = 0  # the last message id of that post
        self._full = False  # the window's end or the limit was reached

    async def run(self, history: History) -> None:
        """Walk from where the parent, or a killed attempt, ended up to the newest message."""
        start, self._known = await asyncio.to_thread(self._base.resync, self._ctx, self._window)
        if await asyncio.to_thread(self._out.resume):
            after = self._out.cursor
            self._known.skip_to(after)
            self._ctx.log.info("going on after message %d, %d rows are kept", after, self._out.rows)
        elif start is not None:
            after = await history.before(start)
        else:
            after = max(self._base.newest_id, self._window.after)
            if not after and self._window.start is not None:
                after = await history.before(self._window.start)
        try:
            await self._walk(history, after)
        except BaseException:
            # what was read so far is the next attempt's start, whatever went wrong
            await asyncio.to_thread(self._keep)
            raise

    async def _walk(self, history: History, after: int) -> None:
        pages = history.pages(after)
        try:
            async for page in pages:
                await self._take(page)
                self._ctx.progress.update(
                    message=f"reading {self._template.channel}",
                    done=self._base.posts + self._out.counts["posts"],
                    total=max(history.total, self._base.posts + self._out.counts["posts"]),
                    unit="posts",
                )
                if self._full:
                    break
        finally:
            await pages.aclose()
        await self._end()

    async def _take(self, page: Page) -> None:
        self._convert.learn(page.chats, page.users)
        for message in page.messages:
            post = self._convert.post(message)
            if post is None:
                continue
            album = self._album
            if album is not None and post.album_id is not None and post.album_id == album.album_id:
                join_album(album, post)
                self._last = post.id
                continue
            if album is not None:
                await self._emit(album, self._last)
                if self._full:
                    self._album = None
                    return
            self._album, self._last = post, post.id

    async def _emit(self, post: Post, last: int) -> None:
        """Add a whole post whose last message is ``last``."""
        if self._window.passed(post):
            self._full = True
            return
        if not self._window.accepts(post):
            return
        for number in self._known.gone_before(post.id):
            await self._add(self._known.deletion(number, self._template), number)
        if post.id <= self._base.newest_id:
            changed = self._known.compare(post)
            if changed is not None:
                await self._add(changed, last)
            return
        limit = self._window.limit
        if limit is not None and post.service is None and self._out.counts["posts"] >= limit:
            self._full = True
            return
        await self._add(post, last)

    async def _add(self, post: Post, last: int) -> None:
        if self._out.hold(post, last):
            # In a thread, for a shard's upload must not keep the connection from being served.
            await asyncio.to_thread(self._out.write)

    async def _end(self) -> None:
        if self._album is not None:
            await self._emit(self._album, self._last)
            self._album = None
        if not self._full or self._window.limit is None:
            for number in self._known.gone_before(None):
                await self._add(self._known.deletion(number, self._template), number)

    def _keep(self) -> None:
        try:
            if self._out.rows:
                self._out.save()
        except BugurtError as error:
            self._ctx.log.warning("what was read since the last shard could not be kept: %s", error)

    def finish(self, shown: str) -> str | None:
        """Commit, once the connection is closed."""
        out, base = self._out, self._base
        if not out.rows:
            if base.ref is not None:
                self._ctx.log.info("nothing is new in %s since %s", shown, base.ref)
                return base.ref
            raise DataError(f"{shown} has no posts" + (" within the limits that were given" if self._limited else ""))
        info = {
            "channel": self._template.channel,
            "channel_id": self._entity.channel_id,
            "newest_id": max(base.newest_id, out.cursor),
            "source": "telegram",
            "title": self._entity.title,
        }
        out.commit(info=info, base=base)
        counts = out.counts
        self._ctx.log.info(
            "%d new posts, %d edited, %d deleted, %d service messages from %s",
            counts["posts"], counts["edited"], counts["deleted"], counts["service"], shown,
        )  # fmt: skip
        return None

    @property
    def _limited(self) -> bool:
        window = self._window
        return any((window.start, window.end, window.after, window.before))
