"""A connection to Telegram for one scrape: requests with bounded patience, under a lock on the session."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from telethon import TelegramClient, errors, functions
from telethon.sessions import StringSession
from telethon.tl import TLRequest, types

from jobs.artifacts import Lease
from jobs.scrape import decode
from jobs.specs import BugurtError, ConfigError, Interrupted, ScrapeSpec, TemporaryError
from jobs.stage import StageContext
from jobs.telegram import LOGIN, TelegramSettings, duration, explain, make_client

SHORT_FLOOD = 60  # seconds that are slept here; what is longer is for the Job's next try
MAX_FLOODS = 20  # short waits in a row for one request
MAX_FAILURES = 5  # of Telegram's own, in a row for one request
DIALOGS = 100  # a page


def lock_name(settings: TelegramSettings) -> str:
    """The name of the lease on a session: a digest of its auth key, which other machines compute alike."""
    key = StringSession(settings.session).auth_key
    assert key is not None
    return f"telegram/{hashlib.sha256(key.key).hexdigest()[:20]}"


class Session:
    """Use with ``async with``. ``stopped`` is set (in the event loop) once a signal has arrived."""

    def __init__(self, ctx: StageContext[ScrapeSpec], settings: TelegramSettings, lease: Lease) -> None:
        self._ctx, self._settings, self._lease = ctx, settings, lease
        self._takeout: int | None = None
        self.account_id = 0
        self.stopped = asyncio.Event()
        self._reading = decode.installed()
        self.client: TelegramClient = make_client(
            StringSession(settings.session), settings.api_id, settings.api_hash, settings.proxy
        )

    async def __aenter__(self) -> Session:
        self._watch_signals()
        self._reading.__enter__()
        try:
            await self._unless_stopped(self._guarded(self.client.connect))
            me = await self._patiently(self.client.get_me, "users.GetUsers")
            if me is None:
                raise ConfigError(f"the Telegram session is not logged in (any more); {LOGIN} again")
            self.account_id = me.id
        except BaseException:
            await self._disconnect()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        await self._disconnect()

    async def _disconnect(self) -> None:
        try:
            async with asyncio.timeout(10):
                await self.client.disconnect()
        except (OSError, TimeoutError) as error:
            self._ctx.log.debug("disconnecting: %s", error)
        finally:
            self._reading.__exit__(None, None, None)

    def _watch_signals(self) -> None:
        """The handler of a signal runs between two bytecodes and wakes no event loop; a thread does."""
        loop = asyncio.get_running_loop()

        def wait() -> None:
            self._ctx.stop.wait()
            if not loop.is_closed():
                loop.call_soon_threadsafe(self.stopped.set)

        threading.Thread(target=wait, name="signals", daemon=True).start()

    # -- requests

    async def call(self, request: TLRequest) -> Any:
        """Send a request.

        Short flood waits and Telegram's own troubles are waited for; raises TemporaryError when it takes too
        long, ConfigError for what no waiting helps, Interrupted after a signal, and what is about the request
        itself as Telethon's own error.
        """
        if self._takeout is not None:
            request = functions.InvokeWithTakeoutRequest(self._takeout, request)
        return await self._patiently(lambda: self.client(request), type(request).__name__)

    async def _patiently(self, work: Callable[[], Awaitable[Any]], name: str) -> Any:
        floods = failures = 0
        while True:
            await self._check()
            try:
                return await self._unless_stopped(self._guarded(work))
            except TemporaryError as error:
                cause = error.__cause__
                if isinstance(cause, errors.FloodWaitError | errors.FloodPremiumWaitError):
                    floods += 1
                    if cause.seconds > SHORT_FLOOD or floods > MAX_FLOODS:
                        raise
                    pause: float = max(cause.seconds, 1)
                elif isinstance(cause, errors.ServerError | errors.TimedOutError | errors.RpcCallFailError):
                    failures += 1
                    if failures >= MAX_FAILURES:
                        raise
                    pause = 0.5 * 2**failures
                else:
                    raise
                self._ctx.log.info("Telegram asks to wait %s (%s)", duration(pause), name)
                self._ctx.progress.update(message=f"waiting {duration(pause)} as Telegram asks")
                await self._pause(pause)

    async def _guarded(self, work: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await work()
        except Exception as error:
            told = error if isinstance(error, BugurtError) else explain(error)
            if told is None:
                raise
            raise told from error

    async def _unless_stopped(self, work: Awaitable[Any]) -> Any:
        """Wait for an answer, but no longer than until a signal arrives."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self.stopped.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Interrupted("interrupted by a signal")
            return task.result()
        finally:
            stop.cancel()
            if not task.done():
                task.cancel()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.stopped.wait()
        except TimeoutError:
            return
        raise Interrupted("interrupted by a signal")

    async def _check(self) -> None:
        """Nothing goes out while another may be using the session."""
        self._ctx.check_stop()
        if self._lease.in_doubt:
            await self._unless_stopped(_aside(self._lease.ensure))

    async def chats(self) -> AsyncIterator[Any]:
        """The chats and channels that the account is in."""
        date, number, peer = None, 0, types.InputPeerEmpty()
        while True:
            found = await self.call(
                functions.messages.GetDialogsRequest(date, number, peer, limit=DIALOGS, hash=0, exclude_pinned=False)
            )
            for chat in found.chats:
                yield chat
            if not isinstance(found, types.messages.DialogsSlice) or not found.dialogs:
                return
            last = found.dialogs[-1]
            key = _peer_id(last.peer)
            newest = next((m for m in found.messages if _peer_id(m.peer_id) == key and m.id == last.top_message), None)
            known = {c.id: c for c in found.chats if isinstance(c, types.Channel)}
            date, number = getattr(newest, "date", None), last.top_message
            chat = known.get(getattr(last.peer, "channel_id", 0))
            peer = types.InputPeerChannel(chat.id, chat.access_hash) if chat else types.InputPeerEmpty()
            if date is None and chat is None:
                return

    # -- takeout

    async def begin_takeout(self) -> None:
        """Requests go by Telegram's rules for exports from now on: fewer flood waits."""
        answer = await self.call(functions.account.InitTakeoutSessionRequest(message_channels=True))
        self._takeout = answer.id

    async def end_takeout(self, *, success: bool) -> None:
        """Close it; Telegram forgets one that is left open by itself."""
        if self._takeout is None:
            return
        try:
            await self.call(functions.account.FinishTakeoutSessionRequest(success=success))
        except (BugurtError, errors.RPCError) as error:
            self._ctx.log.warning("the takeout could not be closed: %s", error)
        self._takeout = None


def _peer_id(peer: Any) -> tuple[str, int]:
    for name in ("channel_id", "chat_id", "user_id"):
        if hasattr(peer, name):
            return name, getattr(peer, name)
    return "", 0


def _aside(call: Callable[[], None]) -> asyncio.Future[None]:
    """Call it in a thread that nobody waits for at the end, unlike those of asyncio's own."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: Exception | None) -> None:
        if done.done():  # given up
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def work() -> None:
        error: Exception | None = None
        try:
            call()
        except Exception as found:
            error = found
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, error)

    threading.Thread(target=work, name="aside", daemon=True).start()
    return done
