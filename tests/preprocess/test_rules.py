"""Rules on real shapes of posts, and each kind of rule by itself."""

from __future__ import annotations

import time
from typing import Any

import pytest

from jobs.preprocess.draft import Draft, Entity
from jobs.preprocess.profile import Profile, builtin_names, builtin_text, parse_profile
from jobs.preprocess.rule_base import GrownError
from tests.preprocess.shapes import ROWS, Dropped

PROFILES = {name: parse_profile(builtin_text(name), name) for name in builtin_names()}


def entities(text: str, on: dict[str, tuple[str, str | None]]) -> list[Entity]:
    found = []
    for piece, (kind, url) in on.items():
        assert piece in text
        found.append(Entity(type=kind, offset=text.rindex(piece), length=len(piece), url=url))
    return found


def apply(profile: Profile, text: str, **options: Any) -> str | Dropped:
    draft = Draft.of(
        text,
        entities(text, options.get("on", {})),
        kinds=frozenset(options.get("kinds", ())),
        links=options.get("links", ()),
    )
    verdict = profile.clean(draft)
    return Dropped(verdict[0]) if verdict else draft.text


def rules(*lines: str) -> Profile:
    return parse_profile('name = "mine"\n[[rule]]\n' + "\n".join(lines), "mine.toml")


