"""The gallery in a real browser."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.generate.gallery import SHOWN, Gallery, data_block
from jobs.specs import GenerateSpec
from tests.generate.browser import CHROMIUM, Browser

REF, MODEL = "batch/" + "a" * 20, "model/" + "b" * 20
NASTY = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'><!--",
    "{{script}} {{posts}} \u2028\u2029 <svg onload=window.hacked=3>",
    "<!--<script>",
    "javascript:window.hacked=4 & &lt;b&gt; \"'`${window.hacked=5}",
]


def write_gallery(path: Path, texts: list[str], prompts: list[str] | None = None) -> Path:
    gallery = Gallery(GenerateSpec(model=MODEL), REF, MODEL)
    for n, text in enumerate(texts):
        gallery.add(
            {
                "index": n, "text": text, "prompt": prompts[n % len(prompts)] if prompts else "", "score": -n / 10,
                "attempts": 1, "overlap_words": n % 7, "overlap": NASTY[n % len(NASTY)], "similarity": 0.25,
            }
        )  # fmt: skip
    buffer = io.BytesIO()
    gallery.write(buffer, {"drawn": len(texts) + 5, "refused": {"ended": 5}})
    path.write_bytes(buffer.getvalue())
    return path


def test_a_data_block_is_json_without_markup() -> None:
    for value in NASTY:
        block = data_block({"t": value})
        assert not set("<>&\u2028\u2029") & set(block)
        assert json.loads(block) == {"t": value}


def test_only_so_many_posts_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.generate.gallery.SHOWN", 3)
    page = write_gallery(tmp_path / "g.html", ["А", "Б", "В", "Г"]).read_text("utf-8")
    assert "the first 3 are shown here" in page
    assert '"t":"В"' in page
    assert '"t":"Г"' not in page


TEXTS = [f"КОТ НОМЕР {n}\n@\n{'ДЕД' if n % 3 else 'БАТЯ'} ДОВОЛЕН\n@\nЕЩЁ СТРОКА" for n in range(1200)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(autouse=True)
def forget(request: pytest.FixtureRequest) -> None:
    if "browser" in request.fixturenames:
        found: Browser = request.getfixturevalue("browser")
        found.complaints.clear()
        found.requests.clear()


#: Scrolls until nothing more comes; gives the texts that the page shows.
ALL_TEXTS = """(async () => {
  for (let seen = -1; ;) {
    const now = document.querySelectorAll('article').length;
    if (now === seen) break;
    seen = now;
    scrollTo(0, document.body.scrollHeight);
    await new Promise(done => requestAnimationFrame(() => setTimeout(done, 30)));
  }
  return [...document.querySelectorAll('article')].sort((a, b) => a.dataset.index - b.dataset.index)
    .map(a => a.querySelector('.text').textContent);
})()"""

TYPE = """(async () => {{
  const box = document.getElementById('query');
  box.value = {query};
  box.dispatchEvent(new Event('input'));
  await new Promise(done => setTimeout(done, 250));
  return document.getElementById('count').textContent;
}})()"""


def typed(browser: Browser, query: str) -> Any:
    return browser.run(TYPE.format(query=json.dumps(query)))


def test_all_posts_are_shown(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_gallery(tmp_path / "g.html", TEXTS).as_uri())
    first = browser.run("document.querySelectorAll('article').length")
    assert 0 < first < 400  # more come while one scrolls, so that thousands open at once
    assert browser.run("document.getElementById('count').textContent") == "1200 posts"
    assert browser.run(ALL_TEXTS) == TEXTS
    assert browser.run("document.body.scrollWidth <= innerWidth")
    assert not browser.complaints


def test_a_gallery_of_a_very_large_batch_opens(browser: Browser, tmp_path: Path) -> None:
    """It holds the first posts only, so that a page of 100,000 is no heavier."""
    path = write_gallery(tmp_path / "g.html", [f"КОТ НОМЕР {n}\n@\nДЕД ДОВОЛЕН" for n in range(SHOWN + 500)])
    browser.open(path.as_uri())
    assert browser.run("document.getElementById('count').textContent") == f"{SHOWN} posts"
    assert f"the first {SHOWN} are shown here" in browser.run("document.body.textContent")
    assert 0 < browser.run("document.querySelectorAll('article').length") < 400
    assert typed(browser, f'"номер {SHOWN - 1} @"') == f"1 of {SHOWN} posts"
    assert typed(browser, f'"номер {SHOWN} @"') == f"0 of {SHOWN} posts"
    assert not browser.complaints


def test_search(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_gallery(tmp_path / "g.html", TEXTS).as_uri())
    assert typed(browser, "батя") == "400 of 1200 posts"
    assert typed(browser, "БАТЯ -доволен") == "0 of 1200 posts"
    assert typed(browser, '"номер 7 @"') == "1 of 1200 posts"
    assert typed(browser, "еще -дед номер") == "400 of 1200 posts"  # е finds ё
    assert browser.run("[...document.querySelectorAll('mark')].slice(0, 2).map(m => m.textContent)") == ["НОМЕР", "ЕЩЁ"]
    assert typed(browser, "") == "1200 posts"
    browser.open(tmp_path.joinpath("g.html").as_uri() + "?x#q=номер%2011%20")
    assert "of 1200" in browser.run("document.getElementById('count').textContent")


def test_prompts_and_orders(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_gallery(tmp_path / "g.html", TEXTS[:30], ["КОТ", "", "<b>ДЕД</b>"]).as_uri())
    choose = """((id, value) => {{ const s = document.getElementById(id); s.value = value;
      s.dispatchEvent(new Event('change'));
      return [...document.querySelectorAll('article')].map(a => Number(a.dataset.index)); }})({args})"""
    names = browser.run("[...document.querySelectorAll('#prompt option')].map(o => o.textContent)")
    assert names == ["all prompts", "КОТ", "(no prompt)", "<b>ДЕД</b>"]
    assert sorted(browser.run(choose.format(args="'prompt', '3'"))) == list(range(2, 30, 3))
    browser.run(choose.format(args="'prompt', ''"))
    assert browser.run(choose.format(args="'order', 'odd'"))[0] == 29
    shuffled = browser.run(choose.format(args="'order', 'random'"))
    assert sorted(shuffled) == list(range(30)) != shuffled


def test_favourites_stay(browser: Browser, tmp_path: Path) -> None:
    url = write_gallery(tmp_path / "g.html", TEXTS[:20]).as_uri()
    browser.open(url)
    browser.run("localStorage.clear()")
    browser.open(url)
    star = "document.querySelector('article[data-index=\"{n}\"] button[aria-label=Favourite]').click()"
    for n in (3, 5, 3, 7):
        browser.run(star.format(n=n))
    browser.open(url)
    assert browser.run("document.getElementById('starred').textContent") == "2"
    browser.run("document.getElementById('stars').click()")
    assert browser.run("[...document.querySelectorAll('article')].map(a => Number(a.dataset.index)).sort()") == [5, 7]
    # Whatever others left in the storage under our name does no harm.
    browser.run(f"localStorage.setItem('bugurt:{REF}', '{{\"a\": 1}}')")
    browser.open(url)
    assert browser.run("document.querySelectorAll('article').length") == 20


def test_copying(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_gallery(tmp_path / "g.html", TEXTS[:5]).as_uri())
    copied = browser.run("""(async () => {
      const got = [];
      navigator.clipboard.writeText = async (text) => { got.push(text); };
      document.querySelector('article[data-index="2"] footer button').click();
      document.getElementById('copy').click();
      await new Promise(done => setTimeout(done, 50));
      return got;
    })()""")
    assert copied == [TEXTS[2], "\n\n———\n\n".join(TEXTS[:5])]
    # Without a clipboard (a plain http address) the text is selected and copied the old way.
    old = browser.run("""(async () => {
      let seen = null;
      navigator.clipboard.writeText = async () => { throw new Error("not allowed"); };
      document.execCommand = () => { seen = document.activeElement.value; return true; };
      const button = document.querySelector('article[data-index="1"] footer button');
      button.click();
      await new Promise(done => setTimeout(done, 50));
      return [seen, button.textContent, document.querySelectorAll('textarea').length];
    })()""")
    assert old == [TEXTS[1], "Copied", 0]


def test_nothing_of_a_post_is_executed(browser: Browser, tmp_path: Path) -> None:
    path = write_gallery(tmp_path / "g.html", NASTY, NASTY)
    browser.open(path.as_uri())
    assert browser.run("window.hacked === undefined")
    assert browser.run(ALL_TEXTS) == NASTY
    assert browser.run("document.querySelectorAll('main img, main svg, main script, main b').length") == 0
    assert browser.run("document.querySelectorAll('script').length") == 3
    assert browser.requests == [path.as_uri()]
    assert not browser.complaints
    # The policy holds even where something did get into the document.
    browser.run("""document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="window.hacked=6">');
      const s = document.createElement('script'); s.textContent = 'window.hacked = 7'; document.body.append(s);""")
    browser.run("new Promise(done => setTimeout(done, 100))")
    assert browser.run("window.hacked === undefined")
    assert any("Content Security Policy" in c for c in browser.complaints)


def test_it_fits_a_phone(tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    path = write_gallery(tmp_path / "g.html", [*TEXTS[:20], "ОЧЕНЬ" * 200], ["КОТ " * 60, "ДЕД"])
    with Browser(tmp_path / "profile", size=(390, 844)) as phone:
        phone.open(path.as_uri())
        assert phone.run("document.querySelectorAll('.column').length") == 1
        assert phone.run("document.documentElement.scrollWidth <= innerWidth")
