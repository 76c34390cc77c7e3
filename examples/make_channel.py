"""Build examples/channel/result.json: a made-up channel, exported as Telegram Desktop does it.

    python examples/make_channel.py [OUTPUT]

The posts of posts.txt are invented for this project. Around them the script puts what surrounds the posts of a
real channel of this kind, in about the proportions counted in one of 14,157 posts: footers with a hidden link,
paid news, adverts, forwards, polls, repeats, posts without text. Every name, address and link is invented too.
The output depends on nothing but this file and posts.txt.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAME = "Бугурт-тестовая"
CHANNEL_ID = 1987654321
BOT = "@predlozhka_testovaya_bot"
FOOTER = "БУГУРТ-ТРЕД"
HOME = "https://t.me/bugurt_testovaya"
ZERO_WIDTH = "\u200c"
NO_FILE = "(File not included. Change data exporting settings to download.)"
START = datetime(2019, 1, 14, 9, 0, tzinfo=UTC)
MOSCOW = timedelta(hours=3)  # Desktop writes local time beside the Unix time
REACTIONS_FROM = datetime(2020, 3, 1, tzinfo=UTC)

Part = str | dict[str, str]
Message = dict[str, Any]

NEWS = (
    ("В городском парке открыли скамейку для тех, кто устал сидеть", "primer.ru/?utm_source=bt"),
    ("Учёные выяснили, почему чайник закипает, стоит отвернуться", "novosti-primer.ru/chainik?utm_source=bt"),
    ("Как выбрать диван, который не выберет вас первым", "divany.primer.ru/?utm_source=tg&utm_campaign=bt"),
    ("Жители дома три месяца здоровались с манекеном", "gorod-primer.ru/maneken/?utm_source=bugurt"),
    ("Пять способов полить кактус и не обидеть его", "sad.primer.ru/?utm_source=bt&utm_medium=post"),
    ("Ипотека на гараж: что нужно знать до того, как", "primer-bank.ru/?utm_source=bt_news"),
    ("Этот кот пережил четыре ремонта и дал советы", "koty-primer.ru/remont?utm_source=bt"),
    ("Наушники, которые слышат, что вы о них думаете", "shop.primer.ru/?utm_source=bt&utm_content=ears"),
)
ADVERTS = (
    "Устали от носков без пары? Сервис «Второй» найдёт пару или выпишет справку. Первая неделя бесплатно: ",
    "Курсы кройки и житья. Научим шить и мириться с результатом. Запись по ссылке: ",
    "Такси «Почти приехали»: мы уже за углом с 2014 года. Промокод УГОЛ даёт скидку на второй угол. ",
    "Подпишитесь на канал друзей: там разбирают мемы на запчасти и собирают из них табуретки ",
)
FORWARDS = (
    ("Чайник и жизнь", "Кто не снимал накипь, тот не снимал пробу с бытия."),
    ("Мемы для табуреток", "Нашёл в кладовке кладовку. Вторая лучше."),
    ("Вести подъезда", "С понедельника лифт ходит пешком."),
    (None, "Когда закрыл все вкладки и вспомнил, зачем открывал"),
)
POLLS = (
    ("КТО СЕГОДНЯ МОЕТ ПОСУДУ?", ("Я", "Кот", "Она сама")),
    ("СКОЛЬКО МИНУТ В «УЖЕ ВЫХОЖУ»?", ("Пять", "Сорок", "Я ещё в душе")),
    ("БУГУРТ ИЛИ АНТИБУГУРТ?", ("Бугурт", "Антибугурт", "#достаточно")),
    ("КУДА ДЕВАЮТСЯ НОСКИ?", ("В Анапу", "К соседям", "Их не было")),
)
WEEKLY = "ПЯТНИЦА"
EMOJI = ("🔥", "😁", "👍", "❤", "😢", "🤔", "🐳", "🗿")


def read_posts() -> list[str]:
    """The invented posts, in a fixed order that mixes their themes."""
    text = (HERE / "posts.txt").read_text(encoding="utf-8")
    posts = [p.strip("\n") for p in text.split("\n---\n")]
    random.Random(7).shuffle(posts)
    return posts


def link(text: str, href: str) -> dict[str, str]:
    return {"type": "text_link", "text": text, "href": href}


def entity(kind: str, text: str) -> dict[str, str]:
    return {"type": kind, "text": text}


class Maker:
    """Appends messages, with ids and times that only grow."""

    def __init__(self, seed: int = 20190114) -> None:
        self.rng = random.Random(seed)
        self.messages: list[Message] = []
        self.id = 0
        self.now = START

    def tick(self) -> None:
        self.now += timedelta(seconds=self.rng.randrange(2 * 3600, 30 * 3600))
        self.next_id()

    def next_id(self) -> None:
        # A deleted message leaves a gap.
        self.id += 1 if self.rng.random() > 0.04 else self.rng.randrange(2, 5)

    def add(self, parts: list[Part], *, same_moment: bool = False, kind: str = "message", **fields: Any) -> Message:
        if same_moment:
            self.id += 1
        else:
            self.tick()
        unix = int(self.now.timestamp())
        head: Message = {
            "id": self.id,
            "type": kind,
            "date": (self.now + MOSCOW).strftime("%Y-%m-%dT%H:%M:%S"),
            "date_unixtime": str(unix),
        }
        if kind == "message":
            if self.rng.random() < 0.08:
                edited = self.now + timedelta(seconds=self.rng.randrange(20, 7200))
                head["edited"] = (edited + MOSCOW).strftime("%Y-%m-%dT%H:%M:%S")
                head["edited_unixtime"] = str(int(edited.timestamp()))
            head |= {"from": NAME, "from_id": f"channel{CHANNEL_ID}"}
        else:
            head |= {"actor": NAME, "actor_id": f"channel{CHANNEL_ID}"}
        message = {**head, **fields, **as_text(parts)}
        if kind == "message" and self.now > REACTIONS_FROM and self.rng.random() < 0.8:
            count = self.rng.randrange(1, 5)
            message["reactions"] = [
                {"type": "emoji", "count": self.rng.randrange(1, 400) // (n + 1) + 1, "emoji": e}
                for n, e in enumerate(self.rng.sample(EMOJI, count))
            ]
        self.messages.append(message)
        return message

    # -- the posts

    def post(self, text: str) -> None:
        """A post as the channel's editors put it: mostly with the footer, some with a picture."""
        rng = self.rng
        parts: list[Part] = []
        if rng.random() < 0.10:  # a picture as a link that nobody sees
            parts.append(link(ZERO_WIDTH, f"https://telegra.ph/file/{rng.getrandbits(80):020x}.jpg"))
        if len(self.messages) < 60 and rng.random() < 0.3:  # the habit of the first months
            parts += [FOOTER + "\n\n", *with_tags(text)]
        else:
            parts += with_tags(text)
            parts += self.footer()
        fields = {}
        if rng.random() < 0.06:
            fields = photo(rng)
        self.add(parts, **fields)

    def footer(self) -> list[Part]:
        draw = self.rng.random()
        if draw < 0.12:
            return []
        gap = "\n\n" if self.rng.random() < 0.6 else "\n"
        if draw < 0.17:
            return [gap + FOOTER]
        parts: list[Part] = [gap, link(FOOTER, HOME)]
        if self.rng.random() < 0.15:
            parts += ["\nпредложено через ", entity("mention", BOT)]
        return parts

    # -- the rest

    def news(self) -> None:
        title, address = self.rng.choice(NEWS)
        self.add([entity("hashtag", "#БТnews"), f"\n{title}\n", entity("link", address)])

    def advert(self) -> None:
        text = self.rng.choice(ADVERTS)
        self.add([text, link("подробнее", "https://primer.ru/go?utm_source=bugurt"), "\nРеклама. ООО «Пример»"])

    def forward(self) -> None:
        origin, text = self.rng.choice(FORWARDS)
        self.add([text], forwarded_from=origin)

    def poll(self) -> None:
        question, answers = self.rng.choice(POLLS)
        votes = [self.rng.randrange(5, 900) for _ in answers]
        listed = [{"text": a, "voters": v, "chosen": False} for a, v in zip(answers, votes, strict=True)]
        poll = {"question": question, "closed": False, "total_voters": sum(votes), "answers": listed}
        self.add([], poll=poll)

    def invoice(self) -> None:
        self.add(
            [],
            invoice_information={
                "title": "Кружка «БУГУРТ»",
                "description": "Кружка, из которой чай остывает медленнее, чем надежда",
                "amount": 49900,
                "currency": "RUB",
            },
        )

    def footer_only(self) -> None:
        self.add([link(FOOTER, HOME)])

    def stub(self, post: str) -> None:
        title = post.partition("\n")[0]
        page = f"https://telegra.ph/bugurt-{self.rng.randrange(1, 13):02d}-{self.rng.randrange(1, 29):02d}"
        self.add([f"{title}\n\nСлишком длинно, читать ", link("здесь", page), "\n\n", link(FOOTER, HOME)])

    def picture(self) -> None:
        self.add([], **photo(self.rng))

    def clip(self) -> None:
        self.add(
            [],
            file=NO_FILE,
            file_name="chainik.mp4",
            thumbnail=NO_FILE,
            media_type="video_file",
            mime_type="video/mp4",
            duration_seconds=self.rng.randrange(3, 60),
            width=1280,
            height=720,
        )

    def album(self, post: str) -> None:
        first = self.add([*with_tags(post), *self.footer()], **photo(self.rng))
        first.pop("edited", None)
        first.pop("edited_unixtime", None)
        for _ in range(self.rng.randrange(1, 4)):
            part = self.add([], same_moment=True, **photo(self.rng))
            for field in ("edited", "edited_unixtime", "reactions"):
                part.pop(field, None)

    def service(self, action: str, **fields: Any) -> None:
        self.add([], kind="service", action=action, **fields)

    def friday(self) -> None:
        """The one word of the week: on the next Friday at noon, if that lies ahead."""
        ahead = (4 - self.now.weekday()) % 7 or 7
        self.now = (self.now + timedelta(days=ahead)).replace(hour=8, minute=0, second=0)
        self.next_id()
        self.add([WEEKLY], same_moment=True)


