"""The page of a run: everything escaped, every link leads somewhere, nothing grows without bound."""

from __future__ import annotations

import json
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cli.clusters import local_s3
from cli.pages import fetch
from cli.run_page import POST_LENGTH, REPORT_SIZE, Curve, RunPage, page_path
from cli.runs import RunRecord, RunStatus, StageStatus
from jobs.artifacts import ArtifactStore, Manifest
from jobs.specs import GenerateSpec, PreprocessSpec, RunSpec, ScrapeSpec, TemporaryError, TrainSpec
from tests.conftest import ROOT
from tests.generate.browser import CHROMIUM, Browser
from tests.projects import Project
from tests.test_html import EVIL, parsed

START = datetime(2026, 3, 1, 10, tzinfo=UTC)
FUNNEL = [
    {"step": "read", "dropped": 0, "changed": 0, "left": 760},
    {"step": EVIL, "dropped": 60, "changed": 5, "left": 700},
    {"step": "case", "dropped": 0, "changed": 7, "left": 700},
]
TEXTS = [EVIL, "КОТ УШЁЛ\n@\nДИВАН ОСТАЛСЯ", "БАТЯ " * POST_LENGTH, *(f"ПОСТ {n}" for n in range(30))]


class Made:
    """A run whose artefacts hold what a channel may have put into them."""

    def __init__(self, store: ArtifactStore, *, report: bytes | None = None, metrics: int = 500) -> None:
        self.store = store
        scrape = ScrapeSpec(channel="@cats", as_of=START)
        self.posts = self.commit(scrape, {}, {"posts": 760})
        dataset = PreprocessSpec(posts=self.posts.ref)
        self.dataset = self.commit(
            dataset,
            {"report.json": report or json.dumps({"funnel": FUNNEL}).encode(), "report.html": b"<p>dataset"},
            {"train": 690, "validation": 10},
        )
        lines = [{"step": n, "loss": 7 - n / metrics} for n in range(metrics)]
        lines += [{"step": n, "eval_loss": 6.5, "bits_per_character": 3.5} for n in range(0, metrics, 50)]
        body = "".join(json.dumps(line) + "\n" for line in lines) + "not JSON\n[1]\n"
        train = TrainSpec(dataset=self.dataset.ref)
        self.model = self.commit(train, {"metrics.jsonl": body.encode(), "report.html": b"<p>model"}, {"steps": 500})
        part = "".join(json.dumps({"index": n, "text": text}) + "\n" for n, text in enumerate(TEXTS))
        generate = GenerateSpec(model=self.model.ref)
        files = {"part-00000.jsonl": part.encode(), "index.html": b"<p>gallery"}
        self.batch = self.commit(generate, files, {"posts": 33, "drawn": 1034})
        self.record = RunRecord(
            run="cats", spec=RunSpec(scrape=scrape, preprocess=PreprocessSpec(), train=TrainSpec(),
                                     generate=GenerateSpec()),
            source=EVIL, owner=EVIL, created=START, submitted=START, code_version="0",
        )  # fmt: skip

    def commit(self, spec: Any, files: dict[str, bytes], counts: dict[str, int | float]) -> Manifest:
        writer = self.store.writer(spec.ref())
        for path, data in files.items():
            writer.put_bytes(path, data)
        return writer.commit(
            stage=spec.stage, spec=spec.model_dump(mode="json"), inputs=spec.inputs(), counts=counts, run="cats"
        )

    def status(self) -> RunStatus:
        made = {"scrape": self.posts, "preprocess": self.dataset, "train": self.model, "generate": self.batch}
        stages = {
            step: StageStatus(state="succeeded", artifact=m.ref, counts=dict(m.counts), started=START,
                              finished=START + timedelta(seconds=90))
            for step, m in made.items()
        }  # fmt: skip
        return RunStatus(run="cats", state="succeeded", stages=stages)


@pytest.fixture
def made(store: ArtifactStore) -> Made:
    return Made(store)


