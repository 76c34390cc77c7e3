"""A Telegram Desktop export (``result.json``) as posts: one chat's file, or a chat out of an account's file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import ijson

from jobs.record import FILES, Post
from jobs.scrape.tolerant import Opener, OversizeError, TolerantReader, locate
from jobs.specs import DataError

SECTIONS = ("chats", "left_chats")  # of an account's export
MAX_ALBUM = 10  # files, by Telegram's rule
MAX_LISTED = 30  # chats named in an error
MAX_NAME = 256  # characters of a chat's name, which every post carries; Telegram allows 128
CHAT_OPTION = "--set scrape.chat=ID"
MAX_KEYS = 100  # top-level fields remembered for an error

_MEDIA = {
    "sticker": "sticker",
    "video_file": "video",
    "video_message": "video",
    "voice_message": "voice",
    "audio_file": "audio",
    "animation": "animation",
}
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")  # in a name, which logs and listings show on one line
_CHANNELS = ("public_channel", "private_channel", "public_supergroup", "private_supergroup")


@dataclass
class Chat:
    """One chat of an export and where its messages are: ``skip`` messages of ``path`` come before them."""

    path: str
    name: str = ""
    type: str = ""
    id: int | None = None
    skip: int = 0
    count: int | None = None

    @property
    def label(self) -> str:
        """What posts carry as their ``channel``."""
        return self.name or (str(self.id) if self.id is not None else "export")


def find_chat(opener: Opener, where: str, wanted: str | None) -> Chat:
    """The chat to read. ``where``: the file's name in errors; ``wanted``: a name or an id in an account's export.

    Raises DataError when the file is no export, and, listing the chats, when it holds several and ``wanted``
    does not name one of them.
    """
    whole, chats, keys = _scan(opener, where)
    if whole is not None:
        if wanted is not None and wanted not in (whole.name, str(whole.id)):
            raise DataError(f"{where} holds the one chat {whole.label!r}, not {wanted!r}; leave the option 'chat' out")
        return whole
    if not chats and any(section in keys for section in SECTIONS):
        raise DataError(f"{where} is an account's export without a chat; choose 'Public channels' when you export")
    if not chats:
        if "messages" in keys:
            raise DataError(f"{where}: 'messages' is no list; export the channel's history again")
        found = f"its fields are {', '.join(keys[:8])}" if keys else "it is not a JSON object with fields"
        raise DataError(
            f"{where} is no Telegram Desktop export in JSON: it has no 'messages' ({found}); "
            "export the channel's history again with the format 'Machine-readable JSON'"
        )
    hits = [c for c in chats if wanted is not None and (c.name == wanted or str(c.id) == wanted.removeprefix("-100"))]
    if len(hits) == 1:
        return hits[0]
    if wanted is None and len(chats) == 1:
        return chats[0]
    listed = "; ".join(f"{c.label!r} (id {c.id}, {c.type}, {c.count} messages)" for c in chats[:MAX_LISTED])
    more = f"; and {len(chats) - MAX_LISTED} more" if len(chats) > MAX_LISTED else ""
    if wanted is None:
        problem = f"name one with the option 'chat' ({CHAT_OPTION})"
    elif hits:
        problem = f"{len(hits)} of them are called {wanted!r}, so give the id with the option 'chat' ({CHAT_OPTION})"
    else:
        problem = f"none of them is {wanted!r}; name one with the option 'chat' ({CHAT_OPTION})"
    raise DataError(f"{where} is an account's export with {len(chats)} chats; {problem}: {listed}{more}")


def _scan(opener: Opener, where: str) -> tuple[Chat | None, list[Chat], list[str]]:
    """The chat of a one-chat export (None for other files), the chats of an account, the top-level fields."""
    whole = Chat("messages.item")
    chats: list[Chat] = []
    keys: list[str] = []
    counts = dict.fromkeys(SECTIONS, 0)
    is_chat = False
    with opener() as raw:
        reader = TolerantReader(raw)
        try:
            for prefix, event, value in ijson.parse(reader, use_float=True):
                if prefix == "":
                    if event == "map_key" and (len(keys) < MAX_KEYS or value in ("name", "id")):
                        keys.append(clean(str(value)[:40]))
                elif prefix in ("name", "type", "id"):
                    setattr(whole, prefix, _header(prefix, value))
                elif prefix == "messages" and event == "start_array":
                    is_chat = True
                    if "name" in keys and "id" in keys:
                        break  # nothing of interest comes after the messages
                else:
                    section, inside, rest = prefix.partition(".list.item")
                    # a key may have dots in it, and look like the path to a chat that never began
                    if not inside or section not in counts or not (chats or rest == ""):
                        if event == "start_map":
                            reader.item_done()
                        continue
                    if rest == ".messages.item" and event == "start_map":
                        chats[-1].count = (chats[-1].count or 0) + 1
                        counts[section] += 1
                        reader.item_done()
                    elif rest == "" and event == "start_map":
                        chats.append(Chat(f"{section}.list.item.messages.item", skip=counts[section], count=0))
                    elif rest in (".name", ".type", ".id"):
                        setattr(chats[-1], rest[1:], _header(rest[1:], value))
        except (ijson.JSONError, UnicodeDecodeError) as error:  # a name that is not UTF-8 gives the latter
            raise _broken(opener, where, error) from error
        except OversizeError as error:
            raise DataError(f"{where}: {error}") from error
    return (whole if is_chat else None), chats, keys


def _header(field: str, value: Any) -> Any:
    if field == "id":
        return value if isinstance(value, int) and not isinstance(value, bool) else None
    return _CONTROLS.sub(" ", clean(str(value)[:MAX_NAME])) if value is not None else ""


def _broken(opener: Opener, where: str, error: Exception) -> DataError:
    with opener() as raw:
        if b"\0" in raw.read(64):  # every second byte of Latin text in UTF-16; with or without its mark
            return DataError(f"{where} is in UTF-16 or is no text at all; export again, or save it as UTF-8")
    said = error.args[0] if error.args else ""  # ijson gives bytes where it cannot decode them
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(error)
    reason = text.strip().splitlines()[0].strip(" .") if text.strip() else "broken JSON"
    place = locate(opener)
    if place is None:
        return DataError(f"{where} is not valid JSON: {reason}")
    line, offset = place
    if offset == 0:
        return DataError(f"{where} is empty: there is no export in it")
    return DataError(
        f"{where} is not valid JSON at line {line}, byte {offset}: {reason}; "
        "export the channel again, or repair it there"
    )


def read_chat(opener: Opener, where: str, chat: Chat, *, advance: Callable[[int], None]) -> Iterator[Post]:
    """The posts of a chat in the file's order, albums as one post, service messages flagged.

    ``advance`` is told how many bytes have been read. Raises DataError with the place of what is wrong.
    """
    return group_albums(_messages(opener, where, chat, advance))


def _messages(opener: Opener, where: str, chat: Chat, advance: Callable[[int], None]) -> Iterator[Post]:
    with opener() as raw:
        reader = TolerantReader(raw)
        number = 0
        try:
            for message in ijson.items(reader, chat.path, use_float=True):
                reader.item_done()
                number += 1
                if number <= chat.skip:
                    continue
                if chat.count is not None and number > chat.skip + chat.count:
                    return
                advance(reader.consumed)
                yield to_post(message, chat, f"{where}, message {number - chat.skip}")
        except (ijson.JSONError, UnicodeDecodeError) as error:  # a name that is not UTF-8 gives the latter
            raise _broken(opener, where, error) from error
        except OverflowError as error:
            raise DataError(f"{where}, after message {number}: a number that is too large") from error
        except OversizeError as error:
            raise DataError(f"{where}, after message {number}: {error}") from error


def to_post(message: Any, chat: Chat, where: str) -> Post:
    """One message of an export. ``where`` names it in errors: DataError when a field is not what exports have."""
    if not isinstance(message, dict):
        raise DataError(f"{where}: a message must be an object with fields, not {type(message).__name__}")
    number = _integer(message, "id", where)
    if number is None:
        raise DataError(f"{where}: it has no 'id'")
    text, entities = _text(message, where)
    kind = message.get("type")
    media = _media(message)
    action = message.get("action")
    post = Post(
        id=number,
        channel=chat.label,
        channel_id=chat.id,
        date=_time(message, "date", where),
        edit_date=_time(message, "edited", where),
        text=text,
        entities=entities,
        links=_links(message, text, entities),
        reactions=_reactions(message),
        reply_to=_integer(message, "reply_to_message_id", where),
        media="other" if kind == "unsupported" else media,
        media_count=int(media in FILES),
        forwarded_from=_forwarded(message),
        via_bot=_string(message, "via_bot"),
        poll="poll" in message,
        invoice="invoice_information" in message,
        author=_author(message),
    )
    if kind == "service":
        post.service = clean(str(action or "unknown"))
        post.author = post.author or _string(message, "actor")
    if chat.id is not None and chat.type in _CHANNELS:
        post.permalink = f"https://t.me/c/{chat.id}/{number}"
    return post


def clean(text: str) -> str:
    """Text that can be stored as UTF-8: half a surrogate pair, which JSON can hold, becomes U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # two escaped halves are one character, a lonely one is none
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _string(message: dict[str, Any], field: str) -> str | None:
    value = message.get(field)
    return clean(str(value)) if value not in (None, "") else None