def test_the_table_has_enough_rows() -> None:
    assert len(ROWS) >= 120
    assert len({(p, t, str(o)) for p, t, _, o in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("profile", "text", "expected", "options"), ROWS, ids=range(len(ROWS)))
def test_shapes(profile: str, text: str, expected: str | Dropped, options: dict[str, Any]) -> None:
    assert apply(PROFILES[profile], text, **options) == expected


@pytest.mark.parametrize(("profile", "text", "expected", "options"), ROWS, ids=range(len(ROWS)))
def test_a_cleaned_post_is_clean(profile: str, text: str, expected: str | Dropped, options: dict[str, Any]) -> None:
    if isinstance(expected, str) and not isinstance(expected, Dropped):
        assert apply(PROFILES[profile], expected) == expected


def test_every_builtin_rule_has_a_row_that_needs_it() -> None:
    for name, profile in PROFILES.items():
        for number, rule in enumerate(profile.rule):
            without = profile.model_copy(update={"rule": profile.rule[:number] + profile.rule[number + 1 :]})
            rows = [(t, e, o) for p, t, e, o in ROWS if p == name]
            assert any(apply(without, t, **o) != e for t, e, o in rows), f"{name}: no row needs {rule.label}"


def test_names_of_changing_rules_are_remembered() -> None:
    draft = Draft.of("БУГУРТ-ТРЕД\n ЕЩË \n@ \nВСË")
    assert PROFILES["bugurt"].clean(draft) is None
    assert draft.changed_by == ["characters", "header", "separators"]


def test_footer_takes_no_more_than_max_lines() -> None:
    profile = rules('use = "strip_footer"', "lines = ['x']", "max_lines = 2")
    assert apply(profile, "a\nx\nx\nx\n") == "a\nx"


def test_header_by_entity_and_link() -> None:
    profile = rules('use = "strip_header"', 'entities = ["bold"]')
    assert apply(profile, "Заголовок!\nтекст", on={"Заголовок": ("bold", None)}) == "текст"
    assert apply(profile, "Заголовок тут\nтекст", on={"Заголовок": ("bold", None)}) == "Заголовок тут\nтекст"


def test_entities_follow_their_lines_when_others_go() -> None:
    profile = parse_profile(
        'name = "mine"\n[[rule]]\nuse = "drop_lines"\nlines = ["drop"]\n'
        '[[rule]]\nname = "f"\nuse = "strip_footer"\nentities = ["text_link"]\n',
        "mine.toml",
    )
    assert apply(profile, "one\ndrop\ntwo\nlink", on={"link": ("text_link", "http://a")}) == "one\ntwo"


def test_entity_over_several_lines_and_beyond_the_end() -> None:
    draft = Draft.of("ab\ncd\nef", [Entity(type="bold", offset=1, length=4, url=None)])
    assert [[m.whole for m in draft.marks_of(n)] for n in range(3)] == [[False], [True], []]
    draft = Draft.of("ab", [Entity(type="bold", offset=0, length=99, url=None)])
    assert draft.marks_of(0)[0].whole
    assert Draft.of("ab", [Entity(type="bold", offset=50, length=9, url=None)]).marks_of(0) == ()


def test_replace_with_groups() -> None:
    profile = rules('use = "replace"', r"pattern = '(\p{L}+) и (\p{L}+)'", r"with = '\2 и \1'")
    assert apply(profile, "кот и пёс") == "пёс и кот"


def test_replace_ignores_case_on_request() -> None:
    lines = ['use = "replace"', "pattern = 'ёж'", 'with = "уж"']
    assert apply(rules(*lines), "ЁЖ ёж") == "ЁЖ уж"
    assert apply(rules(*lines, "ignore_case = true"), "ЁЖ ёж") == "уж уж"


@pytest.mark.parametrize(
    ("lines", "text", "gone"),
    [
        (['use = "drop_short"', "characters = 5"], "мало", True),
        (['use = "drop_short"', "characters = 4"], "мало", False),
        (['use = "drop_short"', "words = 3"], "два слова", True),
        (['use = "drop_short"', "letters = 3"], "ab 12345", True),
        (['use = "drop_long"', "characters = 3"], "мало", True),
        (['use = "drop_long"', "lines = 1"], "a\nb", True),
        (['use = "drop_long"', "lines = 2"], "a\nb", False),
        (['use = "keep_post"', "text = 'нужное'"], "ненужное", False),
        (['use = "keep_post"', "text = 'важное'"], "ненужное", True),
        (['use = "drop_post"', "line = 'целая строка'"], "раз\nЦЕЛАЯ СТРОКА\nдва", True),
        (['use = "drop_post"', "line = 'целая строка'"], "не целая строка", False),
        (['use = "drop_post"', "text = 'а'", "max_characters = 3"], "аааа", False),
        (['use = "drop_post"', "text = 'а'", "max_characters = 3"], "ааа", True),
        (['use = "drop_language"', 'keep = ["ru"]'], "This is quite plainly written in English, is it not?", True),
        (['use = "drop_language"', 'keep = ["ru"]'], "А ВОТ ЭТО НАПИСАНО ПО-РУССКИ, ДА ЕЩЁ И КРИЧИТ", False),
        (['use = "drop_language"', 'keep = ["ru"]'], "ok", False),
    ],
)
def test_kinds(lines: list[str], text: str, gone: bool) -> None:
    assert isinstance(apply(rules(*lines), text), Dropped) is gone


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ЗВОНИ +7 (912) 345-67-89", "ЗВОНИ [телефон]"),
        ("звони 8 912 345 67 89, жду", "звони [телефон], жду"),
        ("89123456789", "[телефон]"),
        ("+380 44 123 45 67\n+49 30 1234567", "[телефон]\n[телефон]"),
        ("В 2019 ГОДУ БЫЛО 12345678901234567890 РУБЛЕЙ", "В 2019 ГОДУ БЫЛО 12345678901234567890 РУБЛЕЙ"),
        ("счёт 10:12, 300 раз", "счёт 10:12, 300 раз"),
        ("пиши на vasya.pupkin@mail.ru!", "пиши на [почта]!"),
        ("пиши на вася@почта.рф", "пиши на [почта]"),
        ("спроси @vasya_pupkin и @petya123", "спроси [имя] и [имя]"),
        ("@vasya @petya", "[имя] [имя]"),
        ("РАЗ\n@\nДВА", "РАЗ\n@\nДВА"),
        ("заходи https://t.me/vasya_chat/12", "заходи [имя]"),
        ("t.me/+AbCdEf123", "[имя]"),
        ("10@20", "10@20"),
    ],
)
def test_masking(text: str, expected: str) -> None:
    assert apply(rules('use = "mask_pii"'), text) == expected


