"""The account behind the server, and the handlers of the RPCs that Telethon sends on its behalf.

Answers have the shape and the errors of Telegram's own, as far as a scrape or a login can see them.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from telethon.tl import TLObject
from telethon.tl import functions as f
from telethon.tl import types as t

from .channel import BOT_ID, PAGE, Blob, Channel
from .crypto import PasswordCheck

SPLIT_MAX = 2**31 - 1


class RpcError(Exception):
    """Becomes an RPC error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.message = message


@dataclass
class AuthState:
    """What a data centre knows of one auth key."""

    authorised: bool = False
    password_needed: bool = False
    killed: tuple[int, str] | None = None  # the error that every request gets from now on
    qr_token: bytes | None = None


@dataclass
class Account:
    """The one user who can log in."""

    user_id: int = 4_242_424
    phone: str = "79990000001"
    first_name: str = "Завхоз"
    code: str = "12345"
    password: str | None = None
    home_dc: int = 2
    api_id: int = 12345
    api_hash: str = "0123456789abcdef0123456789abcdef"

    def as_user(self) -> t.User:
        return t.User(id=self.user_id, is_self=True, access_hash=99, first_name=self.first_name, phone=self.phone)


@dataclass(frozen=True)
class Context:
    """Where and how a request came."""

    dc: int
    state: AuthState
    takeout: int | None = None
    message_range: tuple[int, int] | None = None
    keep: int | None = None  # a short page: so many messages at most


@dataclass
class Takeout:
    """A takeout session; `success` is what the client said at its end."""

    flags: dict[str, Any]
    success: bool | None = None
    open: bool = True


Handler = Callable[["Api", Any, Context], Any]
_handlers: dict[type, tuple[Handler, bool]] = {}


def _handles(*requests: type, login: bool = True) -> Callable[[Handler], Handler]:
    """Register a handler; `login=False` for what Telegram answers before a login."""

    def register(handler: Handler) -> Handler:
        for request in requests:
            _handlers[request] = (handler, login)
        return handler

    return register


def method_name(request: TLObject | type) -> str:
    """As in Telegram's documentation but for the capital: "messages.GetHistory"."""
    cls = request if isinstance(request, type) else type(request)
    name = cls.__name__.removesuffix("Request")
    package = cls.__module__.removeprefix("telethon.tl.functions").removeprefix(".")
    return f"{package}.{name}" if package else name


