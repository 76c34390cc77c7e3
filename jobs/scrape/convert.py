"""A message as Telegram's API gives it, as a Post."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from telethon.tl import types as t

from jobs.record import FILES, Post, utf16_spans

#: Names as in Desktop exports.
_ENTITIES: dict[type, str] = {
    t.MessageEntityBold: "bold",
    t.MessageEntityItalic: "italic",
    t.MessageEntityUnderline: "underline",
    t.MessageEntityStrike: "strikethrough",
    t.MessageEntityCode: "code",
    t.MessageEntityPre: "pre",
    t.MessageEntityTextUrl: "text_link",
    t.MessageEntityUrl: "link",
    t.MessageEntityEmail: "email",
    t.MessageEntityPhone: "phone",
    t.MessageEntityMention: "mention",
    t.MessageEntityMentionName: "mention_name",
    t.MessageEntityHashtag: "hashtag",
    t.MessageEntityCashtag: "cashtag",
    t.MessageEntityBotCommand: "bot_command",
    t.MessageEntitySpoiler: "spoiler",
    t.MessageEntityCustomEmoji: "custom_emoji",
    t.MessageEntityBlockquote: "blockquote",
    t.MessageEntityBankCard: "bank_card",
}
_ACTIONS: dict[type, str] = {
    t.MessageActionChannelCreate: "create_channel",
    t.MessageActionChatEditTitle: "edit_group_title",
    t.MessageActionChatEditPhoto: "edit_group_photo",
    t.MessageActionChatDeletePhoto: "delete_group_photo",
    t.MessageActionPinMessage: "pin_message",
}
_MEDIA: dict[type, str] = {
    t.MessageMediaPhoto: "photo",
    t.MessageMediaWebPage: "webpage",
    t.MessageMediaGeo: "location",
    t.MessageMediaGeoLive: "location",
    t.MessageMediaVenue: "location",
    t.MessageMediaContact: "contact",
    t.MessageMediaPoll: "poll",
    t.MessageMediaInvoice: "invoice",
}


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


class Converter:
    """Converts the messages of one channel. ``label``, ``channel_id``, ``address``: what every post carries."""

    def __init__(self, label: str, channel_id: int, username: str | None) -> None:
        self._label, self._channel_id = label, channel_id
        self._address = f"https://t.me/{username}/" if username else f"https://t.me/c/{channel_id}/"
        self._names: dict[int, str] = {}  # of chats and users met, by id
        self._bots: dict[int, str] = {}

    def learn(self, chats: Iterable[Any], users: Iterable[Any]) -> None:
        """Take in the names that came with a page."""
        for chat in chats:
            self._names[chat.id] = getattr(chat, "title", None) or str(chat.id)
        for user in users:
            full = " ".join(p for p in (getattr(user, "first_name", None), getattr(user, "last_name", None)) if p)
            self._names[user.id] = full or getattr(user, "username", None) or str(user.id)
            if getattr(user, "username", None):
                self._bots[user.id] = f"@{user.username}"

    def post(self, message: Any) -> Post | None:
        """One message as a Post of its own; None for the place of one that is gone."""
        if isinstance(message, t.MessageService):
            return Post(
                message.id,
                self._label,
                channel_id=self._channel_id,
                date=message.date,
                reply_to=_reply_to(message),
                service=_ACTIONS.get(type(message.action))
                or _snake(type(message.action).__name__.removeprefix("MessageAction")),
                author=self._sender(message),
                permalink=f"{self._address}{message.id}",
            )
        if not isinstance(message, t.Message):
            return None
        text = message.message or ""
        entities = _entities(text, message.entities) if message.entities else []
        media = None if message.media is None else _media(message.media)
        replies, forward, reactions = message.replies, message.fwd_from, message.reactions
        return Post(
            message.id,
            self._label,
            text,
            channel_id=self._channel_id,
            date=message.date,
            # a reaction changes edit_date too, and hides that
            edit_date=None if message.edit_hide else message.edit_date,
            entities=entities,
            links=_links(text, entities, message.reply_markup) if entities or message.reply_markup else [],
            views=message.views,
            forwards=message.forwards,
            replies=None if replies is None else replies.replies,
            reactions=[] if reactions is None else [_reaction(r) for r in reactions.results],
            reply_to=None if message.reply_to is None else _reply_to(message),
            album_id=message.grouped_id,
            media=media,
            media_count=1 if media in FILES else 0,
            forwarded_from=None if forward is None else self._origin(forward),
            via_bot=None if message.via_bot_id is None else self._bot(message.via_bot_id),
            poll=media == "poll",
            invoice=media == "invoice",
            author=message.post_author or self._sender(message),
            permalink=f"{self._address}{message.id}",
        )

    def _bot(self, number: int) -> str:
        return self._bots.get(number, str(number))

    def _sender(self, message: Any) -> str | None:
        """The person who wrote it, in a group; a channel's own posts have none."""
        if not isinstance(message.from_id, t.PeerUser):
            return None
        return self._names.get(message.from_id.user_id, str(message.from_id.user_id))

    def _origin(self, forward: Any) -> str:
        if forward.from_id is not None:
            number = next(iter(vars(forward.from_id).values()))
            return self._names.get(number, str(number))
        return forward.from_name or "unknown"