def _author(message: dict[str, Any]) -> str | None:
    """The signature; in a group, where people write and not the chat itself, the sender's name."""
    sender = _string(message, "from") if str(message.get("from_id", "")).startswith("user") else None
    return _string(message, "author") or sender


def _integer(message: dict[str, Any], field: str, where: str) -> int | None:
    value = message.get(field)
    if value is None:
        return None
    if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise DataError(f"{where}: '{field}' must be a number, not {str(value)[:60]!r}")
    return value


def _time(message: dict[str, Any], field: str, where: str) -> datetime | None:
    """The Unix time where there is one; else the local time, taken as UTC, for old exports do not name the zone."""
    stamp = _integer(message, f"{field}_unixtime", where)
    value = message.get(field)
    try:
        if stamp is not None:
            return datetime.fromtimestamp(stamp, UTC) if stamp > 0 else None
        if value in (None, "", "1970-01-01T00:00:00"):
            return None
        found = datetime.fromisoformat(str(value)).replace(microsecond=0)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError, OSError) as error:
        shown = str(value if stamp is None else stamp)[:60]
        raise DataError(f"{where}: '{field}' is no time: {shown!r}") from error


def _text(message: dict[str, Any], where: str) -> tuple[str, list[dict[str, Any]]]:
    parts = message.get("text_entities")
    if not isinstance(parts, list):  # exports before 2022 have only this one
        parts = message.get("text") if message.get("text") is not None else ""
    elif not parts and message.get("text"):
        parts = message["text"]
    if isinstance(parts, str | dict):
        parts = [parts]
    if not isinstance(parts, list):
        raise DataError(f"{where}: 'text' must be text or a list, not {type(parts).__name__}")
    text: list[str] = []
    entities: list[dict[str, Any]] = []
    at = 0
    for part in parts:
        if isinstance(part, dict):
            inner = part.get("text")
            if isinstance(inner, list | dict):
                raise DataError(f"{where}: the text of a piece of 'text' must be text, not {type(inner).__name__}")
            piece, kind = clean(str(inner or "")), clean(str(part.get("type") or "plain"))
            if kind != "plain":
                entities.append({"type": kind, "offset": at, "length": len(piece), "url": _target(kind, part)})
        elif isinstance(part, str):
            piece = clean(part)
        else:
            raise DataError(f"{where}: a piece of 'text' must be text or an object, not {type(part).__name__}")
        text.append(piece)
        at += len(piece)
    return "".join(text), entities


