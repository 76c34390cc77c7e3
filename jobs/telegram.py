"""A Telegram account as the environment names it: settings, proxy, client, and what its errors mean.

Shared by the scrape stage and by ``bugurt login``, which must agree on all of this. Telethon itself is imported
when a client is made.
"""

from __future__ import annotations

import binascii
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from jobs import __version__
from jobs.specs import BugurtError, ConfigError, TemporaryError

if TYPE_CHECKING:
    from telethon import TelegramClient

SESSION = "BUGURT_TELEGRAM_SESSION"
API_ID = "BUGURT_TELEGRAM_API_ID"
API_HASH = "BUGURT_TELEGRAM_API_HASH"
PROXY = "BUGURT_TELEGRAM_PROXY"
LOGIN = "run 'bugurt login'"
CONNECTION_RETRIES = 5  # a second apart


@dataclass(frozen=True)
class TelegramSettings:
    """Whose account and through which proxy. None of it may be shown: a session string is the whole account."""

    session: str = field(repr=False)
    api_id: int = field(repr=False)
    api_hash: str = field(repr=False)
    proxy: str | None = field(default=None, repr=False)

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> TelegramSettings:
        """Read ``BUGURT_TELEGRAM_*``. Raises ConfigError, which names the variable and never its value."""
        missing = [name for name in (SESSION, API_ID, API_HASH) if not env.get(name)]
        if missing:
            raise ConfigError(f"there is no Telegram session ({', '.join(missing)} not set); {LOGIN} first")
        check_session(env[SESSION])
        api_id, api_hash = check_api(env[API_ID], env[API_HASH])
        parse_proxy(env.get(PROXY) or None)
        return cls(env[SESSION], api_id, api_hash, env.get(PROXY) or None)


def check_api(api_id: str, api_hash: str) -> tuple[int, str]:
    """The pair from https://my.telegram.org in its right types. Raises ConfigError."""
    if not (api_id.strip().isascii() and api_id.strip().isdigit()) or not 0 < int(api_id) < 2**31:
        raise ConfigError(f"{API_ID} must be the number that https://my.telegram.org shows as 'App api_id'")
    if not re.fullmatch(r"[0-9a-fA-F]{32}", api_hash.strip()):
        raise ConfigError(f"{API_HASH} must be the 32 hex digits that https://my.telegram.org shows as 'App api_hash'")
    return int(api_id), api_hash.strip()


def check_session(session: str) -> None:
    """Raises ConfigError when this is no StringSession of Telethon."""
    from telethon.sessions import StringSession

    try:
        whole = bool(StringSession(session).auth_key)
    except (ValueError, binascii.Error, IndexError, OSError):
        whole = False
    except Exception as error:  # struct.error and what else a cut-off string gives
        raise ConfigError(f"{SESSION} is damaged ({type(error).__name__}); {LOGIN} again") from None
    if not whole:
        raise ConfigError(f"{SESSION} is not a session string; {LOGIN} again")


def parse_proxy(text: str | None) -> dict[str, Any]:
    """The options of TelegramClient for a proxy's address.

    Known are ``socks5://[USER:PASSWORD@]HOST:PORT``, ``socks4://``, ``http://``, and for MTProto proxies
    ``mtproxy://SECRET@HOST:PORT`` and the links that Telegram shares (``https://t.me/proxy?server=…``,
    ``tg://proxy?…``). Raises ConfigError, without the address, for it may hold a password.
    """
    if not text:
        return {}
    wrong = ConfigError(
        f"{PROXY} is not an address: write socks5://USER:PASSWORD@HOST:PORT, http://HOST:PORT, "
        "mtproxy://SECRET@HOST:PORT or a https://t.me/proxy?… link"
    )
    try:
        url = urlsplit(text.strip())
        shared = (url.scheme == "tg" and url.netloc == "proxy") or (url.netloc == "t.me" and url.path == "/proxy")
        if shared:
            query = {k: v[0] for k, v in parse_qs(url.query, strict_parsing=True).items()}
            return _mtproxy(query["server"], int(query["port"]), query["secret"])
        host, port = url.hostname, url.port
        user, password = unquote(url.username or "") or None, unquote(url.password or "") or None
    except (ValueError, KeyError):
        raise wrong from None
    if not host or not port:
        raise wrong
    if url.scheme in ("mtproxy", "mtproto"):
        return _mtproxy(host, port, user or "")
    if url.scheme not in ("socks5", "socks4", "http"):
        raise wrong
    proxy = {"proxy_type": url.scheme, "addr": host, "port": port, "rdns": True}
    return {"proxy": proxy | ({"username": user, "password": password} if user else {})}