def as_text(parts: list[Part]) -> Message:
    """The two forms of a text that Desktop writes: strings mixed with objects, and objects alone."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    if joined and not isinstance(joined[-1], str):
        joined.append("")  # Desktop ends with a string
    if all(isinstance(p, str) for p in joined):
        text = "".join(str(p) for p in joined)
        return {"text": text, "text_entities": [entity("plain", text)] if text else []}
    return {"text": joined, "text_entities": [entity("plain", p) if isinstance(p, str) else p for p in joined]}


def with_tags(text: str) -> list[Part]:
    """Tags alone on a line are entities of their own."""
    parts: list[Part] = []
    for number, line in enumerate(text.split("\n")):
        if number:
            parts.append("\n")
        parts.append(entity("hashtag", line) if line.startswith("#") and " " not in line else line)
    return parts


def photo(rng: random.Random) -> dict[str, Any]:
    return {"photo": NO_FILE, "photo_file_size": rng.randrange(20_000, 200_000), "width": 1080, "height": 1080}


def spoil(text: str, rng: random.Random) -> str:
    """What keyboards and clipboards do to texts: Latin Ë, no-break spaces, zero-width characters."""
    draw = rng.random()
    if draw < 0.04 and "Ё" in text:
        return text.replace("Ё", "Ë")  # the Latin letter
    if draw < 0.06:
        return text.replace(" ", "\u00a0", rng.randrange(1, 4))
    if draw < 0.075:
        at = rng.randrange(len(text))
        return text[:at] + rng.choice("\u200b\u200d\ufeff") + text[at:]
    return text


def reworded(text: str, rng: random.Random) -> str:
    """The same joke told again with a word or two changed."""
    words = [w for line in text.split("\n") if line != "@" for w in line.split() if len(w) > 4]
    for old in rng.sample(words, 2):
        text = text.replace(old, rng.choice(("ВНЕЗАПНО", "СНОВА", "КСТАТИ", "СЕГОДНЯ")), 1)
    return text


def schedule(posts: list[str], maker: Maker) -> Iterator[Callable[[], None]]:
    """Everything that the channel sends after its creation, in its order."""
    rng = maker.rng
    noise: list[Callable[[], None]] = []
    noise += [maker.news] * 46 + [maker.advert] * 14 + [maker.forward] * 16 + [maker.poll] * 6
    noise += [maker.invoice, maker.invoice] + [maker.footer_only] * 7 + [maker.picture] * 22 + [maker.clip] * 6
    noise += [maker.friday] * 16
    noise += [lambda: maker.service("pin_message", message_id=maker.id)] * 4
    noise += [lambda: maker.service("edit_group_photo", photo=NO_FILE, width=640, height=640)] * 2
    noise += [lambda: maker.service("edit_group_title", title=NAME)]
    albums = set(rng.sample(range(len(posts)), 10))
    plan: list[tuple[float, Callable[[], None]]] = [(rng.random(), n) for n in noise]
    for number, original in enumerate(posts):
        at = number / len(posts)
        text = spoil(original, rng)
        if number in albums:
            plan.append((at, lambda t=text: maker.album(t)))
        else:
            plan.append((at, lambda t=text: maker.post(t)))
        draw = rng.random()
        later = at + (1 - at) * rng.random()  # repeats come any time after the original
        if draw < 0.03:
            plan.append((later, lambda t=text: maker.post(t)))
        elif draw < 0.06 and len(text) > 240:
            plan.append((later, lambda t=text: maker.post(reworded(t, maker.rng))))
        elif draw < 0.07:
            plan.append((later, lambda t=text: maker.stub(t)))
    plan.sort(key=lambda item: item[0])
    return (action for _, action in plan)


def make() -> dict[str, Any]:
    """The whole export."""
    maker = Maker()
    maker.service("create_channel", title=NAME)
    for action in schedule(read_posts(), maker):
        action()
    return {"name": NAME, "type": "public_channel", "id": CHANNEL_ID, "messages": maker.messages}


def main() -> None:
    """Write the export."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "channel" / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        json.dump(make(), file, ensure_ascii=False, indent=1)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