def _target(kind: str, part: dict[str, Any]) -> str | None:
    if kind == "text_link" and part.get("href"):
        return clean(str(part["href"]))
    if kind == "mention_name" and part.get("user_id"):
        return f"tg://user?id={str(part['user_id']).removeprefix('user')[:32]}"
    if kind == "custom_emoji" and str(part.get("document_id") or "").isdecimal():
        return f"tg://emoji?id={part['document_id']}"
    return None


def _links(message: dict[str, Any], text: str, entities: list[dict[str, Any]]) -> list[str]:
    found = [e["url"] for e in entities if e["type"] == "text_link" and e["url"]]
    found += [text[e["offset"] : e["offset"] + e["length"]] for e in entities if e["type"] == "link"]
    for row in _list(message, "inline_bot_buttons"):
        for button in row if isinstance(row, list) else ():
            if isinstance(button, dict) and button.get("type") == "url" and button.get("data"):
                found.append(clean(str(button["data"])))
    return list(dict.fromkeys(found))


def _list(message: dict[str, Any], field: str) -> list[Any]:
    value = message.get(field)
    return value if isinstance(value, list) else []


def _media(message: dict[str, Any]) -> str | None:
    if "poll" in message:
        return "poll"
    if "invoice_information" in message:
        return "invoice"
    if "location_information" in message or "place_name" in message:
        return "location"
    if "contact_information" in message:
        return "contact"
    if message.get("media_type"):
        return _MEDIA.get(str(message["media_type"]), "other")
    if "photo" in message and message.get("type") != "service":
        return "photo"
    if "file" in message:
        return "document"
    return "other" if "game_title" in message else None


