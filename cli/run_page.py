"""A run as a page, ``runs/RUN/index.html``: what became of each stage, the funnel, the curves, the first posts.

The page is a function of the run's record, its status and the artefacts, and of nothing else, not even of the time:
whoever makes it anew from the same bucket makes the same page. Links are relative, so that it works wherever the
bucket can be browsed, and in a folder that is laid out like the bucket.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from cli.batch_lines import jsonl
from cli.quantities import duration, size
from cli.runs import RunRecord, RunStatus, StageStatus
from jobs.artifacts import MANIFEST, ArtifactStore, FileEntry, Manifest
from jobs.specs import BugurtError, DataError, ScrapeSpec

log = logging.getLogger(__name__)

POSTS = 10  # of the batch
POST_LENGTH = 1200  # characters; a longer post is cut
REPORT_SIZE = 2 << 20  # bytes of report.json that are read: the driver is small
METRICS_SIZE = 64 << 20  # bytes of metrics.jsonl, which are streamed
CURVE = 1000  # points of a curve that are kept
ARTIFACT_PAGES = {"dataset": "report.html", "model": "report.html", "batch": "index.html"}
STATES = {
    "succeeded": ("ok", "done"),
    "found": ("ok", "found"),
    "running": ("busy", "running"),
    "waiting": ("", "waiting"),
    "failed": ("bad", "failed"),
    "cancelled": ("", "cancelled"),
}


class FunnelRow(BaseModel):
    """A line of the ``funnel`` in a dataset's ``report.json``: posts that a step dropped, changed and left."""

    step: str
    dropped: int
    changed: int
    left: int


class Curve:
    """Points of a line, thinned as they come so that any number of them fits in memory."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self._seen = 0
        self._every = 1

    def add(self, x: float, y: float) -> None:
        """One more point; once there are too many, each second one goes."""
        if self._seen % self._every == 0:
            self.points.append((x, y))
            if len(self.points) > 2 * CURVE:
                self.points = self.points[::2]
                self._every *= 2
        self._seen += 1


@dataclass
class Extract:
    """What the page shows of one artefact. ``curves`` by their names in ``metrics.jsonl``."""

    manifest: Manifest
    funnel: list[FunnelRow] = field(default_factory=list)
    curves: dict[str, Curve] = field(default_factory=dict)
    posts: list[str] = field(default_factory=list)


def page_path(run: str) -> str:
    """Where a run's page lies in the bucket."""
    return f"runs/{run}/index.html"


class RunPage:
    """Makes the page of one run, as often as one likes; each artefact is looked into once."""

    def __init__(self, store: ArtifactStore, record: RunRecord) -> None:
        self._store = store
        self._record = record
        self._known: dict[str, Manifest] = {}
        self._extracts: dict[str, Extract] = {}

    def publish(self, status: RunStatus) -> None:
        """Put the page in the bucket. It is there to be looked at: what goes wrong is logged and stops no run."""
        try:
            page = self.make(status).encode("utf-8", "replace")
            self._store.bucket.put_bytes(page_path(self._record.run), page)
        except Exception as error:  # whatever it is: no run may end because it could not be drawn
            text = str(error) if isinstance(error, BugurtError) else f"{type(error).__name__}: {error}"
            log.warning("the page of run %s could not be written: %s", self._record.run, text)

    def know(self, manifest: Manifest) -> None:
        """Take a manifest that was just read, so that it is not read again."""
        self._known[manifest.ref] = manifest

    def make(self, status: RunStatus) -> str:
        """The page. Raises TemporaryError and ConfigError as reading from the bucket does."""
        from jobs import html

        found = [e for e in map(self._of, self._refs(status)) if e is not None]
        return html.page(
            f"Run {self._record.run}",
            _summary(self._record, status),
            _flow(self._record, status, {e.manifest.ref: e for e in found}),
            *(part for extract in found for part in _details(extract)),
            _artifacts(self._record, status, found),
        )

    def manifests(self, status: RunStatus) -> list[Manifest]:
        """The artefacts that the page links to."""
        return [e.manifest for e in map(self._of, self._refs(status)) if e is not None]

    def _refs(self, status: RunStatus) -> list[str]:
        """The inputs that the run was given, then what its stages made or found."""
        given = [ref for spec in self._record.spec.steps().values() for ref in spec.inputs().values()]
        made = [s.artifact for s in status.stages.values() if s.artifact]
        return list(dict.fromkeys([*(r for r in given if r not in made), *made]))

    def _of(self, ref: str) -> Extract | None:
        if ref not in self._extracts:
            manifest = self._known.get(ref) or self._store.find(ref)
            if manifest is None:  # removed since
                return None
            self._extracts[ref] = _extract(self._store, manifest)
        return self._extracts[ref]


