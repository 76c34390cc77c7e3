"""A word mixer: invented posts in the manner of a Russian «бугурт» channel, good-humoured and seeded.

Offsets of entities are kept in UTF-16 code units, as Telegram counts them: an emoji is two.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from telethon.tl import TLObject
from telethon.tl import types as t

WHO = (
    "КОТ", "ДЕД", "СОСЕД СВЕРХУ", "БАБУШКА", "СТУДЕНТ", "ВАХТЁРША", "САНТЕХНИК", "ПОПУГАЙ", "ЗАВХОЗ",
    "ДЯДЯ ТОЛЯ", "ФИЗРУК", "ГОЛУБЬ", "КОНДУКТОР", "ПРОГРАММИСТ", "ТЁЩА", "ЁЖ", "БИБЛИОТЕКАРЬ", "ХОМЯК",
    "ДВОЙНИК ИЗ БУДУЩЕГО", "МЛАДШИЙ НАУЧНЫЙ СОТРУДНИК", "%НЕЙМ%",
)  # fmt: skip
DOES = (
    "НЕСЁТ", "ЧИНИТ", "ИЩЕТ", "ПРЯЧЕТ", "ОХРАНЯЕТ", "ДОЕДАЕТ", "ИЗОБРЕТАЕТ", "КРАСИТ", "ПЕРЕИМЕНОВЫВАЕТ",
    "ОБНИМАЕТ", "ЗАЩИЩАЕТ", "ВСПОМИНАЕТ", "РАЗГАДЫВАЕТ", "ПОЛИВАЕТ", "ВЗВЕШИВАЕТ", "ВОСПИТЫВАЕТ",
)  # fmt: skip
DO = (
    "КУПИТЬ", "ПОТЕРЯТЬ", "НАЙТИ", "ПОЧИНИТЬ", "УГОСТИТЬ СОСЕДЕЙ И ЗАБЫТЬ", "ПОКРАСИТЬ", "ПОДАРИТЬ",
    "ОТКРЫТЬ", "ПРИДУМАТЬ", "УРОНИТЬ", "ЗАСЛУЖИТЬ", "ПРОВЕРИТЬ", "СФОТОГРАФИРОВАТЬ", "ПРИРУЧИТЬ",
)  # fmt: skip
WHAT = (
    "ЧАЙНИК", "ПЕЛЬМЕНИ", "ГАРАЖ", "КАКТУС", "ДИПЛОМ", "ЗОНТИК", "КОМПОТ", "САМОВАР", "ТАПОЧКИ", "ВЕЛОСИПЕД",
    "РАССАДУ", "ТЕЛЕВИЗОР", "БАЛКОН", "СМЫСЛ ЖИЗНИ", "ПОСЛЕДНИЙ БУТЕРБРОД", "ВАРЕНЬЕ", "ГИТАРУ", "ОТПУСК",
    "ПУЛЬТ", "СЕМЕЙНУЮ РЕЛИКВИЮ", "МАНДАРИНЫ", "НОСКИ",
)  # fmt: skip
WHERE = (
    "НА ДАЧЕ", "В ЛИФТЕ", "ПОД ДИВАНОМ", "В ОЧЕРЕДИ", "НА БАЛКОНЕ", "В ЭЛЕКТРИЧКЕ", "ЗА ГАРАЖАМИ", "В ДЕКАНАТЕ",
    "НА КРЫШЕ", "В ШКАФУ", "НА ОСТАНОВКЕ", "В МУЗЕЕ", "ВО СНЕ", "НА СОБРАНИИ ЖИЛЬЦОВ", "В ПОЛОВИНЕ ТРЕТЬЕГО",
)  # fmt: skip
THEN = (
    "НИКТО НЕ УДИВИЛСЯ", "ВСЕ ЗАХЛОПАЛИ", "ЧАЙ УЖЕ ОСТЫЛ", "ЭТО БЫЛ ВТОРНИК", "А ХЛЕБ ТАК И НЕ КУПИЛИ",
    "ДЕД ЗНАЛ С САМОГО НАЧАЛА", "КОТ СМОТРИТ С УВАЖЕНИЕМ", "ТЕПЕРЬ ЗДЕСЬ МУЗЕЙ", "ПРИШЛОСЬ УСЫНОВИТЬ",
    "ОКАЗАЛОСЬ, ЭТО РЕПЕТИЦИЯ", "В ПРОТОКОЛ НЕ ВНОСИТЬ", "ЗАВТРА ПОВТОРИТЬ", "ЗАТО С ПЕСНЕЙ",
)  # fmt: skip
TAGS = ("#бугурт", "#антибугурт", "#достаточно")
HEADER = "БУГУРТ-ТРЕД"
EMOJI = ("🫖", "🦔", "🥟", "🐈", "🚲")


def utf16_len(text: str) -> int:
    """Length as Telegram counts it."""
    return len(text.encode("utf-16-le")) // 2


class Rich:
    """Text that is put together piece by piece, with the entities of the pieces."""

    def __init__(self, text: str = "") -> None:
        self._parts: list[str] = [text]
        self._length = utf16_len(text)
        self.entities: list[TLObject] = []

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def add(self, text: str, make: Callable[[int, int], TLObject] | None = None) -> Rich:
        """Append `text`; `make(offset, length)` gives the entity that covers it."""
        size = utf16_len(text)
        if make is not None:
            self.entities.append(make(self._length, size))
        self._parts.append(text)
        self._length += size
        return self


class Composer:
    """Writes posts. The same seed and the same sequence of wishes give the same posts."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def line(self) -> str:
        pick = self.rng.choice
        shape = self.rng.randrange(5)
        if shape == 0:
            return f"{pick(DO)} {pick(WHAT)} {pick(WHERE)}"
        if shape == 1:
            return f"{pick(WHO)} {pick(DOES)} {pick(WHAT)}"
        if shape == 2:
            return f"{pick(WHO)} УЖЕ {pick(WHERE)} И {pick(DOES)} {pick(WHAT)}"
        if shape == 3:
            return f"ХОТЕТЬ {pick(DO)} {pick(WHAT)}, НО {pick(WHO)} {pick(DOES)} {pick(WHAT)} {pick(WHERE)}"
        return pick(THEN)

    def lines(self) -> str:
        """Two to nine lines with `@` between; now and then a pause of three."""
        count = min(9, 2 + int(self.rng.expovariate(0.5)))
        text = self.line()
        for _ in range(count - 1):
            text += ("\n@\n@\n@\n" if self.rng.random() < 0.05 else "\n@\n") + self.line()
        if self.rng.random() < 0.02:
            text = text.replace("Ё", "Ë").replace(" ", "\u00a0", 1)  # the Latin letter; a no-break space
        return text

    def post(self) -> Rich:
        """A post as the channel writes it: lines, perhaps a tag, and mostly the footer with its hidden link."""
        rich = Rich()
        roll = self.rng.random()
        if roll < 0.08:
            rich.add(self.rng.choice(EMOJI)).add("\n@\n")
        if roll > 0.9:
            rich.add(self.line(), t.MessageEntityBold).add("\n@\n")
        rich.add(self.lines())
        if self.rng.random() < 0.06:
            rich.add("\n").add(self.rng.choice(TAGS), t.MessageEntityHashtag)
        if self.rng.random() < 0.86:
            self.footer(rich)
        return rich

    def footer(self, rich: Rich) -> Rich:
        rich.add("\n").add(HEADER, lambda o, n: t.MessageEntityTextUrl(o, n, "https://t.me/joinchat/bugurt"))
        if self.rng.random() < 0.1:
            rich.add("\nпредложено через ").add("@predlozhi_bot", t.MessageEntityMention)
        return rich

    def linked_photo(self) -> Rich:
        """A photo as a zero-width link, which shows as a preview under the post."""
        url = f"https://telegra.ph/file/{self.rng.getrandbits(64):016x}.jpg"
        rich = Rich().add("\u200c", lambda o, n: t.MessageEntityTextUrl(o, n, url))
        return self.footer(rich.add(self.lines()))

    def custom_emoji(self) -> Rich:
        document = self.rng.getrandbits(62)
        rich = Rich().add("🦔", lambda o, n: t.MessageEntityCustomEmoji(o, n, document))
        return self.footer(rich.add(f" {self.lines()}"))

    def advert(self) -> Rich:
        """A paid post: a tag, and a link without a scheme."""
        site = f"chainik{self.rng.randrange(90) + 10}.ru/?utm_source=bugurt"
        rich = Rich().add("#БТnews", t.MessageEntityHashtag).add(f"\n{self.line()}\n")
        return rich.add(site, t.MessageEntityUrl)

    def stub(self) -> Rich:
        """A post too long for Telegram, read elsewhere."""
        link = f"https://telegra.ph/Bugurt-{self.rng.randrange(10_000)}"
        return Rich("Слишком длинно, читать здесь: ").add(link, t.MessageEntityUrl)
