"""Logging in to Telegram and out again, over a Telethon client; what is asked of the user comes by callbacks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from telethon import errors, functions
from telethon.sessions import StringSession

from jobs.specs import BugurtError, ConfigError, TemporaryError
from jobs.telegram import duration, explain, make_client

TRIES = 3  # for a code or a password typed wrong
QR_MINUTES = 5.0  # until a code that nobody scans is given up

Ask = Callable[[str], str]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Login:
    """How to log in. ``phone`` None: by QR code."""

    api_id: int
    api_hash: str = field(repr=False)
    proxy: str | None = field(default=None, repr=False)
    phone: str | None = None


@dataclass(frozen=True)
class Account:
    """Who is logged in, and the session string."""

    name: str
    username: str | None
    session: str = field(repr=False)


def _account(me: Any, session: str) -> Account:
    name = " ".join(p for p in (me.first_name, me.last_name) if p) or str(me.id)
    return Account(name, me.username, session)


def translate(error: BaseException) -> BugurtError | None:
    """What an error of a login means, or None."""
    e = errors
    if isinstance(error, e.PhoneNumberInvalidError):
        return ConfigError("Telegram knows no such phone number; write it with the country's code: +79991234567")
    if isinstance(error, e.PhoneNumberUnoccupiedError):
        return ConfigError("no account has this phone number; make one in the Telegram app first")
    if isinstance(error, e.PhoneNumberFloodError | e.PhonePasswordFloodError | e.PhonePasswordProtectedError):
        return TemporaryError("Telegram has had too many logins with this number; try again tomorrow, or use --qr")
    if isinstance(error, e.PhoneCodeExpiredError):
        return ConfigError("the code has expired; run 'bugurt login' again and type the new one at once")
    if isinstance(error, e.SendCodeUnavailableError):
        return TemporaryError("Telegram sends no more codes for now; wait a while, or use --qr")
    return explain(error)


async def log_in(login: Login, *, ask: Ask, ask_secretly: Ask, show_qr: Say) -> Account:
    """Log in and give the session. Raises ConfigError or TemporaryError with one sentence."""
    session = StringSession()
    client = make_client(
        session, login.api_id, login.api_hash, login.proxy, receive_updates=True, flood_sleep_threshold=5
    )
    try:
        await client.connect()
        try:
            if login.phone is None:
                await _by_qr(client, show_qr)
            else:
                await _by_code(client, login.phone, ask)
        except errors.SessionPasswordNeededError:
            await _by_password(client, ask_secretly)
        return _account(await client.get_me(), client.session.save())
    except Exception as error:
        told = error if isinstance(error, BugurtError) else translate(error)
        if told is None and isinstance(error, errors.RPCError):
            told = ConfigError(f"Telegram refuses the login: {' '.join(str(error).split())[:200]}")
        if told is None:
            raise
        raise told from error
    finally:
        await client.disconnect()


async def _by_code(client: Any, phone: str, ask: Ask) -> None:
    await client.send_code_request(phone)
    for _ in range(TRIES):
        code = ask("the code that Telegram sent you (in the app, or by SMS)")
        try:
            await client.sign_in(phone, code)
            return
        except (errors.PhoneCodeInvalidError, errors.PhoneCodeEmptyError):
            continue
    raise ConfigError(f"the code was wrong {TRIES} times; run 'bugurt login' again")


async def _by_password(client: Any, ask_secretly: Ask) -> None:
    for _ in range(TRIES):
        password = ask_secretly("your two-step verification password")
        try:
            await client.sign_in(password=password)
            return
        except errors.PasswordHashInvalidError:
            continue
    raise ConfigError(f"the password was wrong {TRIES} times; run 'bugurt login' again")


async def _by_qr(client: Any, show_qr: Say) -> None:
    qr = await client.qr_login()
    ends = asyncio.get_running_loop().time() + 60 * QR_MINUTES
    while True:
        scanned = asyncio.ensure_future(qr.wait())
        await asyncio.sleep(0)  # let it listen before anybody can scan
        show_qr(qr.url)
        try:
            await scanned
            return
        except TimeoutError:  # a code lives half a minute
            if asyncio.get_running_loop().time() > ends:
                raise ConfigError(f"nobody scanned the code for {duration(60 * QR_MINUTES)}; try again") from None
            await qr.recreate()
            if await client.get_me() is not None:  # scanned in the last moment
                return


def _saved_client(values: dict[str, str]) -> Any:
    """A client, not yet connected, of the saved session."""
    return make_client(
        StringSession(values["BUGURT_TELEGRAM_SESSION"]),
        int(values["BUGURT_TELEGRAM_API_ID"]),
        values["BUGURT_TELEGRAM_API_HASH"],
        values.get("BUGURT_TELEGRAM_PROXY"),
    )


async def who(values: dict[str, str]) -> Account | None:
    """Whose the saved session is; None when it is not logged in (any more)."""
    client = _saved_client(values)
    try:
        await client.connect()
        me = await client.get_me()
        return _account(me, values["BUGURT_TELEGRAM_SESSION"]) if me else None
    except Exception as error:
        _dead_or_raise(error)
        return None
    finally:
        await client.disconnect()


async def log_out(values: dict[str, str]) -> bool:
    """End the session at Telegram; False when it had ended already."""
    client = _saved_client(values)
    try:
        await client.connect()
        if await client.get_me() is None:
            return False
        await client(functions.auth.LogOutRequest())
        return True
    except Exception as error:
        _dead_or_raise(error)
        return False
    finally:
        await client.disconnect()


def _dead_or_raise(error: Exception) -> None:
    told = explain(error)
    if told is None:
        raise error
    if isinstance(told, ConfigError):  # ended, revoked, banned: it is of no use to anybody
        return
    raise told from error
