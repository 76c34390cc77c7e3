"""What the commands say and how: quiet and talkative, with and without a terminal, as a story."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import pytest
from rich.console import Console

from cli.best import best_posts
from cli.follow import bar, table
from cli.output import counted
from cli.story import Story, sentence
from cli.submission import Plan
from cli.view import RunView, StageRow, _describe, _share
from jobs.artifacts import ArtifactStore
from jobs.reporting import ProgressReporter
from tests.cli.test_run_page import FUNNEL, Made
from tests.projects import Project

PLAIN = [{**row, "step": f"rule_{n}"} for n, row in enumerate(FUNNEL)]


@pytest.fixture
def made(store: ArtifactStore) -> Made:
    return Made(store, report=json.dumps({"funnel": PLAIN}).encode())


def row(stage: str, state: str, artifact: str | None = None, **more: Any) -> StageRow:
    known: dict[str, Any] = {"progress": "", "message": "", "attempts": 1, "shards": "", "seconds": 61.0, "left": None}
    return StageRow(stage=stage, state=state, artifact=artifact, **{**known, **more})


def looks(made: Made) -> Iterator[RunView]:
    """A run at three moments."""
    ends = [("scrape", made.posts), ("preprocess", made.dataset), ("train", made.model), ("generate", made.batch)]
    for at in range(5):
        rows = [row(n, "succeeded", m.ref) for n, m in ends[:at]]
        rows += [row(n, "running", progress="7 of 9 posts", left=120.0) for n, _ in ends[at : at + 1]]
        rows += [row(n, "waiting") for n, _ in ends[at + 1 :]]
        yield RunView(made.record, "running" if at < 4 else "succeeded", "", None, tuple(rows), None)


def test_a_story_has_a_line_for_each_stage(made: Made) -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        Story(made.store)(looks(made))
    lines = out.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["scrape", "preprocess", "train", "generate"]
    assert lines[0] == "scrape      reads the channel: 760 posts  (61 s)"
    assert "most of what went: rule 1 60" in lines[1]
    assert "500 steps" in lines[2]
    assert "1,034 drawn, 33 kept" in lines[3]


def test_nobody_has_to_think_that_it_hangs(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.story.PROGRESS_LINE", 0.0)
    out = io.StringIO()
    with redirect_stdout(out):
        Story(made.store)(looks(made))
    assert out.getvalue().count("… 7 of 9 posts, 2m00s left") == 4


def test_what_was_found_is_told_alike(made: Made) -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        Story(made.store).found(Plan("scrape", made.record.spec.spec("scrape"), made.posts.ref, made.posts, ""))
    assert out.getvalue() == sentence(made.store, made.posts, "found") + "\n"


def test_the_best_posts_do_not_stutter(store: ArtifactStore) -> None:
    texts = {"А\n@\nБ": -3.0, "А\n@\n\n@\nБ": -0.1, "В\n@\nГ": -2.0}
    writer = store.writer("batch/" + "0b" * 10)
    lines = (json.dumps({"text": text, "score": score}) for text, score in texts.items())
    writer.put_bytes("part-00000.jsonl", "\n".join(lines).encode() + b"\n")
    manifest = writer.commit(stage="generate", spec={}, counts={"posts": 3})
    assert best_posts(store, manifest, 3) == ["В\n@\nГ", "А\n@\nБ", "А\n@\n\n@\nБ"]


def test_rates_and_shares() -> None:
    reports = [
        {"done": 20, "total": 40, "unit": "posts", "per_second": 2.5, "metrics": {"posts_per_second": 9, "loss": 2.0}},
        {"done": 40, "total": 40, "unit": "posts", "per_second": 1.5, "metrics": {}},
        {"metrics": {}},
    ]
    assert _describe(reports) == "60 of 80 posts, 4 posts/s, loss 2"
    assert _share(reports) == 0.75
    assert _share([{"done": 3}]) is None
    assert (bar(0.0, 4), bar(0.5, 4), bar(1.0, 4)) == ("╌╌╌╌", "━━╌╌", "━━━━")


def test_a_stage_measures_its_rate() -> None:
    reporter = ProgressReporter(None, "x", stage="train", run="r", shard=None)  # type: ignore[arg-type]
    reporter._state["unit"] = "steps"
    moments = ((100, 1000.0, None), (110, 1001.0, None), (130, 1003.0, 10.0), (200, 1005.0, 20.0), (5, 1006.0, None))
    for done, now, rate in moments:
        reporter._measure(done, now)
        assert reporter._state.get("per_second") == rate, done


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_has_fewer_columns_and_no_cut_ones(made: Made, width: int) -> None:
    progress = "137 of 545 steps, 0.96 steps/s, loss 4.238"
    ended = [row("preprocess", "succeeded", made.dataset.ref, progress="posts 588, posts_read 760")]
    going = [*ended, row("train", "running", progress=progress, share=0.25, left=429.0)]
    for state, rows in (("running", going), ("succeeded", ended)):
        view = RunView(made.record, state, "", None, tuple(rows), None)  # type: ignore[arg-type]
        out = io.StringIO()
        Console(file=out, width=width, soft_wrap=True).print(table(view, width))
        text = out.getvalue()
        assert "…" not in text
        assert "preprocess  succeeded" in text
        if state == "running":
            assert bar(0.25) in text and "7m09s" in text
            assert not set(progress.split()) - set(text.split()), "its words go on below, and none is lost"
        else:
            assert made.dataset.ref in text


def test_things_are_counted_as_they_are() -> None:
    assert list(counted(iter([1, 2, 3]), total=3, unit="posts")) == [1, 2, 3]


def test_quiet_and_talkative(project: Project) -> None:
    assert project.run("-q", "submit", "scrape", "--source", "posts.txt", "--wait").stdout == ""
    quiet = project.run("-q", "runs")
    assert quiet.stderr == ""
    (run,) = [r["run"] for r in project.json("runs")]
    told = project.run("-v", "status", run)
    assert told.stdout == project.run("status", run).stdout
    assert "no bugurt.toml" in told.stderr
    assert "s3://bugurt/" in told.stderr
    secret = json.loads((project.folder / ".bugurt" / "s3.json").read_text())["secret_access_key"]
    everything = project.run("--debug", "status", run)
    assert secret not in everything.stderr + everything.stdout
    assert set(project.json("gc")) == {"removed", "size", "dry_run"}
    for env, colours in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        shown = on_a_terminal(project, "status", run, "-w", env={"TERM": "xterm", **env})
        assert "succeeded" in shown
        assert bool(re.search(r"\x1b\[[\d;]*3\d", shown)) == colours, env
    assert "\x1b" not in shown  # a terminal that cannot move its cursor
    assert "\x1b" not in on_a_terminal(project, "runs", env={"TERM": "xterm", "NO_COLOR": "1"})


def on_a_terminal(project: Project, *arguments: str, env: dict[str, str]) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    kept = {k: v for k, v in project.env.items() if k not in ("NO_COLOR", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", *arguments], cwd=project.folder, env={**kept, **env}, stdout=theirs,
        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs)
    data = b""
    try:
        while piece := os.read(ours, 65536):
            data += piece
    except OSError:  # Linux tells so that the other end is closed
        assert process.wait(60) == 0, data
    os.close(ours)
    return data.decode()