# -- what is in the artefacts


def _extract(store: ArtifactStore, manifest: Manifest) -> Extract:
    found = Extract(manifest)
    try:
        if manifest.kind == "dataset":
            found.funnel = read_funnel(store, manifest)
        elif manifest.kind == "model":
            found.curves = _curves(store, manifest)
        elif manifest.kind == "batch":
            found.posts = list(_posts(store, manifest))
    except DataError as error:  # what may pass is no reason to leave it out for good
        log.warning("left out of the run's page: %s", error)
    return found


def read_funnel(store: ArtifactStore, manifest: Manifest) -> list[FunnelRow]:
    """What became of a dataset's posts, step by step; nothing when its report cannot be understood."""
    for entry in manifest.matching("report.json"):
        if entry.size <= REPORT_SIZE:
            with contextlib.suppress(ValidationError, ValueError, AttributeError):  # a report of another version
                report = json.loads(store.read(manifest.ref, entry))
                return TypeAdapter(list[FunnelRow]).validate_python(report.get("funnel"))
    return []


def _curves(store: ArtifactStore, manifest: Manifest) -> dict[str, Curve]:
    found = {name: Curve() for name in ("loss", "eval_loss", "bits_per_character")}
    for entry in manifest.matching("metrics.jsonl"):
        for record in _records(store, manifest, entry) if entry.size <= METRICS_SIZE else ():
            step = record.get("step")
            for name, curve in found.items():
                value = record.get(name)
                if isinstance(value, int | float) and isinstance(step, int):
                    curve.add(step, value)
    return found


def _records(store: ArtifactStore, manifest: Manifest, entry: FileEntry) -> Iterator[dict[str, Any]]:
    with store.open(manifest.ref, entry) as stream:
        for line in stream:
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    yield record


def _posts(store: ArtifactStore, manifest: Manifest) -> Iterator[str]:
    for record in itertools.islice(jsonl(store, manifest), POSTS):
        text = str(record.get("text", "")) if isinstance(record, dict) else ""
        yield text if len(text) <= POST_LENGTH else text[:POST_LENGTH].rstrip() + " …"


# -- how it is drawn


def _summary(record: RunRecord, status: RunStatus) -> str:
    from jobs import html

    seconds = [_seconds(s) for s in status.stages.values()]
    parts = [
        html.facts(
            {
                "state": STATES[status.state][1],
                "source": record.source or None,
                "submitted, UTC": record.submitted,
                "by": record.owner or None,
                "work of all stages": took(sum(s for s in seconds if s is not None)),
                "attempt": record.attempt,
            }
        )
    ]
    if status.message:
        parts.append(html.preformatted(status.message))
    return html.Markup("\n".join(parts))


def _seconds(stage: StageStatus) -> float | None:
    """How long the last try worked; none for what has not ended or was not ours to do."""
    if stage.started is None or stage.finished is None:
        return None
    return max(0.0, (stage.finished - stage.started).total_seconds())


def took(seconds: float) -> str:
    """How long something took, to a tenth of a second where that tells something."""
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds).replace("m", " min ").replace("s", " s").strip()


def _flow(record: RunRecord, status: RunStatus, found: Mapping[str, Extract]) -> str:
    from jobs import html

    cards = []
    for step, spec in record.spec.steps().items():
        stage = status.stages.get(step, StageStatus())
        extract = found.get(stage.artifact or "")
        lines = []
        if record.spec.also and isinstance(spec, ScrapeSpec):
            lines.append(spec.channel or spec.source or "")
        lines += _words(stage, extract.manifest if extract else None)
        seconds = _seconds(stage)
        if seconds is not None:
            lines.append(took(seconds))
        if stage.state == "found" and stage.made_by and stage.made_by != record.run:
            lines.append(f"made by {stage.made_by}")
        if stage.state in ("failed", "waiting") and stage.message and stage.message not in status.message:
            lines.append(stage.message)
        if extract is not None:
            lines += _pages(extract.manifest)
        tone, word = STATES[stage.state]
        cards.append((step, tone, word, lines))
    return html.section("The way", html.flow(cards))


