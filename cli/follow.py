"""Follow a run until its driver ends: a live table on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

from cli.clusters.base import Cluster
from cli.output import STATE_STYLES, duration, print_table, say
from cli.view import ROW_HEAD, RunView, driver_job, row_cells, view
from jobs.artifacts import ArtifactStore
from jobs.specs import BugurtError, TemporaryError

if TYPE_CHECKING:
    from rich.console import Group

REFRESH = 1.0  # seconds between two looks
PROGRESS_LINE = 15.0  # seconds between lines of progress where there is no terminal


def follow(store: ArtifactStore, cluster: Cluster, run: str, *, quiet: bool = False) -> RunView:
    """Show a run until it has ended; returns the last look. Ctrl-C stops the showing, not the run."""
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
    elif sys.stdout.isatty():
        _live(store, cluster, run, ended)
    else:
        _lines(store, cluster, run, ended)
    return view(store, cluster, run)


def _lines(store: ArtifactStore, cluster: Cluster, run: str, ended: threading.Event) -> None:
    said: dict[str, tuple[str, str]] = {}
    next_progress = time.monotonic() + PROGRESS_LINE
    while True:
        last = ended.is_set()
        found = _look(store, cluster, run)
        for row in found.rows if found else ():
            reason = row.message if row.state in ("waiting", "failed") else ""
            if said.get(row.stage) != (row.state, reason) and not (row.state == "waiting" and not reason):
                said[row.stage] = (row.state, reason)
                detail = row.artifact or reason
                say(f"{row.stage:<11} {row.state}{'  ' + detail if detail else ''}")
            elif row.state == "running" and row.progress and time.monotonic() >= next_progress:
                next_progress = time.monotonic() + PROGRESS_LINE
                say(f"{row.stage:<11} {row.progress}{f', {duration(row.left)} left' if row.left else ''}")
        if last:
            return
        ended.wait(REFRESH)


def _live(store: ArtifactStore, cluster: Cluster, run: str, ended: threading.Event) -> None:
    from rich.live import Live

    from cli.output import console

    with Live(console=console(), refresh_per_second=4) as live:
        while True:
            last = ended.is_set()
            found = _look(store, cluster, run)
            if found:
                live.update(table(found))
            if last:
                return
            ended.wait(REFRESH)


def _look(store: ArtifactStore, cluster: Cluster, run: str) -> RunView | None:
    try:
        return view(store, cluster, run)
    except TemporaryError:
        return None  # the next look may succeed; the run does not depend on ours


def show(found: RunView) -> None:
    """Print a run once."""
    print_table(ROW_HEAD, map(row_cells, found.rows))
    say(f"\nrun {found.record.run}: {found.state}{' - ' + found.message if found.message else ''}")
    for row in found.rows:
        if row.message and row.message not in found.message:
            say(f"{row.stage}: {row.message}")


def table(found: RunView) -> Group:
    """The run as a rich renderable."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in ROW_HEAD:
        grid.add_column(name.upper(), no_wrap=name != "progress")
    for row in found.rows:
        grid.add_row(*(Text(cell, style=STATE_STYLES.get(cell, "")) for cell in row_cells(row)))
    head = Text.assemble(f"run {found.record.run}  ", (found.state, STATE_STYLES.get(found.state, "")))
    notes = [Text(f"{r.stage}: {r.message}") for r in found.rows if r.message]
    if found.message and not notes:
        notes = [Text(found.message)]
    return Group(head, grid, *notes)
