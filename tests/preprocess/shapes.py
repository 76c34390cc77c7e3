"""Posts as channels write them, invented: what each becomes, or which rule drops it.

A row is (profile, text, expected, options). ``expected`` is the cleaned text, or Dropped(rule). Options: ``kinds``
and ``links`` as ``Draft.of`` takes them; ``on``: pieces of the text that carry formatting, as
{piece: (type, address)}.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Dropped:
    """The post is dropped by this rule."""

    rule: str


CHANNEL = ("text_link", "https://t.me/bugurt_primer")
B, P = "bugurt", "plain"
Row = tuple[str, str, "str | Dropped", dict[str, Any]]


def _(profile: str, text: str, expected: str | Dropped, **options: Any) -> Row:
    return profile, text, expected, options


ROWS: list[Row] = [
    # -- nothing to do
    _(B, "ВАРЮ КОФЕ\n@\nКОФЕ ВАРИТ МЕНЯ", "ВАРЮ КОФЕ\n@\nКОФЕ ВАРИТ МЕНЯ"),
    _(B, "КОТ СПИТ", "КОТ СПИТ"),
    _(B, "Кот спит\n@\nа ты работаешь", "Кот спит\n@\nа ты работаешь"),
    _(B, "НЕСЁШЬ АРБУЗ\n@\nАРБУЗ НЕСЁТ ТЕБЯ 😂", "НЕСЁШЬ АРБУЗ\n@\nАРБУЗ НЕСЁТ ТЕБЯ 😂"),
    _(B, "ПРИВЕТ, %НЕЙМ%\n@\nКАК ДЕЛА, %НЕЙМ%", "ПРИВЕТ, %НЕЙМ%\n@\nКАК ДЕЛА, %НЕЙМ%"),
    _(B, "ЦЕНА 100$\n@\nКУРС 50/50\n@\nИТОГО: 0", "ЦЕНА 100$\n@\nКУРС 50/50\n@\nИТОГО: 0"),
    _(B, "👨‍👩‍👧 ПРИЕХАЛИ", "👨‍👩‍👧 ПРИЕХАЛИ"),
    _(B, "ОДНА СТРОКА\nВТОРАЯ\n@\nТРЕТЬЯ", "ОДНА СТРОКА\nВТОРАЯ\n@\nТРЕТЬЯ"),
    # -- tags alone on a line are punchlines
    _(B, "ОПЯТЬ ДОЖДЬ\n@\n#бугурт", "ОПЯТЬ ДОЖДЬ\n@\n#бугурт"),
    _(B, "НАШЁЛ НОСОК\n@\nВТОРОЙ ТОЖЕ\n@\n#антибугурт", "НАШЁЛ НОСОК\n@\nВТОРОЙ ТОЖЕ\n@\n#антибугурт"),
    _(B, "ХВАТИТ\n#достаточно", "ХВАТИТ\n#достаточно"),
    _(B, "#бугурт\nЛИФТ ЗАСТРЯЛ", "#бугурт\nЛИФТ ЗАСТРЯЛ", on={"#бугурт": ("hashtag", None)}),
    _(B, "ЛИФТ ЗАСТРЯЛ\n@\n#бугурт\nБУГУРТ-ТРЕД", "ЛИФТ ЗАСТРЯЛ\n@\n#бугурт"),
    _(B, "#бугурт", "#бугурт"),
    # -- pauses
    _(B, "ЖДЁШЬ\n@\n@\n@\nДОЖДАЛСЯ", "ЖДЁШЬ\n@\n@\n@\nДОЖДАЛСЯ"),
    _(B, "ЖДЁШЬ\n@\n\n@\n\n@\nДОЖДАЛСЯ", "ЖДЁШЬ\n@\n@\n@\nДОЖДАЛСЯ"),
    _(B, "ЖДЁШЬ\n@@@\nДОЖДАЛСЯ", "ЖДЁШЬ\n@\n@\n@\nДОЖДАЛСЯ"),
    _(B, "ЖДЁШЬ\n@ @ @\nДОЖДАЛСЯ", "ЖДЁШЬ\n@\n@\n@\nДОЖДАЛСЯ"),
    _(B, "ЖДЁШЬ\n@@@@@@@@@@\nДОЖДАЛСЯ", "ЖДЁШЬ\n@\n@\n@\n@\n@\nДОЖДАЛСЯ"),
    # -- separators in one form
    _(B, "ПЕРВОЕ\n @\nВТОРОЕ", "ПЕРВОЕ\n@\nВТОРОЕ"),
    _(B, "ПЕРВОЕ\n@ \nВТОРОЕ", "ПЕРВОЕ\n@\nВТОРОЕ"),
    _(B, "ПЕРВОЕ\n\n@\n\nВТОРОЕ", "ПЕРВОЕ\n@\nВТОРОЕ"),
    _(B, "ПЕРВОЕ\n＠\nВТОРОЕ", "ПЕРВОЕ\n@\nВТОРОЕ"),
    _(B, "ПЕРВОЕ\n﹫\nВТОРОЕ", "ПЕРВОЕ\n@\nВТОРОЕ"),
    _(B, "ПЕРВОЕ\n\u00a0@\u00a0\nВТОРОЕ", "ПЕРВОЕ\n@\nВТОРОЕ"),
    _(B, "ПЕРВОЕ\n\u200b@\nВТОРОЕ", "ПЕРВОЕ\n@\nВТОРОЕ"),
    _(B, "ПЕРВОЕ @\nВТОРОЕ", "ПЕРВОЕ\n@\nВТОРОЕ"),
    _(B, "ПЕРВОЕ\n@ ВТОРОЕ", "ПЕРВОЕ\n@\nВТОРОЕ"),
    _(B, "@\nПЕРВОЕ\n@\nВТОРОЕ", "ПЕРВОЕ\n@\nВТОРОЕ"),
    _(B, "ПЕРВОЕ\n@\nВТОРОЕ\n@", "ПЕРВОЕ\n@\nВТОРОЕ"),
    _(B, "ПЕРВОЕ\n@\nВТОРОЕ\n@\nБУГУРТ-ТРЕД", "ПЕРВОЕ\n@\nВТОРОЕ"),
    _(B, "ПЕРВОЕ\r\n@\r\nВТОРОЕ\r\n", "ПЕРВОЕ\n@\nВТОРОЕ"),
    _(B, "ПЕРВОЕ\u2028@\u2028ВТОРОЕ", "ПЕРВОЕ\n@\nВТОРОЕ"),
    _(B, "ПИШУ НА vasya@yandex\n@\nНЕ ДОШЛО", "ПИШУ НА vasya@yandex\n@\nНЕ ДОШЛО"),
    _(B, "ЗОВУ @vasyanchik\n@\nНЕ ИДЁТ", "ЗОВУ @vasyanchik\n@\nНЕ ИДЁТ"),
    # -- headers
    _(B, "БУГУРТ-ТРЕД\nЧАЙНИК СВИСТИТ", "ЧАЙНИК СВИСТИТ"),
    _(B, "Бугурт-тред\n\nЧАЙНИК СВИСТИТ", "ЧАЙНИК СВИСТИТ"),
    _(B, "БУГУРТ ТРЕД\n@\nЧАЙНИК СВИСТИТ", "ЧАЙНИК СВИСТИТ"),
    _(B, "🔥БУГУРТ-ТРЕД🔥\nЧАЙНИК СВИСТИТ", "ЧАЙНИК СВИСТИТ"),
    _(B, "«БУГУРТ–ТРЕД».\nЧАЙНИК СВИСТИТ", "ЧАЙНИК СВИСТИТ"),
    _(B, "ОТКРЫЛ БУГУРТ-ТРЕД\n@\nЗАКРЫЛ", "ОТКРЫЛ БУГУРТ-ТРЕД\n@\nЗАКРЫЛ"),
    _(B, "СИДИШЬ\n@\nБУГУРТ-ТРЕД\n@\nЛЕЖИШЬ", "СИДИШЬ\n@\nБУГУРТ-ТРЕД\n@\nЛЕЖИШЬ"),
    _(B, "МОЙ БУГУРТ-ТРЕД ЛУЧШЕ", "МОЙ БУГУРТ-ТРЕД ЛУЧШЕ"),
    # -- footers
    _(B, "УТЮГ ОСТАЛСЯ ДОМА\nБУГУРТ-ТРЕД", "УТЮГ ОСТАЛСЯ ДОМА", on={"БУГУРТ-ТРЕД": CHANNEL}),
    _(B, "УТЮГ ОСТАЛСЯ ДОМА\nБУГУРТ-ТРЕД", "УТЮГ ОСТАЛСЯ ДОМА"),
    _(B, "УТЮГ ОСТАЛСЯ ДОМА\n\n\nБУГУРТ-ТРЕД\n\n", "УТЮГ ОСТАЛСЯ ДОМА"),
    _(B, "УТЮГ\n@\nДОМА\n\nбугурт-тред", "УТЮГ\n@\nДОМА"),
    _(B, "УТЮГ\nБУГУРТ-ТРЕД\nпредложено через @bugurt_bot", "УТЮГ"),
    _(B, "УТЮГ\nПредложено через @predlozhka_bt_bot", "УТЮГ"),
    _(B, "УТЮГ\nПРЕДЛОЖЕН ЧЕРЕЗ @btbot.", "УТЮГ"),
    _(B, "УТЮГ\nпредложено @btbot", "УТЮГ"),
    _(B, "УТЮГ\nПредложить бугурт: @bt_bot", "УТЮГ"),
    _(B, "УТЮГ\nПРИШЛИ СВОЙ БУГУРТ", "УТЮГ"),
    _(B, "УТЮГ\nПодписаться", "УТЮГ", on={"Подписаться": CHANNEL}),
    _(B, "УТЮГ\n👉 Подпишись на канал", "УТЮГ"),
    _(B, "УТЮГ\nНаш чат: t.me/bt_chat", "УТЮГ"),
    _(B, "УТЮГ\n@bugurt_primer", "УТЮГ", on={"@bugurt_primer": ("mention", None)}),
    _(B, "УТЮГ\nt.me/bugurt_primer", "УТЮГ"),
    _(B, "УТЮГ\nhttps://t.me/bugurt_primer/15", "УТЮГ"),
    _(B, "УТЮГ\nБУГУРТ-ТРЕД | @bugurt_primer", "УТЮГ"),
    _(B, "УТЮГ\nЖМИ СЮДА", "УТЮГ", on={"ЖМИ СЮДА": CHANNEL}),
    _(B, "УТЮГ\n💬 ОБСУДИТЬ 💬", "УТЮГ", on={"ОБСУДИТЬ": CHANNEL}),
    _(B, "УТЮГ\nМЫ ВКОНТАКТЕ", "УТЮГ", on={"МЫ ВКОНТАКТЕ": ("text_link", "https://vk.com/bt")}),
    _(B, "УТЮГ\nИсточник: сосед", "УТЮГ"),
    _(B, "УТЮГ\nПрислал подписчик Олег", "УТЮГ"),
    # a hidden link that leads elsewhere, or on a part of the line, is text
    _(B, "УТЮГ\nПРУФ", "УТЮГ\nПРУФ", on={"ПРУФ": ("text_link", "https://example.org/1")}),
    _(B, "УТЮГ\nСМОТРИ ТУТ И ПЛАЧЬ", "УТЮГ\nСМОТРИ ТУТ И ПЛАЧЬ", on={"ТУТ": CHANNEL}),
    _(B, "УТЮГ\nЖИРНО", "УТЮГ\nЖИРНО", on={"ЖИРНО": ("bold", None)}),
    # the same words elsewhere are text
    _(B, "ПОДПИСАТЬСЯ НА ГАЗЕТУ\n@\nГАЗЕТА НЕ ПРИШЛА", "ПОДПИСАТЬСЯ НА ГАЗЕТУ\n@\nГАЗЕТА НЕ ПРИШЛА"),
    _(B, "НАШ ЧАТ ДОМА\n@\nОБСУЖДАЮТ ТЕБЯ", "НАШ ЧАТ ДОМА\n@\nОБСУЖДАЮТ ТЕБЯ"),
    _(B, "ИСТОЧНИК ВЫСОХ\n@\nПЬЁШЬ ИЗ ЛУЖИ", "ИСТОЧНИК ВЫСОХ\n@\nПЬЁШЬ ИЗ ЛУЖИ"),
    # -- invisible signs
    _(B, "\u200cСЛОН В ЛИФТЕ", "СЛОН В ЛИФТЕ", on={"\u200c": ("text_link", "https://t.me/pic/1")}),
    _(B, "\u200bСЛОН\u200d В\ufeff ЛИФТЕ\u200c", "СЛОН В ЛИФТЕ"),
    _(B, "СЛОН\u00a0В\u00a0ЛИФТЕ", "СЛОН В ЛИФТЕ"),
    _(B, "СЛОН\u2009В\u3000ЛИФТЕ", "СЛОН В ЛИФТЕ"),
    _(B, "СЛОН\tВ\tЛИФТЕ", "СЛОН В ЛИФТЕ"),
    _(B, "СЛО\u00adН В ЛИ\u200eФТЕ\u202e", "СЛОН В ЛИФТЕ"),
    _(B, "СЛОН\x00 В\x07 ЛИФТЕ\x1b", "СЛОН В ЛИФТЕ"),
    _(B, "СЛОН\ud83d В ЛИФТЕ", "СЛОН В ЛИФТЕ"),
    _(B, "СЛОН\x85В ЛИФТЕ", "СЛОН\nВ ЛИФТЕ"),
    _(B, "ЕЩË НЕ ВСË, пËс", "ЕЩЁ НЕ ВСЁ, пЁс"),
    _(B, "и\u0306од и е\u0308лка", "йод и ёлка"),
    # no more than four marks on a letter
    _(B, "З\u0336А\u0335\u0336Л\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307ГО",
      "З\u0336А\u0335\u0336Л\u0300\u0301\u0302\u0303ГО"),
    _(B, "❤️ И 🏳️‍🌈", "❤️ И 🏳️‍🌈"),
    # -- spaces and blank lines
    _(B, "  КРАЯ  \n  ЕЩЁ  ", "КРАЯ\nЕЩЁ"),
    _(B, "МНОГО    ПРОБЕЛОВ", "МНОГО ПРОБЕЛОВ"),
    _(B, "АБЗАЦ\n\n\nДРУГОЙ", "АБЗАЦ\nДРУГОЙ"),
    _(B, "\n\nПУСТО СВЕРХУ", "ПУСТО СВЕРХУ"),
    # -- link lines
    _(B, "КУПИЛ СТУЛ\nhttps://shop.example/stul\n@\nСТУЛ КУПИЛ МЕНЯ", "КУПИЛ СТУЛ\n@\nСТУЛ КУПИЛ МЕНЯ"),
    _(B, "КУПИЛ СТУЛ\nstul.ru\n@\nСТОЮ", "КУПИЛ СТУЛ\n@\nСТОЮ"),
    _(B, "КУПИЛ СТУЛ\nподробнее на stul.ru/news/1\n@\nСТОЮ", "КУПИЛ СТУЛ\n@\nСТОЮ"),
    _(B, "КУПИЛ СТУЛ\n@\nстул-мечты.com нет, есть stul-mechty.com", "КУПИЛ СТУЛ"),
    _(B, "КУПИЛ СТУЛ\nHTTPS://STUL.RU\n@\nСТОЮ", "КУПИЛ СТУЛ\n@\nСТОЮ"),
    _(B, "КУПИЛ СТУЛ\nSTUL.RU/AKCIYA\n@\nСТОЮ", "КУПИЛ СТУЛ\n@\nСТОЮ"),
    _(B, "ЗАШЁЛ НА MAIL.RU\n@\nПИСЕМ НЕТ", "ЗАШЁЛ НА MAIL.RU\n@\nПИСЕМ НЕТ"),
    _(B, "СИЖУ В VK.COM\n@\nНИКТО НЕ ПИШЕТ", "СИЖУ В VK.COM\n@\nНИКТО НЕ ПИШЕТ"),
    _(B, "ЧИТАЮ ЯНДЕКС.РУ\n@\nОН ЧИТАЕТ МЕНЯ", "ЧИТАЮ ЯНДЕКС.РУ\n@\nОН ЧИТАЕТ МЕНЯ"),
    _(B, "Заходишь на Mail.ru\n@\nПусто", "Заходишь на Mail.ru\n@\nПусто"),
    _(B, "УШЁЛ.ПРИШЁЛ.ru\n@\nТОЧКА", "УШЁЛ.ПРИШЁЛ.ru\n@\nТОЧКА"),
    # -- posts that are not the channel's own text
    _(B, "Закреплено", Dropped("service"), kinds={"service"}),
    _(B, "", Dropped("service"), kinds={"service", "photo"}),
    _(B, "ЧУЖОЙ БУГУРТ", Dropped("forwarded"), kinds={"forwarded"}),
    _(B, "ЧТО ЛУЧШЕ?", Dropped("poll"), kinds={"poll"}),
    _(B, "КРУЖКА", Dropped("invoice"), kinds={"invoice"}),
    _(B, "ФОТО С ПОДПИСЬЮ", "ФОТО С ПОДПИСЬЮ", kinds={"photo", "album"}),
    _(B, "ЧЕРЕЗ БОТА", "ЧЕРЕЗ БОТА", kinds={"via_bot"}),
    # -- empty
    _(B, "", Dropped("empty"), kinds={"photo"}),
    _(B, "   \n \t", Dropped("empty")),
    _(B, "\u200c", Dropped("empty"), on={"\u200c": ("text_link", "https://t.me/pic/1")}),
    _(B, "\u200b\u200d\ufeff\u00a0", Dropped("empty")),
    _(B, "@", Dropped("empty")),
    _(B, "@\n@\n@", Dropped("empty")),
    _(B, "\ud800", Dropped("empty")),
    _(B, "\x00\x01", Dropped("empty")),
    _(B, "😂", "😂"),
    _(B, "...", "..."),
    # -- nothing left
    _(B, "БУГУРТ-ТРЕД", Dropped("nothing_left")),
    _(B, "БУГУРТ-ТРЕД\nБУГУРТ-ТРЕД", Dropped("nothing_left")),
    _(B, "БУГУРТ-ТРЕД\nпредложено через @bt_bot", Dropped("nothing_left"), on={"БУГУРТ-ТРЕД": CHANNEL}),
    _(B, "@\nБУГУРТ-ТРЕД", Dropped("nothing_left")),
    _(B, "@bugurt_primer", Dropped("nothing_left")),
    _(B, "https://example.org/video", Dropped("nothing_left")),
    _(B, "site.ru", Dropped("nothing_left")),
    # -- news and advertisements
    _(B, "#БТnews\nСлон купил лифт\nslon.ru/?utm_source=bt", Dropped("news")),
    _(B, "#БТnews", Dropped("news")),
    _(B, "#бтnews СЛОН УШЁЛ", Dropped("news")),
    _(B, "СЛОН УШЁЛ #БТnews", Dropped("news")),
    _(B, "СЛОН УШЁЛ\n\n# БТnews", Dropped("news")),
    _(B, "СЛОН УШЁЛ\n#БТ_news\nБУГУРТ-ТРЕД", Dropped("news")),
    _(B, "#БТnewsletter\n@\nЭТО ДРУГОЕ", "#БТnewsletter\n@\nЭТО ДРУГОЕ"),
    _(B, "ЛУЧШИЙ КУРС\nkurs.ru/?utm_source=tg&utm_medium=post", Dropped("advertisement")),
    _(B, "ЛУЧШИЙ КУРС\n#реклама", Dropped("advertisement")),
    _(B, "Реклама. ООО «Слон»\nПокупайте", Dropped("advertisement")),
    _(B, "На правах рекламы\nПОКУПАЙТЕ СЛОНА", Dropped("advertisement")),
    _(B, "ПОКУПАЙТЕ\nerid: 2VtzqwX1aB", Dropped("advertisement")),
    _(B, "ПОКУПАЙТЕ СЛОНА ТУТ", Dropped("advertisement_link"), links=["https://slon.ru/?utm_campaign=1"]),
    _(B, "СМОТРИШЬ\n@\nРЕКЛАМА\n@\nКИНО КОНЧИЛОСЬ", "СМОТРИШЬ\n@\nРЕКЛАМА\n@\nКИНО КОНЧИЛОСЬ"),
    # -- stubs
    _(B, "Слишком длинно для телеги\nЧитать дальше", Dropped("stub"), links=["https://telegra.ph/Slon-01-01"]),
    _(B, "БУГУРТ НЕ ВЛЕЗ", Dropped("stub"), links=["http://telegra.ph/x"]),
    _(B, "ЧИТАТЬ ПОЛНОСТЬЮ ТУТ", Dropped("stub"), links=["https://teletype.in/@bt/1"]),
    _(B, "СЛИШКОМ ДЛИННО ЖДАТЬ ЛИФТ\n@\nПОШЁЛ ПЕШКОМ", "СЛИШКОМ ДЛИННО ЖДАТЬ ЛИФТ\n@\nПОШЁЛ ПЕШКОМ"),
    _(B, "СЛОН В ЛИФТЕ, КАРТИНКА ЕСТЬ", "СЛОН В ЛИФТЕ, КАРТИНКА ЕСТЬ", links=["https://telegra.ph/file/1.jpg"]),
    # -- plain: paragraphs, links, hashtags, mentions and separators stay
    _(P, "Доброе утро!\n\nСегодня варим борщ.", "Доброе утро!\n\nСегодня варим борщ."),
    _(P, "Абзац\n\n\n\nЕщё один", "Абзац\n\nЕщё один"),
    _(P, "Рецепт: https://example.org/borsch", "Рецепт: https://example.org/borsch"),
    _(P, "https://example.org/borsch", Dropped("only_link")),
    _(P, "https://a.example\nhttps://b.example ", Dropped("only_link")),
    _(P, "#борщ", "#борщ"),
    _(P, "@povar", "@povar"),
    _(P, "@", "@"),
    _(P, "БУГУРТ-ТРЕД", "БУГУРТ-ТРЕД"),
    _(P, "", Dropped("empty")),
    _(P, "\u200c", Dropped("empty")),
    _(P, "Переслано", Dropped("forwarded"), kinds={"forwarded"}),
    _(P, "Опрос", Dropped("poll"), kinds={"poll"}),
    _(P, "Счёт", Dropped("invoice"), kinds={"invoice"}),
    _(P, "joined", Dropped("service"), kinds={"service"}),
    _(P, "Соль\u00a0— 5\u202fг", "Соль — 5 г"),
    _(P, "שלום\u200f עולם", "שלום עולם"),
    _(P, "日本語\u3000です", "日本語 です"),
    _(P, "Ëлки остались", "Ëлки остались"),
    _(P, "  отступ  ", "отступ"),
    _(P, "१२३ नमस्ते", "१२३ नमस्ते"),
]  # fmt: skip
