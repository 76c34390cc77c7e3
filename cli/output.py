"""What the commands print: tables, JSON, hints. Colours only on a terminal, and never with ``NO_COLOR``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

STATE_STYLES = {
    "succeeded": "green",
    "found": "green",
    "running": "cyan",
    "waiting": "yellow",
    "failed": "bold red",
    "cancelled": "magenta",
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
}


def console(*, stderr: bool = False) -> Console:
    """A rich console; rich is imported late because it takes a tenth of a second."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Indented JSON on standard output; times in ISO 8601."""
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))  # noqa: T201


def say(text: str = "", *, err: bool = False) -> None:
    """A line of plain text."""
    print(text, file=sys.stderr if err else sys.stdout, flush=True)


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "nothing there") -> None:
    """A table in kubectl's manner: capitals above, columns by spaces, no frames."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in head:
        table.add_column(name.upper(), no_wrap=name.lower() not in ("message", "what"), overflow="fold")
    count = 0
    for row in rows:
        count += 1
        table.add_row(*(Text(str(cell), style=STATE_STYLES.get(str(cell), "")) for cell in row))
    if count:
        console().print(table)
    else:
        say(empty, err=True)


def age(moment: datetime | None) -> str:
    """How long ago, as kubectl writes it: 45s, 12m, 3h, 2d."""
    if moment is None:
        return "-"
    return duration((datetime.now(UTC) - moment).total_seconds())


def duration(seconds: float) -> str:
    """A time span in one or two units."""
    seconds = max(0, int(seconds))
    if seconds < 120:
        return f"{seconds}s"
    if seconds < 7200:
        return f"{seconds // 60}m{seconds % 60:02d}s" if seconds < 600 else f"{seconds // 60}m"
    if seconds < 172_800:
        return f"{seconds // 3600}h"
    return f"{seconds // 86_400}d"


def size(count: float) -> str:
    """Bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def next_commands(*commands: str) -> None:
    """The next useful commands, on standard error so that pipes stay clean."""
    say(err=True)
    for command in commands:
        say(f"  {command}", err=True)