def test_what_is_on_it(made: Made) -> None:
    page = RunPage(made.store, made.record).make(made.status())
    found = parsed(page)
    assert set(found.tags).isdisjoint({"script", "img", "iframe", "link"})
    assert not [n for n, _ in found.attributes if n.startswith("on") or n == "style"]
    for words in (
        "760 posts",
        "690 posts to learn from",
        "10 held out",
        "500 steps",
        "33 posts",
        "of 1\u202f034 drawn",
    ):
        assert words in found.text
    assert found.text.count("90 s") == 4
    assert "КОТ УШЁЛ\n@\nДИВАН ОСТАЛСЯ" in found.text
    assert "ПОСТ 6" in found.text
    assert "ПОСТ 7" not in found.text  # ten posts, of which these are the last seven
    assert max(len(t) for t in re.findall(r"(?:БАТЯ )+", found.text)) <= POST_LENGTH + 1
    assert "<svg" in page
    assert page.count("<polyline") == 3  # loss, held-out loss, bits
    assert "Content-Security-Policy" in page


def test_every_link_leads_to_an_object(made: Made) -> None:
    page = RunPage(made.store, made.record).make(made.status())
    links = set(re.findall(r'href="([^"]+)"', page))
    for link in links:
        assert made.store.bucket.head(posixpath.normpath(posixpath.join("runs/cats", link))), link
    assert {posixpath.normpath(posixpath.join("runs/cats", x)) for x in links} >= {
        f"{made.dataset.ref}/report.html", f"{made.model.ref}/report.html", f"{made.batch.ref}/index.html",
        f"{made.posts.ref}/manifest.json",
    }  # fmt: skip


def test_it_is_made_twice_the_same_and_stays_small(store: ArtifactStore) -> None:
    made = Made(store, metrics=30_000)
    first = RunPage(store, made.record).make(made.status())
    assert RunPage(store, made.record).make(made.status()) == first
    assert len(first) < 100_000
    curve = Curve()
    for n in range(100_000):
        curve.add(n, -n)
    assert 500 < len(curve.points) <= 2000
    assert curve.points[0] == (0, 0)
    assert curve.points[-1][0] > 99_000


@pytest.mark.parametrize(
    "report",
    [b"{", b"[]", b'{"funnel": 3}', b'{"funnel": [{"step": "x"}]}', b"\xff", b" " * (REPORT_SIZE + 1)],
    ids=["broken", "list", "number", "fields", "bytes", "large"],
)
def test_a_report_that_cannot_be_read_is_left_out(store: ArtifactStore, report: bytes) -> None:
    made = Made(store, report=report, metrics=50)
    page = RunPage(store, made.record).make(made.status())
    assert "What became of the posts" not in page
    assert "The first posts" in page


def test_damaged_and_removed_artefacts_are_no_reason_to_fail(made: Made) -> None:
    made.store.bucket.put_bytes(f"{made.model.ref}/metrics.jsonl", b'{"step": 1, "loss": 3}\n')
    made.store.remove(made.dataset.ref)
    page = RunPage(made.store, made.record).make(made.status())
    assert "The first posts" in page
    assert "<polyline" not in page
    assert f"{made.dataset.ref}/report.html" not in page


def test_a_failed_run_says_why_and_what_next(made: Made) -> None:
    status = made.status()
    status.state, status.message = "failed", f"train: {EVIL}"
    status.stages["train"] = StageStatus(state="failed", message=EVIL)
    status.stages["generate"] = StageStatus()
    found = parsed(RunPage(made.store, made.record).make(status))
    assert "bugurt rerun cats" in found.text
    assert found.text.count("alert(1)") >= 3
    assert "waiting" in found.text


