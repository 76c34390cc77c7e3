"""From what a user writes for a channel to what Telegram needs: its number and, for this account, an access hash.

Resolving a name is the most limited call there is (waits of 13 hours have been seen), so an answer is kept in the
bucket, under a digest of the account: an access hash is worth something to the account that got it alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from telethon import errors, functions
from telethon.tl import types

from jobs.specs import ConfigError, DataError, NotFoundError, SpecError, load_json
from jobs.storage import Bucket

if TYPE_CHECKING:
    from jobs.scrape.session import Session

MARK = 10**12  # bots write a channel's number N as -(10**12 + N)
_HELP = "write @name, https://t.me/name, an invite link of a channel that you have joined, or the channel's id"


@dataclass(frozen=True)
class Target:
    """``kind``: username, invite or id; ``value``: without decoration."""

    kind: str
    value: str


@dataclass(frozen=True)
class Entity:
    """A channel as this account sees it."""

    channel_id: int
    access_hash: int
    title: str
    username: str | None

    @property
    def peer(self) -> types.InputPeerChannel:
        """For requests."""
        return types.InputPeerChannel(self.channel_id, self.access_hash)

    @property
    def label(self) -> str:
        """What posts carry as their ``channel``."""
        return f"@{self.username}" if self.username else (self.title or str(self.channel_id))


def parse_target(text: str) -> Target:
    """What the spec's ``channel`` means. Raises SpecError."""
    given = text.strip()
    if re.fullmatch(r"-?\d{1,20}", given):
        return _by_number(int(given))
    if match := re.fullmatch(r"@?([A-Za-z]\w{3,31})", given, re.ASCII):
        return Target("username", match[1].lower())
    url = urlsplit(given if "://" in given else f"https://{given}")
    if url.scheme == "tg":
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        if url.netloc == "resolve" and "domain" in query:
            return parse_target(f"@{query['domain']}")
        if url.netloc == "join" and "invite" in query:
            return _invite(query["invite"], text)
    host = (url.hostname or "").removeprefix("www.")
    parts = [p for p in url.path.split("/") if p]
    if host not in ("t.me", "telegram.me", "telegram.dog") or url.scheme not in ("http", "https") or not parts:
        raise SpecError(f"channel: {text!r} is not a channel; {_HELP}")
    if parts[0] == "s" and len(parts) > 1:  # the preview in a browser
        parts = parts[1:]
    if parts[0] == "c" and len(parts) > 1 and parts[1].isdigit():
        return _by_number(int(parts[1]))
    if parts[0].startswith("+"):
        return _invite(parts[0][1:], text)
    if parts[0] == "joinchat" and len(parts) > 1:
        return _invite(parts[1], text)
    if re.fullmatch(r"[A-Za-z]\w{3,31}", parts[0], re.ASCII):
        return Target("username", parts[0].lower())
    raise SpecError(f"channel: {text!r} is not a channel; {_HELP}")


def _by_number(number: int) -> Target:
    bare = -number - MARK if number < -MARK else number
    if not 0 < bare < 2**63:
        raise SpecError(f"channel: {number} is not the id of a channel (they look like -1001234567890); {_HELP}")
    return Target("id", str(bare))


def _invite(invite: str, text: str) -> Target:
    if not re.fullmatch(r"[\w-]{8,64}", invite, re.ASCII):
        raise SpecError(f"channel: {text!r} is no invite link; {_HELP}")
    return Target("invite", invite)


class EntityCache:
    """``telegram/entities/ACCOUNT/NAME.json`` in the bucket; both parts are digests."""

    def __init__(self, bucket: Bucket, account_id: int) -> None:
        self._bucket = bucket
        self._folder = f"telegram/entities/{_digest(f'account {account_id}')}"

    def _path(self, target: Target) -> str:
        return f"{self._folder}/{_digest(f'{target.kind} {target.value}')}.json"

    def get(self, target: Target) -> Entity | None:
        """What is known, or None."""
        try:
            data = load_json(self._bucket.get_bytes(self._path(target), max_size=10_000))
            return Entity(int(data["channel_id"]), int(data["access_hash"]), str(data["title"]), data["username"])
        except (NotFoundError, DataError, ValueError, KeyError, TypeError):
            return None

    def put(self, target: Target, entity: Entity) -> None:
        """Remember it, under its number too."""
        data = json.dumps(asdict(entity), ensure_ascii=False, sort_keys=True).encode()
        for name in {target, Target("id", str(entity.channel_id))}:
            self._bucket.put_bytes(self._path(name), data)

    def forget(self, target: Target) -> None:
        """It has proved wrong."""
        self._bucket.delete([self._path(target)])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def unreachable(error: BaseException, channel: str) -> ConfigError | None:
    """What an error about a channel means, or None."""
    e = errors
    if isinstance(error, e.ChannelPrivateError | e.ChannelPublicGroupNaError | e.ChatForbiddenError):
        return ConfigError(
            f"the channel {channel} is private, or the account was banned from it: join it with the account "
            "that 'bugurt login' used, then try again"
        )
    if isinstance(error, e.UsernameNotOccupiedError | e.UsernameInvalidError):
        return ConfigError(f"there is no {channel} at Telegram; check the spelling of the name")
    if isinstance(error, e.InviteHashExpiredError):
        return ConfigError("the invite link has expired; ask for a new one, join the channel, and use that link")
    if isinstance(error, e.InviteHashInvalidError | e.InviteHashEmptyError):
        return ConfigError("the invite link is wrong; copy it once more from Telegram")
    if isinstance(error, e.ChannelInvalidError | e.PeerIdInvalidError):
        return ConfigError(f"Telegram does not let this account see {channel}; open it once in the app and try again")
    return None


async def resolve(session: Session, target: Target, shown: str) -> Entity:
    """Ask Telegram. ``shown``: what the user wrote, for errors. Raises ConfigError when it is no channel of ours."""
    if target.kind == "username":
        found = await session.call(functions.contacts.ResolveUsernameRequest(target.value))
        chats = list(found.chats)
        if not chats:
            raise ConfigError(f"{shown} is a person or a bot and not a channel; name a channel")
        return _entity(chats[0], shown)
    if target.kind == "invite":
        found = await session.call(functions.messages.CheckChatInviteRequest(target.value))
        if not isinstance(found, types.ChatInviteAlready):
            raise ConfigError("the account has not joined the channel of this invite link; join it in the app first")
        return _entity(found.chat, shown)
    wanted = int(target.value)
    async for chat in session.chats():
        if getattr(chat, "id", None) == wanted:
            return _entity(chat, shown)
    raise ConfigError(f"the account is in no channel with the id {shown}; join it in the app, or give its @name")


def _entity(chat: Any, shown: str) -> Entity:
    if isinstance(chat, types.ChannelForbidden | types.ChatForbidden):
        raise ConfigError(f"the channel {shown} is private, or the account was banned from it: join it in the app")
    if not isinstance(chat, types.Channel) or chat.access_hash is None:
        raise ConfigError(f"{shown} is a small group; only channels and supergroups can be scraped")
    names = [chat.username] if chat.username else [u.username for u in chat.usernames or () if u.active]
    return Entity(chat.id, chat.access_hash, chat.title or "", names[0] if names else None)