def test_masking_leaves_what_is_switched_off() -> None:
    from jobs.preprocess import pii

    assert pii.mask("a@b.cc +79123456789 @vasya", phone=None, email=None, mention=None) == "a@b.cc +79123456789 @vasya"


def test_the_spec_adds_masking_at_the_end_once() -> None:
    plain = PROFILES["plain"]
    assert plain.with_masking().rule[-1].label == "mask_pii"
    assert len(plain.with_masking().with_masking().rule) == len(plain.rule) + 1


HOSTILE = {
    "combining": "а" + "\u0301\u0323" * 500_000,
    "right to left": "\u202e\u200f" * 500_000,
    "lone surrogates": "\ud83d" * 1_000_000,
    "nul": "\x00" * 1_000_000,
    "separators": "@\n" * 500_000,
    "at signs": "@" * 1_000_000,
    "spaces": " " * 1_000_000 + "x",
    "blank lines": "\n" * 1_000_000 + "x",
    "hashtags": "#БТ" * 300_000,
    "dots": "a." * 500_000,
    "digits": "+7" * 500_000,
    "phones": "8 912 345 67 8" * 70_000,
    "joiners": "\u200d" * 1_000_000,
    "one word": "Ы" * 1_000_000,
    "emoji": "👨‍👩‍👧" * 200_000,
    "mix": "".join(chr(c) for c in range(0x110000)),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("profile", ["bugurt", "plain"])
def test_a_megabyte_of_anything_neither_crashes_nor_hangs(profile: str, name: str) -> None:
    start = time.process_time()
    found = apply(PROFILES[profile].with_masking(), HOSTILE[name])
    assert time.process_time() - start < 20  # some take 2 s on a busy machine; quadratic time would take hours
    if isinstance(found, str):
        found.encode("utf-8")


def test_a_catastrophic_expression_takes_linear_time() -> None:
    profile = rules('use = "drop_post"', r"text = '^(?:(?:a+)+)+$|(?:x+x+)+y'")
    text = "a" * 300_000 + "!" + "x" * 300_000
    start = time.process_time()
    assert apply(profile, text) == text
    assert time.process_time() - start < 10


def test_many_entities_on_many_lines() -> None:
    text = "строка\n" * 20_000
    found = [Entity(type="bold", offset=7 * n, length=6, url=None) for n in range(20_000)]
    start = time.process_time()
    draft = Draft.of(text, found)
    assert time.process_time() - start < 10
    assert all(m.whole for n in range(20_000) for m in draft.marks_of(n))


@pytest.mark.parametrize(
    "lines",
    [
        ['use = "replace"', "pattern = '.'", f'with = "{"ха" * 500}"'],
        ['use = "replace"', "pattern = ''", 'with = "заметно длиннее пустоты"'],
        ['use = "clean_characters"', f'replace = {{ "а" = "{"ха" * 500}" }}'],
    ],
)
def test_a_rule_that_makes_a_book_of_a_post_is_stopped_early(lines: list[str]) -> None:
    start = time.process_time()
    with pytest.raises(GrownError) as caught:
        apply(rules(*lines), "а" * 1_000_000)
    assert caught.value.rule == 0
    assert time.process_time() - start < 20  # gigabytes would take longer, if not all memory


def test_doubling_again_and_again_is_stopped() -> None:
    text = 'name = "mine"\n' + "".join(
        f"[[rule]]\nname = 'r{n}'\nuse = 'replace'\npattern = '(?s)(.+)'\nwith = '\\1\\1'\n" for n in range(60)
    )
    with pytest.raises(GrownError) as caught:
        apply(parse_profile(text, "mine.toml"), "ЭХО ")
    assert 15 < caught.value.rule < 25
