"""Texts for tests: invented ones by a seed, and real ones where fortunes-ru is installed."""

from __future__ import annotations

import random
from pathlib import Path

FORTUNES = Path("/usr/share/games/fortunes/ru")

WHO = ["кот", "пёс", "сосед", "начальник", "лифт", "чайник", "трамвай", "голубь", "холодильник", "ёж", "дворник"]
DOES = ["ищет", "зовёт", "теряет", "чинит", "прячет", "пересчитывает", "критикует", "перепутал", "ждёт", "жуёт"]
WHAT = ["носки", "борщ", "отчёт", "зонтик", "ключи", "пельмени", "маршрутку", "пароль", "тапки", "отпуск", "подъезд"]
WHEN = ["по средам", "молча", "с утра", "без очереди", "на балконе", "третий год", "шёпотом", "из принципа"]


def line(draw: random.Random) -> str:
    """A line that nobody wrote."""
    extra = f" {draw.randrange(2, 99)} раз" if draw.random() < 0.2 else ""
    return f"{draw.choice(WHO)} {draw.choice(DOES)} {draw.choice(WHAT)} {draw.choice(WHEN)}{extra}".upper()


def posts(count: int, seed: int = 0, lines: tuple[int, int] = (3, 7)) -> list[str]:
    """Different posts of that many lines, parted by "@"."""
    draw = random.Random(seed)
    return ["\n@\n".join(line(draw) for _ in range(draw.randint(*lines))) for _ in range(count)]


def near(text: str, draw: random.Random) -> str:
    """A near-duplicate: a word changed."""
    words = text.split(" ")
    words[draw.randrange(len(words))] = draw.choice(WHO).upper()
    return " ".join(words)


def fortunes() -> list[str]:
    """Real texts, in Russian; empty where they are not installed."""
    if not FORTUNES.is_dir():
        return []
    files = sorted(p for p in FORTUNES.iterdir() if p.is_file() and p.suffix not in (".dat", ".u8"))
    texts = (p.read_text(encoding="utf-8", errors="replace") for p in files)
    return [t.strip() for text in texts for t in text.split("\n%\n") if t.strip()]
