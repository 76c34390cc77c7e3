"""Self-contained HTML pages: reports that open from a file or a bucket, on a phone or a desk, without a network.

Everything given to these functions is escaped, whatever it is; only what they return themselves (``Markup``)
passes as it is. A page carries a content security policy that allows nothing but its own style sheet, so text
that got into it from a channel can neither run nor load anything. Charts are inline SVG (``jobs.charts`` draws
them; they are offered here, too).
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")

CSS = """
:root{color-scheme:light dark;--bg:#fbfaf8;--fg:#1d1d22;--dim:#64646e;--line:#dcdad5;--card:#fff;--accent:#2f6fde;
--s0:#2f6fde;--s1:#d9622b;--s2:#2a9d6e;--s3:#a04bc4;--s4:#b8860b;--s5:#c2334d;--ins:#d9f2e1;--del:#fbdfdd}
@media (prefers-color-scheme:dark){:root{--bg:#16171b;--fg:#e8e6e1;--dim:#9b9aa3;--line:#33343c;--card:#1e2026;
--accent:#7aa7ff;--s0:#7aa7ff;--s1:#f0925f;--s2:#5cc99b;--s3:#c98be6;--s4:#dcb24a;--s5:#f07a8f;--ins:#173d28;
--del:#4a2322}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.2rem max(1rem,env(safe-area-inset-left)) 4rem;max-width:62rem;background:var(--bg);
color:var(--fg);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;
overflow-wrap:anywhere;-webkit-text-size-adjust:100%}
h1{font-size:1.6rem;line-height:1.2;margin:.2rem 0 1rem}
h2{font-size:1.2rem;margin:2.2rem 0 .7rem;padding-top:.6rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.2rem 0 .4rem}
p{margin:.5rem 0;max-width:46rem}
a{color:var(--accent)}
.dim{color:var(--dim)}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.6rem;margin:.6rem 0}
.facts div{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.5rem .7rem}
.facts dt{color:var(--dim);font-size:.8rem;line-height:1.25}
.facts dd{margin:.1rem 0 0;font-size:1.1rem;font-weight:600;line-height:1.3}
.facts .long dd{font-size:.84rem;font-weight:400}
.scroll{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-size:.92rem}
th,td{padding:.3rem .55rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{color:var(--dim);font-weight:600;white-space:nowrap}
td{overflow-wrap:break-word}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
pre{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.6rem .8rem;margin:.5rem 0;
white-space:pre-wrap;overflow-wrap:anywhere;font:.88rem/1.45 ui-monospace,"DejaVu Sans Mono",Menlo,monospace;
max-height:24rem;overflow-y:auto}
td pre{margin:0;min-width:10rem}
ins{background:var(--ins);text-decoration:none}del{background:var(--del)}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr));gap:1rem;align-items:start}
figure{margin:.6rem 0;min-width:0}
figcaption{font-weight:600;font-size:.95rem;margin-bottom:.3rem}
svg{display:block;width:100%;height:auto;max-width:38rem}
svg text{fill:var(--dim);font:12px system-ui,"Noto Sans",sans-serif}
svg .v{fill:var(--fg)}
svg .axis{stroke:var(--line);stroke-width:1}
svg .bar{fill:var(--s0)}
svg polyline{fill:none;stroke-width:2;stroke-linejoin:round}
.c0{stroke:var(--s0)}.c1{stroke:var(--s1)}.c2{stroke:var(--s2)}.c3{stroke:var(--s3)}.c4{stroke:var(--s4)}
.c5{stroke:var(--s5)}
.f0{fill:var(--s0)}.f1{fill:var(--s1)}.f2{fill:var(--s2)}.f3{fill:var(--s3)}.f4{fill:var(--s4)}.f5{fill:var(--s5)}
details{margin:.4rem 0}summary{cursor:pointer}
.flow{display:flex;flex-wrap:wrap;gap:1.6rem;list-style:none;margin:.6rem 0;padding:0}
.flow li{flex:1 1 9rem;min-width:0;position:relative;background:var(--card);border:1px solid var(--line);
border-top:3px solid var(--dim);border-radius:.5rem;padding:.5rem .7rem}
.flow li+li::before{content:"→";position:absolute;left:-1.35rem;top:50%;transform:translateY(-50%);color:var(--dim)}
.flow b,.flow span{display:block}
.flow span{font-size:.9rem;line-height:1.35}
.flow .ok{border-top-color:var(--s2)}.flow .bad{border-top-color:var(--s5)}.flow .busy{border-top-color:var(--s0)}
.flow .ok i{color:var(--s2)}.flow .bad i{color:var(--s5)}.flow .busy i{color:var(--s0)}
.flow i{font-style:normal;font-weight:600;font-size:.85rem;color:var(--dim)}
.posts{columns:20rem;column-gap:1rem}
.posts pre{break-inside:avoid;max-height:none;margin:0 0 1rem}
@media (max-width:44rem){h1{font-size:1.25rem}.flow{flex-flow:column}.flow li{flex:none}
.flow a{display:inline-block;padding:.4rem .8rem .4rem 0}
.flow li+li::before{content:"↓";left:50%;top:-1.55rem;transform:translateX(-50%)}}
@media print{pre{max-height:none}}
"""


class Markup(str):
    """HTML that is safe already: it passes ``escape`` as it is."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """HTML for any value. What no page may hold (NUL, controls, lone surrogates) becomes U+FFFD."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(_UNPRINTABLE.sub("\ufffd", show(value)), quote=True))


