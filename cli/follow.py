"""Follow a run until its driver ends: a live table on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cli.clusters.base import Cluster
from cli.output import STATE_STYLES, is_terminal, print_table, say
from cli.quantities import duration
from cli.view import ROW_HEAD, RunView, driver_job, row_cells, view
from jobs.artifacts import ArtifactStore
from jobs.specs import BugurtError, TemporaryError

if TYPE_CHECKING:
    from rich.console import Group

Screen = Callable[[Iterator[RunView]], None]
REFRESH = 1.0  # seconds between two looks
PROGRESS_LINE = 15.0  # seconds between lines of progress where there is no terminal


def follow(
    store: ArtifactStore, cluster: Cluster, run: str, *, quiet: bool = False, screen: Screen | None = None
) -> RunView:
    """Show a run until it has ended; returns the last look. Ctrl-C stops the showing, not the run.

    ``screen`` shows it in another way: it gets a look after the other, until the run has ended.
    """
    ended = threading.Event()
    name = driver_job(view(store, cluster, run).record)

    def watch() -> None:
        try:
            for _ in cluster.watch(name):
                pass
        except BugurtError:
            return  # the looks below meet the same trouble, and tell of it
        finally:
            ended.set()

    threading.Thread(target=watch, name="watch", daemon=True).start()
    if quiet:
        ended.wait()
    else:
        (screen or (_live if is_terminal() else _lines))(_looks(store, cluster, run, ended))
    return view(store, cluster, run)


def _looks(store: ArtifactStore, cluster: Cluster, run: str, ended: threading.Event) -> Iterator[RunView]:
    while True:
        last = ended.is_set()
        # The next look may succeed where one does not; the run does not depend on ours.
        with contextlib.suppress(TemporaryError):
            yield view(store, cluster, run)
        if last:
            return
        ended.wait(REFRESH)


def _lines(looks: Iterator[RunView]) -> None:
    said: dict[str, tuple[str, str]] = {}
    next_progress = time.monotonic() + PROGRESS_LINE
    for found in looks:
        for row in found.rows:
            reason = row.message if row.state in ("waiting", "failed") else ""
            if said.get(row.stage) != (row.state, reason) and not (row.state == "waiting" and not reason):
                said[row.stage] = (row.state, reason)
                detail = row.artifact or reason
                say(f"{row.stage:<11} {row.state}{'  ' + detail if detail else ''}")
            elif row.state == "running" and row.progress and time.monotonic() >= next_progress:
                next_progress = time.monotonic() + PROGRESS_LINE
                say(f"{row.stage:<11} {row.progress}{f', {duration(row.left)} left' if row.left else ''}")


def _live(looks: Iterator[RunView]) -> None:
    from rich.live import Live

    from cli.output import console

    with Live(console=console(), refresh_per_second=4) as live:
        for found in looks:
            live.update(table(found, live.console.width))


def show(found: RunView) -> None:
    """Print a run once."""
    print_table(ROW_HEAD, map(row_cells, found.rows))
    say(f"\nrun {found.record.run}: {found.state}{' - ' + found.message if found.message else ''}")
    for row in found.rows:
        if row.message and row.message not in found.message:
            say(f"{row.stage}: {row.message}")


def bar(share: float, width: int = 16) -> str:
    """A bar of so many characters, filled to ``share`` of it."""
    full = round(share * width)
    return "━" * full + "╌" * (width - full)


PROGRESS_WIDTH = 24  # characters that the progress has at least: its bar and some words, which go on below it
_GAP = 2


def fitting(found: RunView, width: int) -> list[str]:
    """The columns that a terminal has room for without cutting any off, which rich would do from all sides.

    While a run goes on, its artefacts' ids are the first to go; once it has ended, they are what is left to know.
    """
    cells = [row_cells(row) for row in found.rows]
    widths = {name: max(len(name), *(len(row[at]) for row in cells)) for at, name in enumerate(ROW_HEAD)}
    widths["progress"] = min(widths["progress"], PROGRESS_WIDTH)
    if any(row.share is not None for row in found.rows):
        widths["progress"] = PROGRESS_WIDTH
    going_on = found.state in ("waiting", "running")
    for name in (
        ("artifact", "shards", "tries", "time") if going_on else ("shards", "tries", "left", "progress", "time")
    ):
        if sum(widths.values()) + _GAP * len(widths) <= width:
            break
        del widths[name]
    return list(widths)


def table(found: RunView, width: int) -> Group:
    """The run as a rich renderable for a terminal of so many columns."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, header_style="bold", pad_edge=False, padding=(0, _GAP, 0, 0))
    names = fitting(found, width)
    for name in names:
        grid.add_column(name.upper(), no_wrap=name != "progress")
    for row in found.rows:
        texts = [Text(cell, style=STATE_STYLES.get(cell, "")) for cell in row_cells(row)]
        cells = dict(zip(ROW_HEAD, texts, strict=True))
        if row.share is not None:
            cells["progress"] = Text.assemble(bar(row.share), " ", row.progress)
        grid.add_row(*(cells[name] for name in names))
    head = Text.assemble(f"run {found.record.run}  ", (found.state, STATE_STYLES.get(found.state, "")))
    notes = [Text(f"{r.stage}: {r.message}") for r in found.rows if r.message]
    if found.message and not notes:
        notes = [Text(found.message)]
    return Group(head, grid, *notes)