def test_a_bucket_that_refuses_the_page_stops_nothing(
    made: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TemporaryError("the bucket is asleep")

    monkeypatch.setattr(made.store.bucket, "put_bytes", refuse)
    RunPage(made.store, made.record).publish(made.status())
    assert "the bucket is asleep" in caplog.text


SMALL = """
import sys
from pathlib import Path
import cli.clusters.kubernetes
import cli.driver
import kubernetes.client
from cli.run_page import RunPage
from cli.runs import RunRecord, RunStatus
from jobs.artifacts import ArtifactStore
record, status = sys.stdin
page = RunPage(ArtifactStore.from_env(), RunRecord.model_validate_json(record))
page.publish(RunStatus.model_validate_json(status))
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def test_the_driver_stays_small(store: ArtifactStore, s3_env: dict[str, str]) -> None:
    """As ``test_kubernetes_wire.py::test_the_driver_is_small``, with artefacts as large as the page reads them."""
    examples = [{"before": "Ы" * 300, "id": n} for n in range(1100)]
    report = json.dumps({"funnel": FUNNEL, "examples": examples}).encode()
    assert REPORT_SIZE * 0.9 < len(report) < REPORT_SIZE
    made = Made(store, report=report, metrics=200_000)
    record = made.record.model_copy(update={"source": "@cats", "owner": "cat"})
    done = subprocess.run(
        [sys.executable, "-c", SMALL],
        env={**os.environ, **s3_env, "PYTHONPATH": str(ROOT)},
        input=f"{record.model_dump_json()}\n{made.status().model_dump_json()}\n",
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    assert int(done.stdout) < 110 * 1024, done.stdout  # KiB
    assert b"<polyline" in store.bucket.get_bytes(page_path("cats"))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with Browser(tmp_path / "profile") as found:
        yield found


def test_in_a_browser(made: Made, browser: Browser, tmp_path: Path) -> None:
    page = RunPage(made.store, made.record)
    file = tmp_path / "view" / page_path("cats")
    file.parent.mkdir(parents=True)
    file.write_text(page.make(made.status()), encoding="utf-8")
    for manifest in page.manifests(made.status()):
        fetch(made.store, manifest, tmp_path / "view")
    for width in (390, 1280):
        browser.resize(width, 900)
        browser.open(file.as_uri())
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), width
        assert browser.run("document.querySelectorAll('.flow li').length") == 4
        across = browser.run("new Set([...document.querySelectorAll('.flow li')].map(e => e.offsetTop)).size")
        assert across == (4 if width == 390 else 1)
    assert browser.complaints == []
    assert {u.split("?")[0] for u in browser.requests} == {file.as_uri()}
    links = browser.run("[...document.links].map(a => a.href)")
    assert len(links) > 5
    for link in links:
        assert Path(link.removeprefix("file://")).is_file(), link


def test_open_shows_what_the_driver_has_put_in_the_bucket(project: Project) -> None:
    assert "there are no runs" in project.fails(65, "open", "--no-browser")
    project.ok("submit", "scrape", "--source", "posts.txt", "--wait")
    (run,) = [r["run"] for r in project.json("runs")]
    kept = project.bucket / "runs" / run / "index.html"
    assert "<i>done</i>" in kept.read_text("utf-8")
    shown = Path(project.ok("open", run, "--no-browser").strip())
    assert (project.folder / shown).read_bytes() == kept.read_bytes()
    assert project.ok("open", "--no-browser").strip() == str(shown)
    project.ok("submit", "scrape", "--source", "posts.txt", "--wait")
    assert "<i>found</i>" in kept.read_text("utf-8")
    assert "nothing" in project.fails(65, "open", "nothing", "--no-browser")


def test_a_gallery_lies_where_the_page_of_its_run_links_to(project: Project) -> None:
    project.ok("runs")  # starts the server
    env = local_s3.ensure(project.folder / ".bugurt").env()
    store = ArtifactStore.from_env(env)
    for ref, files in (("batch/" + "0a" * 10, {"index.html": b"<p>gallery"}), ("batch/" + "0b" * 10, {})):
        writer = store.writer(ref)
        for path, data in files.items():
            writer.put_bytes(path, data)
        writer.commit(stage="generate", spec={}, counts={"posts": 1})
    shown = project.folder / project.ok("batches", "open", "0a0a", "--no-browser").strip()
    assert shown == project.folder / ".bugurt" / "view" / "batch" / ("0a" * 10) / "index.html"
    assert shown.read_bytes() == b"<p>gallery"
    assert "has no gallery" in project.fails(65, "batches", "open", "0b0b", "--no-browser")