def show(value: object) -> str:
    """A value as people read it: 12 345 (narrow no-break spaces), 0.1235, 2024-05-01 12:00, – for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, float):
        return _show_float(value)
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M")
    return value.isoformat() if isinstance(value, date) else str(value)


def _show_float(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.4g}"


def page(title: str, *sections: str) -> str:
    """A whole document. Plain strings among ``sections`` become escaped paragraphs."""
    digest = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    body = "\n".join(_block(s) for s in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _block(part: str) -> Markup:
    return part if isinstance(part, Markup) else paragraph(part)


def section(title: str, *parts: str) -> Markup:
    """A heading and what belongs to it; plain strings become paragraphs."""
    return Markup(f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(_block(p) for p in parts) + "\n</section>")


def columns(*parts: str) -> Markup:
    """Blocks side by side where the screen is wide enough, one below the other elsewhere."""
    return Markup('<div class="grid">\n' + "\n".join(f"<div>{_block(p)}</div>" for p in parts) + "\n</div>")


def details(summary: str, *parts: str) -> Markup:
    """Blocks that open by a tap on their summary."""
    return Markup(
        f"<details>\n<summary>{escape(summary)}</summary>\n" + "\n".join(_block(p) for p in parts) + "\n</details>"
    )


def heading(text: str) -> Markup:
    """A small heading within a section."""
    return Markup(f"<h3>{escape(text)}</h3>")


def paragraph(text: str) -> Markup:
    """A paragraph."""
    return Markup(f"<p>{escape(text)}</p>")


def note(text: str) -> Markup:
    """A paragraph of lesser weight."""
    return Markup(f'<p class="dim">{escape(text)}</p>')


def preformatted(text: str) -> Markup:
    """Text whose lines stay as they are (long ones wrap)."""
    return Markup(f"<pre>{escape(text)}</pre>")


def link(url: str, text: str | None = None) -> Markup:
    """A link; an address that is neither http(s) nor relative is shown as text only."""
    scheme = re.match(r"\s*([^/?#]*):", url)
    if scheme and scheme[1].lower() not in ("http", "https"):
        return escape(text or url)
    return Markup(f'<a href="{escape(url)}" rel="noopener noreferrer">{escape(text or url)}</a>')


def flow(cards: Iterable[tuple[str, str, str, Sequence[str]]]) -> Markup:
    """Steps from left to right, on a phone from top to bottom.

    Each is (title, tone, word, lines): a word says how the step stands and the tone, of ``ok``, ``bad``, ``busy`` or
    none, gives it a colour.
    """
    items = []
    for title, tone, word, lines in cards:
        rest = "".join(f"<span>{escape(line)}</span>" for line in lines)
        items.append(f'<li class="{escape(tone)}"><b>{escape(title)}</b><i>{escape(word)}</i>{rest}</li>')
    return Markup('<ol class="flow">\n' + "\n".join(items) + "\n</ol>")


def posts(texts: Iterable[str]) -> Markup:
    """Posts as they are, in as many columns as the screen is wide."""
    return Markup('<div class="posts">\n' + "\n".join(preformatted(text) for text in texts) + "\n</div>")


def facts(values: Mapping[str, object]) -> Markup:
    """Name and value pairs as a grid of small cards."""
    cards = []
    for name, value in values.items():
        shown = escape(value)
        wide = ' class="long"' if len(shown) > 13 else ""  # more is wider than a card
        cards.append(f"<div{wide}><dt>{escape(name)}</dt><dd>{shown}</dd></div>")
    return Markup('<dl class="facts">' + "".join(cards) + "</dl>")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table; numbers stand right, a column's heading follows its first row, wide ones scroll by themselves."""
    listed = [list(row) for row in rows]
    right = {i for row in listed[:1] for i, cell in enumerate(row) if _is_number(cell)}
    top = "".join(
        f'<th class="n">{escape(h)}</th>' if i in right else f"<th>{escape(h)}</th>" for i, h in enumerate(head)
    )
    lines = []
    for row in listed:
        cells = (f'<td class="n">{escape(c)}</td>' if _is_number(c) else f"<td>{escape(c)}</td>" for c in row)
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return Markup(
        f'<div class="scroll"><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str = "", y_label: str = "", title: str = ""
) -> Markup:
    """Lines over numbers: ``{name: [(x, y), …]}``. Points that are not finite are left out."""
    from jobs.charts import draw_lines

    return draw_lines(series, x_label=x_label, y_label=y_label, title=title)


def bar_chart(values: Sequence[tuple[str, float]], *, title: str = "", unit: str = "") -> Markup:
    """Horizontal bars with their label and value; for up to some thirty categories."""
    from jobs.charts import draw_bars

    return draw_bars(values, title=title, unit=unit)


def column_chart(
    values: Sequence[tuple[str, float]], *, title: str = "", x_label: str = "", y_label: str = ""
) -> Markup:
    """Columns side by side, for histograms and months: as many as there are, labelled where there is room."""
    from jobs.charts import draw_columns

    return draw_columns(values, title=title, x_label=x_label, y_label=y_label)
