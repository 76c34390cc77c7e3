"""Pages: everything is escaped, nothing is loaded, charts survive any numbers."""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ET
from datetime import UTC, date, datetime
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import html
from jobs.charts import MAX_POINTS, ticks

EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=1>\x00\ud800"
VOID = {"meta", "br"}


class Checker(HTMLParser):
    """Collects tags and checks that they close."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    return checker


def everything(text: str) -> str:
    return html.page(
        text,
        html.section(
            text,
            text,
            html.paragraph(text),
            html.note(text),
            html.heading(text),
            html.preformatted(text),
            html.facts({text: text, "n": 12345}),
            html.table([text, "n"], [[text, 1], [html.preformatted(text), 2.5]]),
            html.details(text, text),
            html.link("https://example.org/?a=1&b=" + text, text),
            html.columns(
                html.line_chart({text: [(0, 1), (1, 2)], "b": [(0, 3)]}, x_label=text, y_label=text, title=text),
                html.bar_chart([(text, 3.0)], title=text, unit=text),
                html.column_chart([(text, 1.0)], title=text, x_label=text, y_label=text),
            ),
        ),
    )


def test_nothing_escapes() -> None:
    found = parsed(everything(EVIL))
    assert not {"script", "img", "iframe", "object", "link"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("src", "style")]
    assert "<script>alert(1)</script>" in found.text


@given(st.text(max_size=30))
@settings(deadline=None)
def test_any_text_makes_a_page_that_can_be_written(text: str) -> None:
    page = everything(text)
    page.encode("utf-8")
    assert "\x00" not in page
    parsed(page)


def test_the_policy_allows_the_style_sheet_and_nothing_else() -> None:
    page = html.page("t", "x")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    sheet = re.search(r"<style>(.*)</style>", page, re.DOTALL)
    assert policy and sheet
    digest = base64.b64encode(hashlib.sha256(sheet[1].encode()).digest()).decode()
    assert policy[1] == (f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'")
    assert not re.findall(r"https?://|url\(|@import", page)


def test_pages_are_for_phones_and_dark_rooms() -> None:
    page = html.page("t")
    assert 'name="viewport" content="width=device-width' in page
    assert "prefers-color-scheme:dark" in page


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"), (True, "yes"), (False, "no"), (1234567, "1\u202f234\u202f567"), (0.123456, "0.1235"),
        (98765.4, "98\u202f765"), (float("nan"), "nan"), (float("inf"), "inf"), (date(2024, 5, 1), "2024-05-01"),
        (datetime(2024, 5, 1, 9, 7, tzinfo=UTC), "2024-05-01 09:07"), ("кот", "кот"),
    ],
)  # fmt: skip
def test_show(value: object, shown: str) -> None:
    assert html.show(value) == shown


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", " JavaScript:alert(1)", "data:text/html,x", "file:///etc/passwd"]
)
def test_links_lead_to_the_web_or_nowhere(url: str) -> None:
    assert "<a" not in html.link(url, "here")


def test_links_within_the_bucket_work() -> None:
    assert 'href="report.html"' in html.link("report.html")
    assert 'href="https://example.org/"' in html.link("https://example.org/")


def test_numbers_stand_right() -> None:
    found = html.table(["what", "posts"], [["a", 1], ["b", 20000]])
    assert '<th class="n">posts</th>' in found
    assert '<td class="n">20\u202f000</td>' in found
    assert "<th>what</th>" in found


def drawing(chart: str) -> ET.Element:
    svg = re.search(r"<svg.*</svg>", chart, re.DOTALL)
    assert svg
    return ET.fromstring(svg[0])


finite = st.floats(-1e12, 1e12).filter(lambda x: x == 0 or abs(x) > 1e-12)
anything = st.floats(allow_nan=True, allow_infinity=True)


@settings(deadline=None)
@given(st.dictionaries(st.text("<&é", max_size=5), st.lists(st.tuples(anything, anything), max_size=20), max_size=8))
def test_any_numbers_make_a_line_chart(series: dict[str, list[tuple[float, float]]]) -> None:
    chart = html.line_chart(series, title="t")
    assert "nan" not in chart
    assert "inf" not in chart
    if "<svg" in chart:
        drawing(chart)


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=30), st.floats(0, 1e15)), max_size=40))
def test_any_counts_make_bars_and_columns(values: list[tuple[str, float]]) -> None:
    for chart in (html.bar_chart(values, unit="x"), html.column_chart(values)):
        if values:
            drawing(chart)
        else:
            assert "nothing to draw" in chart


def test_points_lie_within_the_drawing() -> None:
    chart = html.line_chart({"loss": [(n, 3 - n / 500) for n in range(1000)]}, title="Loss")
    line = drawing(chart).find(".//polyline")
    assert line is not None
    points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    assert 100 < len(points) <= MAX_POINTS + 2
    assert all(0 <= x <= 440 and 0 <= y <= 260 for x, y in points)
    assert points == sorted(points)  # rightwards, and downwards with a falling loss


def test_a_peak_is_not_thinned_away() -> None:
    points = [(float(n), 1.0) for n in range(10_000)]
    points[4321] = (4321.0, 99.0)
    assert (
        min(
            float(p.split(",")[1])
            for p in drawing(html.line_chart({"a": points})).find(".//polyline").attrib["points"].split()  # type: ignore[union-attr]
        )
        < 30
    )


@given(finite, finite)
def test_ticks_cover_the_range_with_few_round_numbers(a: float, b: float) -> None:
    low, high = sorted((a, b))
    found = ticks(low, high)
    assert 2 <= len(found) <= 12
    assert found == sorted(set(found))
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
