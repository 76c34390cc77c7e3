"""An in-memory Telegram channel: its messages as Telegram serialises them, and a seeded generator of them.

Messages are kept as bytes. A page of history is then a join of strings, so that a channel of tens of
thousands of posts costs a server neither much memory nor much time.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from telethon.extensions import BinaryReader
from telethon.tl import TLObject
from telethon.tl import types as t

from .texts import Composer, Rich

PAGE = 100  # Telegram's limit, whatever the client asks for
BOT_ID = 777_000_111

# How many of each hundred messages are of a kind, an album being three messages here. All kinds come up in
# every hundred, so a small channel shows them too.
MIX: dict[str, int] = {
    "text": 62,
    "photo": 8,
    "album": 2,
    "linked photo": 4,
    "video": 2,
    "document": 1,
    "bare photo": 2,
    "web page": 2,
    "forward": 3,
    "via bot": 1,
    "poll": 1,
    "invoice": 1,
    "advert": 3,
    "stub": 1,
    "repeat": 1,
    "custom emoji": 1,
    "service": 1,
    "empty": 1,
}


class Blob(TLObject):
    """An object that is serialised already."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def _bytes(self) -> bytes:
        return self._data


class Channel:
    """A broadcast channel and what Telegram remembers of it."""

    def __init__(
        self,
        channel_id: int = 1_234_567_890,
        *,
        title: str = "Бугурт-тред",
        username: str | None = "bugurt_test",
        invite: str | None = None,
        joined: bool = True,
        seed: int = 0,
        step: int = 7200,
        clock: datetime = datetime(2019, 1, 1, tzinfo=UTC),
    ) -> None:
        self.id = channel_id
        self.title = title
        self.username = username
        self.invite = invite
        self.joined = joined
        self.error: str | None = None  # as CHANNEL_PRIVATE: what every request about it then gets
        self.rng = random.Random(seed)
        self.access_hash = self.rng.getrandbits(62)
        self.composer = Composer(self.rng)
        self.step = step
        self.created = int(clock.timestamp())
        self.clock = self.created
        self.pts = 1
        self.kinds: dict[int, str] = {}
        self._ids: list[int] = []
        self._dates: list[int] = []
        self._blobs: dict[int, bytes] = {}
        self._pending: list[str] = []
        self._next_id = 1
        self._last_text = Rich("ПОВТОРИТЬ")

    # What is in it

    @property
    def peer(self) -> t.PeerChannel:
        return t.PeerChannel(self.id)

    @property
    def ids(self) -> Sequence[int]:
        """All ids in the history, oldest first, service and empty messages included."""
        return self._ids

    @property
    def post_ids(self) -> list[int]:
        """The ids of what a reader would call a message: neither service nor empty."""
        return [i for i in self._ids if self.kinds[i] not in ("service", "empty")]

    @property
    def top_id(self) -> int:
        return self._ids[-1] if self._ids else 0

    def __len__(self) -> int:
        return len(self._ids)

    def blob(self, message_id: int) -> bytes:
        """The message as Telegram sends it; a `MessageEmpty` if it is not there (any more)."""
        return self._blobs.get(message_id) or bytes(t.MessageEmpty(message_id, self.peer))

    def message(self, message_id: int) -> Any:
        """The message, decoded anew: changing it does not change the channel."""
        return BinaryReader(self.blob(message_id)).tgread_object()

    def messages(self) -> Iterator[Any]:
        return (self.message(i) for i in self._ids)

    def of_kind(self, kind: str) -> list[int]:
        return [i for i in self._ids if self.kinds[i] == kind]

    def as_chat(self) -> t.Channel:
        return t.Channel(
            id=self.id,
            title=self.title,
            photo=t.ChatPhotoEmpty(),
            date=self.created,
            broadcast=True,
            left=not self.joined or None,
            access_hash=self.access_hash,
            username=self.username,
            participants_count=100_500,
        )

    def window(
        self, *, offset_id: int, offset_date: int, add_offset: int, limit: int, min_id: int = 0, max_id: int = 0
    ) -> list[int]:
        """The ids of one page of `messages.getHistory`, newest first.

        The offset is a place between two messages; the page starts `add_offset` places on from it, towards
        the older ones. Only the part of the page that exists is given: a page that starts before the newest
        message is cut at its start, and not moved.
        """
        total = len(self._ids)
        if offset_id:  # wins over the date
            older = bisect_left(self._ids, offset_id)
        elif offset_date:
            older = bisect_left(self._dates, offset_date)
        else:
            older = total
        start = total - older + add_offset
        end = start + min(limit, PAGE)
        page = self._ids[max(total - end, 0) : max(total - max(start, 0), 0)]
        return [i for i in reversed(page) if i > min_id and (not max_id or i < max_id)]

    # What changes it

    def add(self, message: TLObject, kind: str = "text") -> int:
        """Append a message, whose id and date are those it came with."""
        if message.id <= self.top_id:
            raise ValueError(f"message {message.id} does not come after {self.top_id}")
        self._ids.append(message.id)
        self._dates.append(getattr(message, "date", None) or self.clock)
        self._blobs[message.id] = bytes(message)
        self.kinds[message.id] = kind
        self._next_id = message.id + 1
        self.pts += 1
        return message.id

    def add_post(self, text: str | Rich = "", *, kind: str = "text", **fields: Any) -> int:
        """Append one post with exactly this text; `fields` are those of Telegram's `message`."""
        rich = text if isinstance(text, Rich) else Rich(text)
        self._tick()
        values: dict[str, Any] = {"date": self.clock, "post": True, "views": 1, "forwards": 0}
        values |= {"entities": rich.entities or None} | fields
        return self.add(t.Message(id=self._next_id, peer_id=self.peer, message=rich.text, **values), kind)

    def add_posts(self, count: int) -> list[int]:
        """Append exactly `count` generated messages of all kinds, and give their ids."""
        before = len(self._ids)
        while len(self._ids) - before < count:
            self._generate(count - (len(self._ids) - before))
        return list(self._ids[before:])

    def add_empty(self, count: int) -> list[int]:
        """Append messages that Telegram gives as `messageEmpty`."""
        return [self.add(t.MessageEmpty(self._next_id, self.peer), "empty") for _ in range(count)]

    def skip_ids(self, count: int) -> None:
        """Leave a gap, as posts leave that were deleted before anyone read them."""
        self._next_id += count

    def edit(self, message_id: int, text: str | Rich | None = None, *, when: int | None = None, **fields: Any) -> None:
        """Change a message. A new text leaves an edit date; mere counters (`views=…`) do not."""
        message = self.message(message_id)
        if text is not None:
            rich = text if isinstance(text, Rich) else Rich(text)
            message.message, message.entities = rich.text, rich.entities or None
            message.edit_date = when if when is not None else self.clock + 60
        for name, value in fields.items():
            if not hasattr(message, name):
                raise AttributeError(f"a message has no {name}")
            setattr(message, name, value)
        self._blobs[message_id] = bytes(message)
        self.pts += 1

    def delete(self, message_ids: int | Iterable[int]) -> None:
        """Delete messages: gone from the history, empty when asked for by id."""
        for message_id in [message_ids] if isinstance(message_ids, int) else list(message_ids):
            place = bisect_left(self._ids, message_id)
            if place == len(self._ids) or self._ids[place] != message_id:
                raise KeyError(message_id)
            del self._ids[place], self._dates[place], self._blobs[message_id], self.kinds[message_id]
            self.pts += 1

    # The generator

    def _tick(self) -> None:
        self.clock += self.rng.randint(max(1, self.step // 2), max(1, self.step + self.step // 2))

    def _next_kind(self) -> str:
        if not self._pending:
            self._pending = [kind for kind, weight in MIX.items() for _ in range(weight)]
            self.rng.shuffle(self._pending)
        return self._pending.pop()

    def _generate(self, room: int) -> None:
        """One generated post: one message, or the several of an album, but at most `room`."""
        kind = self._next_kind()
        if self.rng.random() < 0.02:
            self.skip_ids(self.rng.randint(1, 3))
        self._tick()
        if kind == "empty":
            self.add_empty(1)
        elif kind == "service":
            self._service()
        elif kind == "album":
            self._album(min(room, self.rng.randint(2, 5)))
        else:
            self._single(kind)

    def _service(self) -> None:
        action: TLObject = t.MessageActionPinMessage()
        if self.rng.random() < 0.3:
            action = t.MessageActionChatEditTitle(f"{self.title} №{self.rng.randrange(100)}")
        header = t.MessageReplyHeader(reply_to_msg_id=self.top_id) if self._ids else None
        note = t.MessageService(
            id=self._next_id, peer_id=self.peer, date=self.clock, post=True, action=action, reply_to=header
        )
        self.add(note, "service")

    def _album(self, count: int) -> None:
        group = self.rng.getrandbits(52)
        counters = self._counters()
        for number in range(count):
            rich = self.composer.post() if number == 0 else Rich()
            self._put(rich, "album", counters, grouped_id=group, media=self._photo())

    def _single(self, kind: str) -> None:
        compose, rng = self.composer, self.rng
        fields: dict[str, Any] = {}
        rich = compose.post()
        if kind == "photo":
            fields["media"] = self._photo()
        elif kind == "bare photo":
            rich, fields["media"] = Rich(), self._photo()
        elif kind == "linked photo":
            rich = compose.linked_photo()
        elif kind == "video":
            fields["media"] = self._document("video/mp4", t.DocumentAttributeVideo(12.5, 640, 480))
        elif kind == "document":
            fields["media"] = self._document("application/pdf", t.DocumentAttributeFilename("смета.pdf"))
        elif kind == "web page":
            fields["media"] = self._web_page()
        elif kind == "forward":
            fields["fwd_from"] = self._origin()
        elif kind == "via bot":
            fields["via_bot_id"] = BOT_ID
        elif kind == "poll":
            rich, fields["media"] = Rich(), self._poll()
        elif kind == "invoice":
            fields["media"] = t.MessageMediaInvoice("Чайник", "Почти новый", "RUB", 50_000, "chainik")
        elif kind == "advert":
            rich = compose.advert()
        elif kind == "stub":
            rich = compose.stub()
        elif kind == "repeat":
            rich = self._last_text
        elif kind == "custom emoji":
            rich = compose.custom_emoji()
        if rng.random() < 0.05:
            fields |= {"edit_date": self.clock + rng.randint(5, 5000), "edit_hide": rng.random() < 0.3 or None}
        if rng.random() < 0.1:
            fields["post_author"] = rng.choice(("Завхоз", "Ёж", "Дядя Толя"))
        if kind == "text" and rng.random() < 0.02:
            self._last_text = rich
        self._put(rich, kind, self._counters(), **fields)

    def _put(self, rich: Rich, kind: str, counters: dict[str, Any], **fields: Any) -> None:
        message = t.Message(
            id=self._next_id,
            peer_id=self.peer,
            date=self.clock,
            message=rich.text,
            post=True,
            entities=rich.entities or None,
            **counters,
            **fields,
        )
        self.add(message, kind)

    def _counters(self) -> dict[str, Any]:
        rng = self.rng
        views = rng.randint(100, 50_000)
        found: dict[str, Any] = {"views": views, "forwards": views // rng.randint(50, 500)}
        if rng.random() < 0.6:
            faces = rng.sample(("👍", "🔥", "😁", "🫡"), rng.randint(1, 3))
            results = [t.ReactionCount(t.ReactionEmoji(face), rng.randint(1, views)) for face in faces]
            if rng.random() < 0.1:
                results.append(t.ReactionCount(t.ReactionCustomEmoji(rng.getrandbits(62)), rng.randint(1, 99)))
            found["reactions"] = t.MessageReactions(results=results)
        if rng.random() < 0.4:
            count = rng.randrange(300)
            found["replies"] = t.MessageReplies(count, self.pts, comments=True, channel_id=self.id + 1)
        return found

    def _photo(self) -> TLObject:
        photo = t.Photo(
            id=self.rng.getrandbits(62),
            access_hash=self.rng.getrandbits(62),
            file_reference=b"reference",
            date=self.clock,
            sizes=[t.PhotoSize("x", 800, 600, 54_321)],
            dc_id=2,
        )
        return t.MessageMediaPhoto(photo=photo)

    def _document(self, mime: str, attribute: TLObject) -> TLObject:
        document = t.Document(
            id=self.rng.getrandbits(62),
            access_hash=self.rng.getrandbits(62),
            file_reference=b"reference",
            date=self.clock,
            mime_type=mime,
            size=self.rng.randint(1000, 10**7),
            dc_id=2,
            attributes=[attribute],
        )
        return t.MessageMediaDocument(document=document)

    def _web_page(self) -> TLObject:
        number = self.rng.randrange(10_000)
        page = t.WebPage(
            id=self.rng.getrandbits(62),
            url=f"https://example.org/{number}",
            display_url=f"example.org/{number}",
            hash=0,
            type="article",
            site_name="Пример",
            title=self.composer.line(),
        )
        return t.MessageMediaWebPage(webpage=page)

    def _origin(self) -> TLObject:
        if self.rng.random() < 0.3:
            return t.MessageFwdHeader(date=self.clock - 9000, from_name="Тот самый дед")
        source = t.PeerChannel(self.id + 2)
        return t.MessageFwdHeader(date=self.clock - 9000, from_id=source, channel_post=self.rng.randint(1, 9999))

    def _poll(self) -> TLObject:
        words = ("Да", "Нет", "Чайник")
        answers = [t.PollAnswer(t.TextWithEntities(word, []), bytes([n])) for n, word in enumerate(words)]
        question = t.TextWithEntities("Кто виноват?", [])
        poll = t.Poll(id=self.rng.getrandbits(62), question=question, answers=answers, hash=0)
        return t.MessageMediaPoll(poll=poll, results=t.PollResults(total_voters=self.rng.randrange(9999)))


def make_channel(seed: int, n_posts: int, *, end: datetime | None = None, **options: Any) -> Channel:
    """A channel of exactly `n_posts` messages of all kinds; the first is its creation.

    `end` is the date of the newest message, about; without it the channel starts in 2019. `options` are
    those of `Channel`.
    """
    if end is not None:
        step = options.get("step", 7200)
        options["clock"] = datetime.fromtimestamp(end.timestamp() - step * n_posts, UTC)
    channel = Channel(seed=seed, **options)
    if n_posts > 0:
        created = t.MessageActionChannelCreate(channel.title)
        first = t.MessageService(id=1, peer_id=channel.peer, date=channel.created, post=True, action=created)
        channel.add(first, "service")
        channel.add_posts(n_posts - 1)
    return channel