def _words(stage: StageStatus, manifest: Manifest | None) -> list[str]:
    """What a stage has made, in words."""
    from jobs.html import show

    counts = stage.counts
    kind = manifest.kind if manifest else ""
    if kind == "posts" and "posts" in counts:
        return [f"{show(counts['posts'])} posts"]
    if kind == "dataset" and {"train", "validation"} <= set(counts):
        return [f"{show(counts['train'])} posts to learn from", f"{show(counts['validation'])} held out"]
    if manifest is not None and kind == "model":
        bits = manifest.info.get("bits_per_character")
        words = [f"{show(counts['steps'])} steps"] if "steps" in counts else []
        return words + ([f"{bits:.2f} bits per character"] if isinstance(bits, int | float) else [])
    if kind == "batch" and "posts" in counts:
        drawn = f"of {show(counts['drawn'])} drawn" if "drawn" in counts else ""
        return [f"{show(counts['posts'])} posts", *([drawn] if drawn else [])]
    return []


def _details(extract: Extract) -> Iterator[str]:
    from jobs import html

    if extract.funnel:
        steps = [row for row in extract.funnel if row.dropped or row.step == "read"]
        table = html.table(
            ("step", "dropped", "changed", "left"), [(r.step, r.dropped, r.changed, r.left) for r in extract.funnel]
        )
        bars = html.bar_chart([(r.step.replace("_", " "), r.left) for r in steps], title="Posts left after each step")
        yield html.section("What became of the posts", bars, html.details("all steps", table))
    if any(c.points for c in extract.curves.values()):
        curves = {name: curve.points for name, curve in extract.curves.items()}
        yield html.section(
            "Training",
            html.columns(
                html.line_chart(
                    {"training": curves["loss"], "held out": curves["eval_loss"]},
                    x_label="step",
                    y_label="nats a token",
                    title="Loss",
                ),
                html.line_chart(
                    {"held out": curves["bits_per_character"]},
                    x_label="step",
                    y_label="bits",
                    title="Bits per character, held out",
                ),
            ),
        )
    if extract.posts:
        posts = html.posts(extract.posts)
        index = ARTIFACT_PAGES["batch"]
        more = html.Markup(f"<p>{_link(extract.manifest.ref, index, 'All posts')}</p>")
        yield html.section("The first posts", posts, *([more] if extract.manifest.matching(index) else []))


def _pages(manifest: Manifest) -> list[str]:
    """The link to an artefact's own page, where it has one."""
    path = ARTIFACT_PAGES.get(manifest.kind, "")
    return (
        [_link(manifest.ref, path, "gallery" if manifest.kind == "batch" else "report")]
        if manifest.matching(path)
        else []
    )


def _link(ref: str, path: str, text: str) -> str:
    from jobs import html

    return html.link(f"../../{ref}/{path}", text)


def _artifacts(record: RunRecord, status: RunStatus, found: list[Extract]) -> str:
    from jobs import html

    by = {s.artifact: step for step, s in status.stages.items()}
    rows = []
    for extract in found:
        manifest = extract.manifest
        links = [*_pages(manifest), _link(manifest.ref, MANIFEST, "manifest")]
        where = html.Markup(f"{html.escape(manifest.ref)}<br>{' · '.join(links)}")  # on a phone three columns fit
        rows.append((by.get(manifest.ref, "given"), where, size(manifest.size).replace(" ", "\u00a0")))
    commands = [f"bugurt status {record.run}", f"bugurt logs {record.run}"]
    if status.state in ("failed", "cancelled"):
        commands.append(f"bugurt rerun {record.run}")
    for extract in found:
        kind = "batches" if extract.manifest.kind == "batch" else "artifacts"
        commands.append(f"bugurt {kind} pull {extract.manifest.ref}")
    parts = [html.table(("stage", "artefact", "size"), rows)] if rows else []
    return html.section("Artefacts", *parts, html.preformatted("\n".join(commands)))
