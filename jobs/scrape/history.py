"""A channel's history, oldest first, page by page, each page asked for while the one before it is worked on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from telethon import functions

from jobs.scrape.session import Session

PAGE = 100  # Telegram gives no more, whatever is asked for
TURNS = 8  # of the event loop, in which a request passes through Telethon's queues and leaves


@dataclass(frozen=True)
class Page:
    """Messages with ascending ids, and the chats and users that they mention."""

    messages: list[Any]
    chats: list[Any]
    users: list[Any]


class History:
    """``top``: the newest message's id when ``measure`` was called; ``total``: how many messages there are."""

    def __init__(self, session: Session, peer: Any) -> None:
        self._session, self._peer = session, peer
        self.top = 0
        self.total = 0

    async def measure(self) -> None:
        """Ask for the newest message; the walk ends there, whatever is posted meanwhile."""
        found = await self._ask(limit=1)
        self.top = max((m.id for m in found.messages), default=0)
        self.total = getattr(found, "count", len(found.messages))

    async def _ask(
        self, *, offset_id: int = 0, offset_date: datetime | None = None, add_offset: int = 0, limit: int = PAGE
    ) -> Any:
        return await self._session.call(
            functions.messages.GetHistoryRequest(
                peer=self._peer,
                offset_id=offset_id,
                offset_date=offset_date,
                add_offset=add_offset,
                limit=limit,
                max_id=0,
                min_id=0,
                hash=0,
            )
        )

    async def before(self, start: datetime) -> int:
        """The id of the last message from before a time; 0 when there is none."""
        found = await self._ask(offset_date=start, limit=1)
        return max((m.id for m in found.messages), default=0)

    async def _page(self, after: int) -> Page | None:
        """The first messages with ids above ``after``; None at the end.

        Telegram may leave out messages of a page, even all of them, so that a short or empty page says nothing
        of the end: only ``top`` does.
        """
        skipped = 0
        while after + skipped < self.top:
            # An offset names a place in the history, newest first; a negative one more is the page before that.
            found = await self._ask(offset_id=after + 1, add_offset=-PAGE - skipped)
            messages = sorted((m for m in found.messages if m.id > after), key=lambda m: m.id)
            if messages:
                return Page(messages, found.chats, found.users)
            skipped += PAGE
        return None

    async def pages(self, after: int) -> AsyncGenerator[Page, None]:
        """All pages of messages with ids above ``after``."""
        task = asyncio.ensure_future(self._page(after))
        try:
            while (page := await task) is not None:
                task = asyncio.ensure_future(self._page(page.messages[-1].id))
                for _ in range(TURNS):
                    await asyncio.sleep(0)
                yield page
        finally:
            if not task.done():
                task.cancel()
            elif not task.cancelled():
                task.exception()  # whoever stopped early does not want it