def _entities(text: str, entities: list[Any]) -> list[dict[str, Any]]:
    spans = utf16_spans(text, [(e.offset, e.length) for e in entities])
    return [
        {
            "type": _ENTITIES.get(type(e)) or _snake(type(e).__name__.removeprefix("MessageEntity")),
            "offset": offset,
            "length": length,
            "url": _TARGETS[type(e)](e) if type(e) in _TARGETS else None,
        }
        for e, (offset, length) in zip(entities, spans, strict=True)
    ]


#: What an entity points to, for those that point to something.
_TARGETS: dict[type, Callable[[Any], str]] = {
    t.MessageEntityTextUrl: lambda e: str(e.url),
    t.MessageEntityMentionName: lambda e: f"tg://user?id={e.user_id}",
    t.MessageEntityCustomEmoji: lambda e: f"tg://emoji?id={e.document_id}",
}


def _links(text: str, entities: list[dict[str, Any]], markup: Any) -> list[str]:
    found = [e["url"] for e in entities if e["type"] == "text_link" and e["url"]]
    found += [text[e["offset"] : e["offset"] + e["length"]] for e in entities if e["type"] == "link"]
    if isinstance(markup, t.ReplyInlineMarkup):
        found += [b.url for row in markup.rows for b in row.buttons if isinstance(b, t.KeyboardButtonUrl)]
    return list(dict.fromkeys(found))


def _media(media: Any) -> str | None:
    if isinstance(media, t.MessageMediaEmpty):
        return None
    if not isinstance(media, t.MessageMediaDocument):
        return _MEDIA.get(type(media), "other")
    attributes: Mapping[type, Any] = {type(a): a for a in getattr(media.document, "attributes", ())}
    if t.DocumentAttributeSticker in attributes:
        return "sticker"
    if t.DocumentAttributeAnimated in attributes:
        return "animation"
    if t.DocumentAttributeVideo in attributes:
        return "video"
    audio = attributes.get(t.DocumentAttributeAudio)
    if audio is not None:
        return "voice" if audio.voice else "audio"
    return "document"


def _reaction(result: Any) -> dict[str, Any]:
    reaction = result.reaction
    if isinstance(reaction, t.ReactionEmoji):
        name = reaction.emoticon
    elif isinstance(reaction, t.ReactionCustomEmoji):
        name = f"custom:{reaction.document_id}"
    else:
        name = "paid" if isinstance(reaction, t.ReactionPaid) else "?"
    return {"emoji": name, "count": result.count}


def _reply_to(message: Any) -> int | None:
    return getattr(message.reply_to, "reply_to_msg_id", None)


def join_album(album: Post, part: Post) -> None:
    """Add another part of an album to the post that began with its first."""
    album.media_count += part.media_count
    album.edit_date = max((d for d in (album.edit_date, part.edit_date) if d), default=None)
    album.views = max((v for v in (album.views, part.views) if v is not None), default=None)
    album.forwards = max((v for v in (album.forwards, part.forwards) if v is not None), default=None)
    album.replies = max((v for v in (album.replies, part.replies) if v is not None), default=None)
    album.reactions = album.reactions or part.reactions
    if part.text and not album.text:
        album.text, album.entities, album.links = part.text, part.entities, part.links
    elif part.text:  # captions of several parts: none may be lost
        shift = len(album.text) + 1
        album.text += f"\n{part.text}"
        album.entities += [{**e, "offset": e["offset"] + shift} for e in part.entities]
        album.links = list(dict.fromkeys([*album.links, *part.links]))
