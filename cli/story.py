"""A run told as a story: a line for each stage, of what it does and what came of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cli.follow import PROGRESS_LINE, bar
from cli.options import OPTIONS
from cli.output import is_terminal, say
from cli.quantities import duration
from cli.run_page import read_funnel, took
from jobs.artifacts import ArtifactStore, Manifest

if TYPE_CHECKING:
    from rich.status import Status

    from cli.submission import Plan
    from cli.view import RunView, StageRow

INTENTS = {
    "scrape": "reads the channel",
    "preprocess": "keeps what is worth learning",
    "train": "learns to write like that",
    "generate": "writes, and keeps what passes",
}


class Story:
    """Tells a run's stages as they end; what goes on meanwhile has a line of its own on a terminal."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._told: set[str] = set()

    def __call__(self, looks: Iterator[RunView]) -> None:
        """As a screen of ``follow``: a look after the other, until the run has ended."""
        if not is_terminal():
            self._plain(looks)
            return
        from cli.output import console

        with console().status("starting") as line:
            for view in looks:
                self._tell(view)
                self._show(view, line)

    def found(self, item: Plan) -> None:
        """Tell of a stage whose artefact was there before."""
        if item.found is not None and not OPTIONS.quiet:
            say(sentence(self._store, item.found, "found"))

    def _tell(self, view: RunView) -> None:
        for row in view.rows:
            if row.stage in self._told or not row.artifact or row.state not in ("succeeded", "found"):
                continue
            self._told.add(row.stage)
            manifest = self._store.find(row.artifact)
            if manifest is not None:
                mark = "found" if row.state == "found" else took(row.seconds or 0)
                say(sentence(self._store, manifest, mark))

    def _plain(self, looks: Iterator[RunView]) -> None:
        """Where there is no terminal: a line of progress now and then, so that nobody thinks it hangs."""
        next_line = time.monotonic() + PROGRESS_LINE
        for view in looks:
            self._tell(view)
            row = _current(view)
            if row is not None and row.progress and time.monotonic() >= next_line:
                next_line = time.monotonic() + PROGRESS_LINE
                say(f"{'':<11} … {_progress(row)}")

    def _show(self, view: RunView, line: Status) -> None:
        from rich.text import Text

        row = _current(view)
        if row is not None:
            doing = INTENTS.get(row.stage, "works") if row.share is None else bar(row.share)
            line.update(Text(f"{row.stage}  {doing}  {_progress(row)}"))


def _current(view: RunView) -> StageRow | None:
    return next((row for row in view.rows if row.state in ("running", "waiting") and row.message + row.progress), None)


def _progress(row: StageRow) -> str:
    left = f", {duration(row.left)} left" if row.left else ""
    return f"{row.progress or row.message}{left}"


def sentence(store: ArtifactStore, manifest: Manifest, mark: str) -> str:
    """The line of a stage that has ended: ``scrape      reads the channel: 752 posts  (1s)``."""
    return f"{manifest.stage:<11} {INTENTS.get(manifest.stage, 'works')}: {outcome(store, manifest)}  ({mark})"


def outcome(store: ArtifactStore, manifest: Manifest) -> str:
    """What a stage has made, in half a line."""
    counts = {name: f"{value:,}" for name, value in manifest.counts.items()}
    if manifest.kind == "posts":
        return f"{counts.get('posts', '?')} posts"
    if manifest.kind == "dataset":
        gone = sorted(((r.dropped, r.step) for r in read_funnel(store, manifest) if r.dropped), reverse=True)[:3]
        most = ", ".join(f"{step.replace('_', ' ')} {number:,}" for number, step in gone)
        why = f"; most of what went: {most}" if most else ""
        return f"{counts.get('posts', '?')} of {counts.get('posts_read', '?')}{why}"
    if manifest.kind == "model":
        bits = manifest.info.get("bits_per_character")
        reached = f", {bits:.2f} bits per character on posts it has not seen" if isinstance(bits, int | float) else ""
        return f"{counts.get('parameters', '?')} parameters, {counts.get('steps', '?')} steps{reached}"
    refused = manifest.counts.get("refused")
    gates = f", {refused:,} refused at the gates" if refused else ""
    return f"{counts.get('drawn', '?')} drawn{gates}, {counts.get('posts', '?')} kept"
