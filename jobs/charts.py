"""Charts as inline SVG: lines, bars, columns. ``jobs.html`` offers them; colours and fonts are in its style sheet.

Drawn 440 units wide, so that their text stays readable on a phone and two stand side by side on a desk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from jobs.html import Markup, escape, note, show

WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 42
COLOURS = 6  # of the style sheet; further series use them again
MAX_POINTS = 400  # a line; more cannot be seen and make a page heavy
LARGEST, TINY = 1e100, 1e-100  # beyond these numbers arithmetic on floats overflows or vanishes
CHARACTER = 7.2  # mean width of a character of the axis font, in units


def _figure(title: str, drawing: str, height: float) -> Markup:
    caption = f"<figcaption>{escape(title)}</figcaption>" if title else ""
    label = f' aria-label="{escape(title)}"' if title else ""
    return Markup(
        f'<figure>{caption}<svg viewBox="0 0 {WIDTH} {_n(height)}" role="img"{label}>{drawing}</svg></figure>'
    )


def _empty(title: str) -> Markup:
    caption = f"<figcaption>{escape(title)}</figcaption>" if title else ""
    return Markup(f"<figure>{caption}{note('nothing to draw')}</figure>")


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers that cover ``low`` to ``high`` (Heckbert's "nice numbers")."""
    if high - low <= 1e-9 * max(abs(low), abs(high), TINY):
        high = low + (abs(low) * 0.1 if abs(low) > TINY else 1.0)
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((f * power for f in (1, 2, 2.5, 5, 10)), key=lambda s: (s < rough * 0.99, s))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _tick_text(value: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1000.0 if suffix == "k" else size
            return f"{value / unit:.4g}{suffix}"
    if 0 < abs(value) < 1e-3:  # 0.00025 would not fit beside the axis
        number, _, power = f"{value:.1e}".partition("e")
        return f"{float(number):g}e{int(power)}"
    return show(int(value)) if value == int(value) else f"{value:.3g}"


def _axes(x_label: str, y_label: str, y_ticks: Sequence[float], height: int) -> str:
    bottom = height - BOTTOM
    low, high = y_ticks[0], y_ticks[-1]
    parts = []
    for value in y_ticks:
        y = bottom - (value - low) / (high - low) * (bottom - TOP)
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_n(y)}" y2="{_n(y)}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{_n(y + 4)}" text-anchor="end">{escape(_tick_text(value))}</text>')
    if x_label:
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text x="{_n(middle)}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    if y_label:
        parts.append(
            f'<text transform="translate(11 {_n((TOP + bottom) / 2)}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_label)}</text>"
        )
    return "".join(parts)


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Fewer points of the same look: lowest and highest of each stretch."""
    if len(points) <= MAX_POINTS:
        return points
    kept: list[tuple[float, float]] = [points[0]]
    stretch = math.ceil(len(points) / (MAX_POINTS / 2))
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        pair = {min(range(len(part)), key=lambda i: part[i][1]), max(range(len(part)), key=lambda i: part[i][1])}
        kept.extend(part[i] for i in sorted(pair))
    kept.append(points[-1])
    return kept


def draw_lines(
    series: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str, y_label: str, title: str
) -> Markup:
    """See ``jobs.html.line_chart``."""
    clean = {
        name: _thin(sorted((float(x), float(y)) for x, y in points if abs(x) < LARGEST and abs(y) < LARGEST))
        for name, points in series.items()
    }
    clean = {name: points for name, points in clean.items() if points}
    if not clean:
        return _empty(title)
    xs = [x for points in clean.values() for x, _ in points]
    ys = [y for points in clean.values() for _, y in points]
    y_ticks = ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(xs)
    if x_low == x_high:
        room = max(0.5, abs(x_low) * 0.01)
        x_low, x_high = x_low - room, x_high + room
    rows = _legend_rows(list(clean)) if len(clean) > 1 else []
    bottom = HEIGHT - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - TOP)

    parts = [_axes(x_label, y_label, y_ticks, HEIGHT)]
    for value in ticks(x_low, x_high):
        if x_low <= value <= x_high:
            x, _ = place(value, y_ticks[0])
            parts.append(f'<text x="{_n(x)}" y="{bottom + 17}" text-anchor="middle">{escape(_tick_text(value))}</text>')
    for number, (name, points) in enumerate(clean.items()):
        colour = number % COLOURS
        placed = [place(x, y) for x, y in points]
        tip = f"<title>{escape(name)}</title>"
        if len(placed) == 1:
            x, y = placed[0]
            parts.append(f'<circle class="f{colour}" cx="{_n(x)}" cy="{_n(y)}" r="3.5">{tip}</circle>')
        else:
            path = " ".join(f"{_n(x)},{_n(y)}" for x, y in placed)
            parts.append(f'<polyline class="c{colour}" points="{path}">{tip}</polyline>')
    height = HEIGHT
    for row in rows:
        height += 18
        parts.extend(
            f'<rect class="f{number % COLOURS}" x="{_n(x)}" y="{height - 12}" width="10" height="10" rx="2"/>'
            f'<text x="{_n(x + 15)}" y="{height - 3}">{escape(name)}</text>'
            for number, name, x in row
        )
    return _figure(title, "".join(parts), height + (4 if rows else 0))


def _legend_rows(names: Sequence[str]) -> list[list[tuple[int, str, float]]]:
    rows: list[list[tuple[int, str, float]]] = [[]]
    x = float(LEFT)
    for number, name in enumerate(names):
        text = name if len(name) <= 40 else name[:39] + "…"
        width = 15 + len(text) * CHARACTER + 16
        if rows[-1] and x + width > WIDTH:
            rows.append([])
            x = float(LEFT)
        rows[-1].append((number, text, x))
        x += width
    return rows


def draw_bars(values: Sequence[tuple[str, float]], *, title: str, unit: str) -> Markup:
    """See ``jobs.html.bar_chart``."""
    if not values:
        return _empty(title)
    largest = max((v for _, v in values if TINY < v < LARGEST), default=1.0)
    longest = max(len(label) for label, _ in values)
    label_width = min(180.0, longest * CHARACTER + 16)
    room = int((label_width - 10) / CHARACTER)
    texts = [show(value) + (f" {unit}" if unit else "") for _, value in values]
    width = WIDTH - label_width - max(len(t) for t in texts) * CHARACTER - 12
    parts = []
    for row, ((label, value), text) in enumerate(zip(values, texts, strict=True)):
        y = row * 24 + 4
        shown = label if len(label) <= room else label[: max(room - 1, 1)] + "…"
        length = max(value / largest * width, 1.0) if TINY < value < LARGEST else 0.0
        parts.append(
            f"<g><title>{escape(label)}: {escape(text)}</title>"
            f'<text x="{_n(label_width - 8)}" y="{y + 13}" text-anchor="end">{escape(shown)}</text>'
            f'<rect class="bar" x="{_n(label_width)}" y="{y}" width="{_n(length)}" height="17" rx="2"/>'
            f'<text class="v" x="{_n(label_width + length + 6)}" y="{y + 13}">{escape(text)}</text></g>'
        )
    return _figure(title, "".join(parts), len(values) * 24 + 6)


def draw_columns(values: Sequence[tuple[str, float]], *, title: str, x_label: str, y_label: str) -> Markup:
    """See ``jobs.html.column_chart``."""
    if not values:
        return _empty(title)
    values = [(label, value if TINY < value < LARGEST else 0.0) for label, value in values]
    y_ticks = ticks(0.0, max(v for _, v in values) or 1.0)
    bottom = HEIGHT - BOTTOM
    step = (WIDTH - LEFT - RIGHT) / len(values)
    gap = min(2.0, step * 0.15)
    widest = max(len(label) for label, _ in values) * CHARACTER + 10
    every = max(1, math.ceil(widest / step))
    parts = [_axes(x_label, y_label, y_ticks, HEIGHT)]
    for number, (label, value) in enumerate(values):
        x = LEFT + number * step
        tall = value / y_ticks[-1] * (bottom - TOP)
        parts.append(
            f'<rect class="bar" x="{_n(x + gap / 2)}" y="{_n(bottom - tall)}" width="{max(step - gap, 0.5):.2f}" '
            f'height="{_n(tall)}"><title>{escape(label)}: {escape(value)}</title></rect>'
        )
        if number % every == 0:
            parts.append(f'<text x="{_n(x + step / 2)}" y="{bottom + 17}" text-anchor="middle">{escape(label)}</text>')
    return _figure(title, "".join(parts), HEIGHT)