def _reactions(message: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for reaction in _list(message, "reactions"):
        count = reaction.get("count") if isinstance(reaction, dict) else None
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 2**63:
            continue
        kind = reaction.get("type")
        if kind == "custom_emoji":
            name = f"custom:{reaction.get('document_id', '')}"
        elif kind == "paid":
            name = "paid"
        else:
            name = str(reaction.get("emoji") or "?")
        found.append({"emoji": clean(name)[:200], "count": count})
    return found


def _forwarded(message: dict[str, Any]) -> str | None:
    """The author's name; where it is null (a deleted account) the id, so that a forward is never taken for a post."""
    if "forwarded_from" not in message and "forwarded_from_id" not in message:
        return None
    return _string(message, "forwarded_from") or _string(message, "forwarded_from_id") or "unknown"


def group_albums(posts: Iterable[Post]) -> Iterator[Post]:
    """Join the parts of albums, which exports do not mark, to one post with the first part's number.

    Parts have numbers that follow each other, the same second, author and origin, a file each, and at most one
    of them has a text.
    """
    album: Post | None = None
    last = 0
    for post in posts:
        if album is not None and _belongs(album, post, last):
            last = post.id
            album.media_count += 1
            album.edit_date = album.edit_date or post.edit_date
            album.reactions = album.reactions or post.reactions
            if post.text:
                album.text, album.entities, album.links = post.text, post.entities, post.links
            continue
        if album is not None:
            yield album
        album, last = post, post.id
    if album is not None:
        yield album


def _belongs(album: Post, post: Post, last: int) -> bool:
    files = ("photo", "video", "document", "audio")
    return (
        post.id == last + 1
        and album.media_count < MAX_ALBUM
        and post.date is not None
        and post.date == album.date
        and album.media in files
        and post.media in files
        and album.service is None
        and post.service is None
        and not (album.text and post.text)
        and (post.author, post.forwarded_from, post.via_bot, post.reply_to)
        == (album.author, album.forwarded_from, album.via_bot, album.reply_to)
    )