class Api:
    """Telegram, as one account sees it."""

    def __init__(self, *channels: Channel, account: Account | None = None) -> None:
        self.account = account or Account()
        self.channels: dict[int, Channel] = {}
        self.users: dict[str, t.User] = {
            "predlozhi_bot": t.User(id=BOT_ID, bot=True, access_hash=1, username="predlozhi_bot", bot_info_version=1)
        }
        self.invites: dict[str, str] = {}  # hash of an invite that does not work -> the error it gives
        self.takeouts: dict[int, Takeout] = {}
        self.dc_options: Mapping[int, int] = {}  # id -> port, set by the server
        self.host = "127.0.0.1"
        self._password: tuple[str, PasswordCheck] | None = None
        self._code_hashes: set[str] = set()
        self._numbers = itertools.count(1)
        self._tokens: dict[bytes, bool] = {}  # QR login: token -> scanned
        for channel in channels:
            self.add_channel(channel)

    def add_channel(self, channel: Channel) -> Channel:
        self.channels[channel.id] = channel
        return channel

    @property
    def channel(self) -> Channel:
        """The first channel: most tests have one."""
        return next(iter(self.channels.values()))

    def handle(self, request: TLObject, context: Context) -> Any:
        """Answer a request, or raise `RpcError`. `NotImplementedError`: the server does not know it."""
        if type(request) not in _handlers:
            raise NotImplementedError(method_name(request))
        handler, login = _handlers[type(request)]
        if context.state.killed is not None and (login or context.state.killed[0] != 401):
            raise RpcError(*context.state.killed)
        if login and not context.state.authorised:
            raise RpcError(401, "AUTH_KEY_UNREGISTERED")
        if context.takeout is not None:
            self._check_takeout(context.takeout)
        return handler(self, request, context)

    def scan_qr(self) -> bytes:
        """The user scans the newest QR code with the phone. Gives its token, to tell its client."""
        if not self._tokens:
            raise LookupError("no QR code was shown yet")
        token = next(reversed(self._tokens))
        self._tokens[token] = True
        return token

    # Help, updates, users

    @_handles(f.help.GetConfigRequest, login=False)
    def _config(self, request: Any, context: Context) -> TLObject:
        now = int(time.time())
        numbers = dict.fromkeys(
            (
                "chat_size_max", "megagroup_size_max", "forwarded_count_max", "online_update_period_ms",
                "offline_blur_timeout_ms", "offline_idle_timeout_ms", "online_cloud_timeout_ms",
                "notify_cloud_delay_ms", "notify_default_delay_ms", "push_chat_period_ms", "push_chat_limit",
                "edit_time_limit", "revoke_time_limit", "revoke_pm_time_limit", "rating_e_decay",
                "stickers_recent_limit", "channels_read_media_period", "call_receive_timeout_ms",
                "call_ring_timeout_ms", "call_connect_timeout_ms", "call_packet_timeout_ms",
                "caption_length_max", "message_length_max", "webfile_dc_id",
            ),
            1000,
        )  # fmt: skip
        return t.Config(
            date=now,
            expires=now + 3600,
            test_mode=True,
            this_dc=context.dc,
            dc_options=[t.DcOption(dc, self.host, port) for dc, port in self.dc_options.items()],
            dc_txt_domain_name="localhost",
            me_url_prefix="https://t.me/",
            **numbers,
        )

    @_handles(f.help.GetNearestDcRequest, login=False)
    def _nearest(self, request: Any, context: Context) -> TLObject:
        return t.NearestDc("RU", context.dc, self.account.home_dc)

    @_handles(f.updates.GetStateRequest)
    def _state(self, request: Any, context: Context) -> TLObject:
        return t.updates.State(pts=1, qts=0, date=int(time.time()), seq=1, unread_count=0)

    @_handles(f.updates.GetDifferenceRequest)
    def _difference(self, request: Any, context: Context) -> TLObject:
        return t.updates.DifferenceEmpty(date=int(time.time()), seq=1)

    @_handles(f.updates.GetChannelDifferenceRequest)
    def _channel_difference(self, request: Any, context: Context) -> TLObject:
        channel = self._find_channel(request.channel)
        return t.updates.ChannelDifferenceEmpty(pts=channel.pts, final=True)

    @_handles(f.users.GetUsersRequest)
    def _users(self, request: Any, context: Context) -> list[TLObject]:
        known = {user.id: user for user in self.users.values()}
        found: list[TLObject] = []
        for wanted in request.id:
            if isinstance(wanted, t.InputUserSelf) or wanted.user_id == self.account.user_id:
                found.append(self.account.as_user())
            else:
                found.append(known.get(wanted.user_id) or t.UserEmpty(wanted.user_id))
        return found

    # Login and logout

    def _check_phone(self, request: Any, context: Context) -> None:
        if request.phone_number.lstrip("+") != self.account.phone:
            raise RpcError(400, "PHONE_NUMBER_INVALID")
        if context.dc != self.account.home_dc:
            raise RpcError(303, f"PHONE_MIGRATE_{self.account.home_dc}")

    def _check_api(self, request: Any) -> None:
        if (request.api_id, request.api_hash) != (self.account.api_id, self.account.api_hash):
            raise RpcError(400, "API_ID_INVALID")

    @_handles(f.auth.SendCodeRequest, login=False)
    def _send_code(self, request: Any, context: Context) -> TLObject:
        self._check_api(request)
        self._check_phone(request, context)
        return self._sent_code(t.auth.SentCodeTypeApp(len(self.account.code)))

    @_handles(f.auth.ResendCodeRequest, login=False)
    def _resend_code(self, request: Any, context: Context) -> TLObject:
        self._check_phone(request, context)
        self._check_code_hash(request.phone_code_hash)
        return self._sent_code(t.auth.SentCodeTypeSms(len(self.account.code)))

    def _sent_code(self, how: TLObject) -> TLObject:
        code_hash = f"hash{next(self._numbers)}"
        self._code_hashes.add(code_hash)
        return t.auth.SentCode(type=how, phone_code_hash=code_hash)

    def _check_code_hash(self, code_hash: str) -> None:
        if code_hash not in self._code_hashes:
            raise RpcError(400, "PHONE_CODE_EXPIRED")

    def expire_codes(self) -> None:
        """Every code sent so far is too old now."""
        self._code_hashes.clear()

    @_handles(f.auth.SignInRequest, login=False)
    def _sign_in(self, request: Any, context: Context) -> TLObject:
        self._check_phone(request, context)
        self._check_code_hash(request.phone_code_hash)
        if not request.phone_code:
            raise RpcError(400, "PHONE_CODE_EMPTY")
        if request.phone_code != self.account.code:
            raise RpcError(400, "PHONE_CODE_INVALID")
        return self._authorise(context)

    def _authorise(self, context: Context) -> TLObject:
        if self.account.password is not None:
            context.state.password_needed = True
            raise RpcError(401, "SESSION_PASSWORD_NEEDED")
        return self._authorised(context)

    def _authorised(self, context: Context) -> TLObject:
        context.state.authorised, context.state.password_needed = True, False
        return t.auth.Authorization(user=self.account.as_user())

    def _password_check(self) -> PasswordCheck | None:
        password = self.account.password
        if password is None:
            return None
        if self._password is None or self._password[0] != password:
            self._password = (password, PasswordCheck(password))
        return self._password[1]

    @_handles(f.account.GetPasswordRequest, login=False)
    def _get_password(self, request: Any, context: Context) -> TLObject:
        if not (context.state.authorised or context.state.password_needed):
            raise RpcError(401, "AUTH_KEY_UNREGISTERED")
        check = self._password_check()
        srp_id, public = check.challenge() if check else (None, None)
        return t.account.Password(
            new_algo=t.PasswordKdfAlgoUnknown(),
            new_secure_algo=t.SecurePasswordKdfAlgoUnknown(),
            secure_random=bytes(256),
            has_password=check is not None or None,
            current_algo=check.algorithm() if check else None,
            srp_id=srp_id,
            srp_B=public,
            hint="кличка ежа" if check else None,
        )

    @_handles(f.auth.CheckPasswordRequest, login=False)
    def _check_password(self, request: Any, context: Context) -> TLObject:
        if not context.state.password_needed:
            raise RpcError(401, "AUTH_KEY_UNREGISTERED")
        check, proof = self._password_check(), request.password
        if check is None or isinstance(proof, t.InputCheckPasswordEmpty) or not check.knows(proof.srp_id):
            raise RpcError(400, "SRP_ID_INVALID")
        if not check.verify(proof.srp_id, proof.A, proof.M1):
            raise RpcError(400, "PASSWORD_HASH_INVALID")
        return self._authorised(context)

    @_handles(f.auth.ExportLoginTokenRequest, login=False)
    def _export_token(self, request: Any, context: Context) -> TLObject:
        self._check_api(request)
        token = context.state.qr_token
        if token is None or not self._tokens.get(token):
            token = b"token%d" % next(self._numbers)
            context.state.qr_token = token
            self._tokens[token] = False
            return t.auth.LoginToken(expires=int(time.time()) + 30, token=token)
        if context.dc != self.account.home_dc:
            return t.auth.LoginTokenMigrateTo(self.account.home_dc, token)
        return t.auth.LoginTokenSuccess(self._authorise(context))

    @_handles(f.auth.ImportLoginTokenRequest, login=False)
    def _import_token(self, request: Any, context: Context) -> TLObject:
        if not self._tokens.get(request.token):
            raise RpcError(400, "AUTH_TOKEN_INVALID")
        return t.auth.LoginTokenSuccess(self._authorise(context))

    @_handles(f.auth.LogOutRequest)
    def _log_out(self, request: Any, context: Context) -> TLObject:
        context.state.authorised = False
        return t.auth.LoggedOut()

    # Finding a channel

    def _find_channel(self, peer: Any) -> Channel:
        channel = self.channels.get(getattr(peer, "channel_id", 0))
        if channel is None or getattr(peer, "access_hash", None) != channel.access_hash:
            raise RpcError(400, "CHANNEL_INVALID")
        if channel.error is not None:
            raise RpcError(400, channel.error)
        if channel.username is None and not channel.joined:
            raise RpcError(400, "CHANNEL_PRIVATE")
        return channel

    @_handles(f.channels.GetChannelsRequest)
    def _get_channels(self, request: Any, context: Context) -> TLObject:
        return t.messages.Chats([self._find_channel(peer).as_chat() for peer in request.id])

    @_handles(f.channels.GetFullChannelRequest)
    def _full_channel(self, request: Any, context: Context) -> TLObject:
        channel = self._find_channel(request.channel)
        full = t.ChannelFull(
            id=channel.id,
            about="Истории про чайники",
            read_inbox_max_id=channel.top_id,
            read_outbox_max_id=0,
            unread_count=0,
            chat_photo=t.PhotoEmpty(0),
            notify_settings=t.PeerNotifySettings(),
            bot_info=[],
            pts=channel.pts,
        )
        return t.messages.ChatFull(full, [channel.as_chat()], [])

    @_handles(f.contacts.ResolveUsernameRequest)
    def _resolve(self, request: Any, context: Context) -> TLObject:
        name = request.username.lower()
        if not re.fullmatch(r"[a-z][a-z0-9_]{3,31}", name):
            raise RpcError(400, "USERNAME_INVALID")
        if user := self.users.get(name):
            return t.contacts.ResolvedPeer(t.PeerUser(user.id), [], [user])
        for channel in self.channels.values():
            if (channel.username or "").lower() == name:
                return t.contacts.ResolvedPeer(channel.peer, [channel.as_chat()], [])
        raise RpcError(400, "USERNAME_NOT_OCCUPIED")

    def _invited(self, invite: str) -> Channel:
        if invite in self.invites:
            raise RpcError(400, self.invites[invite])
        for channel in self.channels.values():
            if channel.invite == invite:
                return channel
        raise RpcError(400, "INVITE_HASH_INVALID")

    @_handles(f.messages.CheckChatInviteRequest)
    def _check_invite(self, request: Any, context: Context) -> TLObject:
        channel = self._invited(request.hash)
        if channel.joined:
            return t.ChatInviteAlready(channel.as_chat())
        return t.ChatInvite(channel.title, t.PhotoEmpty(0), 100, 0, channel=True, broadcast=True)

    @_handles(f.messages.ImportChatInviteRequest)
    def _import_invite(self, request: Any, context: Context) -> TLObject:
        channel = self._invited(request.hash)
        if channel.joined:
            raise RpcError(400, "USER_ALREADY_PARTICIPANT")
        return self._join(channel)

    @_handles(f.channels.JoinChannelRequest)
    def _join_channel(self, request: Any, context: Context) -> TLObject:
        return self._join(self._find_channel(request.channel))

    def _join(self, channel: Channel) -> TLObject:
        channel.joined = True
        updates = t.Updates([t.UpdateChannel(channel.id)], [], [channel.as_chat()], int(time.time()), 0)
        return t.messages.ChatInviteJoinResultOk(updates)

    @_handles(f.messages.GetDialogsRequest)
    def _dialogs(self, request: Any, context: Context) -> TLObject:
        joined = [c for c in self.channels.values() if c.joined and c.error is None]
        joined.sort(key=lambda c: (c.clock, c.id), reverse=True)
        after = getattr(request.offset_peer, "channel_id", None)
        start = next((n + 1 for n, c in enumerate(joined) if c.id == after), 0)
        page = joined[start : start + min(request.limit, PAGE)]
        dialogs = [t.Dialog(c.peer, c.top_id, c.top_id, 0, 0, 0, 0, 0, t.PeerNotifySettings(), pts=c.pts) for c in page]
        messages = [Blob(c.blob(c.top_id)) for c in page if len(c)]
        chats = [c.as_chat() for c in page]
        if len(page) == len(joined):
            return t.messages.Dialogs(dialogs, messages, chats, [])
        return t.messages.DialogsSlice(len(joined), dialogs, messages, chats, [])

    # Messages

    def _page(self, channel: Channel, ids: Iterable[int]) -> TLObject:
        blobs = [Blob(channel.blob(i)) for i in ids]
        return t.messages.ChannelMessages(channel.pts, len(channel), blobs, [], [channel.as_chat()], [])

    @_handles(f.messages.GetHistoryRequest)
    def _history(self, request: Any, context: Context) -> TLObject:
        if not isinstance(request.peer, t.InputPeerChannel):
            return t.messages.Messages([], [], [], [])
        channel = self._find_channel(request.peer)
        ids = channel.window(
            offset_id=request.offset_id,
            offset_date=int(request.offset_date.timestamp()) if request.offset_date else 0,
            add_offset=request.add_offset,
            limit=request.limit,
            min_id=request.min_id,
            max_id=request.max_id,
        )
        if context.message_range is not None:
            first, last = context.message_range
            ids = [i for i in ids if first <= i <= last]
        if context.keep is not None:
            # What is left out is at the far end, so that a client which goes on from the last id misses nothing.
            ids = ids[-context.keep :] if request.add_offset < 0 else ids[: context.keep]
        return self._page(channel, ids)

    @_handles(f.channels.GetMessagesRequest)
    def _messages(self, request: Any, context: Context) -> TLObject:
        channel = self._find_channel(request.channel)
        if len(request.id) > PAGE:
            raise RpcError(400, "LIMIT_INVALID")
        return self._page(channel, [wanted.id for wanted in request.id])

    # Takeout

    @_handles(f.account.InitTakeoutSessionRequest)
    def _init_takeout(self, request: Any, context: Context) -> TLObject:
        number = 1000 + next(self._numbers)
        self.takeouts[number] = Takeout({k: v for k, v in vars(request).items() if v})
        return t.account.Takeout(number)

    def _check_takeout(self, number: int) -> None:
        if number not in self.takeouts or not self.takeouts[number].open:
            raise RpcError(400, "TAKEOUT_INVALID")

    @_handles(f.account.FinishTakeoutSessionRequest)
    def _finish_takeout(self, request: Any, context: Context) -> bool:
        if context.takeout is None:
            raise RpcError(403, "TAKEOUT_REQUIRED")
        takeout = self.takeouts[context.takeout]
        takeout.open, takeout.success = False, bool(request.success)
        return True

    @_handles(f.messages.GetSplitRangesRequest)
    def _split_ranges(self, request: Any, context: Context) -> list[TLObject]:
        middle = max(self.channel.top_id // 2, 1)
        return [t.MessageRange(1, middle), t.MessageRange(middle + 1, SPLIT_MAX)]