def _mtproxy(host: str, port: int, secret: str) -> dict[str, Any]:
    from telethon.network.connection import ConnectionTcpMTProxyRandomizedIntermediate as Connection

    if secret.lower().startswith("ee"):
        raise ConfigError(f"{PROXY}: secrets that begin with 'ee' (fake TLS) are not supported; use another proxy")
    if not re.fullmatch(r"(dd)?[0-9a-fA-F]{32}", secret):
        raise ConfigError(f"{PROXY}: the secret of an MTProto proxy is 32 hex digits, with or without 'dd' before them")
    return {"connection": Connection, "proxy": (host, port, secret)}


def make_client(session: Any, api_id: int, api_hash: str, proxy: str | None, **options: Any) -> TelegramClient:
    """A client that neither sleeps through flood waits by itself nor asks for updates."""
    from telethon import TelegramClient

    given: dict[str, Any] = {
        "connection_retries": CONNECTION_RETRIES,
        "request_retries": 1,
        "raise_last_call_error": True,
        "flood_sleep_threshold": 0,
        "receive_updates": False,
        "app_version": __version__,
        "device_model": "bugurt",
        **parse_proxy(proxy),
        **options,
    }
    return TelegramClient(session, api_id, api_hash, **given)


def duration(seconds: float) -> str:
    """``13 h 20 min``."""
    whole = timedelta(seconds=round(seconds))
    hours, minutes = whole.days * 24 + whole.seconds // 3600, whole.seconds % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole.seconds % 60} s" if minutes else f"{whole.seconds} s"


def explain(error: BaseException) -> BugurtError | None:
    """What an error of the account or of the connection means, or None when it is about something else."""
    from telethon import errors as e
    from telethon.errors.common import AuthKeyNotFound, InvalidBufferError, SecurityError

    if isinstance(error, e.AuthKeyDuplicatedError):
        return ConfigError(
            "Telegram has ended this session for good because it was used from two places at once; "
            f"{LOGIN} again, and let only one cluster or machine use the session"
        )
    if isinstance(error, e.UserDeactivatedBanError | e.PhoneNumberBannedError):
        return ConfigError("Telegram has banned this account; use another one, or write to recover@telegram.org")
    if isinstance(error, e.UserDeactivatedError | e.InputUserDeactivatedError):
        return ConfigError(f"the Telegram account was deleted; {LOGIN} with another one")
    revoked = e.SessionRevokedError | e.SessionExpiredError | e.AuthKeyUnregisteredError | e.AuthKeyInvalidError
    if isinstance(error, revoked | AuthKeyNotFound | e.AuthKeyPermEmptyError):
        return ConfigError(f"the Telegram session was ended (in the app, or by logging out); {LOGIN} again")
    if isinstance(error, e.ApiIdInvalidError | e.ApiIdPublishedFloodError):
        return ConfigError(f"Telegram refuses {API_ID} and {API_HASH}; get your own at https://my.telegram.org")
    if isinstance(error, e.TakeoutInitDelayError):
        return TemporaryError(
            "Telegram has asked in the app whether this takeout is allowed: confirm it there, "
            f"or try again in {duration(error.seconds)}",
            retry_after=error.seconds,
        )
    if isinstance(error, e.FloodWaitError | e.FloodPremiumWaitError):
        return TemporaryError(
            f"Telegram asks to wait {duration(error.seconds)} before the next request; try again then",
            retry_after=error.seconds,
        )
    if isinstance(error, InvalidBufferError) and error.code == 429:
        return TemporaryError("Telegram refuses more connections for now; try again in a minute", retry_after=60)
    if isinstance(error, e.ServerError | e.TimedOutError | e.RpcCallFailError):
        return TemporaryError(f"Telegram has troubles of its own ({type(error).__name__}); try again later")
    if isinstance(error, ConnectionError | TimeoutError | OSError | SecurityError | InvalidBufferError):
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        return TemporaryError(f"the connection to Telegram failed ({reason}); try again, or set {PROXY}")
    return None
