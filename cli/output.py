"""What the commands print: tables, JSON, hints. Colours only on a terminal, and never with ``NO_COLOR``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from cli.options import OPTIONS
from cli.quantities import duration

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

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

_CODES = {"green": 32, "cyan": 36, "yellow": 33, "magenta": 35, "bold red": "1;31"}


def is_terminal() -> bool:
    """Whether standard output is a terminal on which lines can be drawn anew."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


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
    """A table in kubectl's manner: capitals above, columns by spaces, nothing ever cut off."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        say(empty, err=True)
        return
    widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(head)]
    colour = is_terminal() and not os.environ.get("NO_COLOR")
    say("  ".join(name.upper().ljust(width) for name, width in zip(head, widths, strict=True)).rstrip())
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if colour:
            padded = [_coloured(text, cell) for text, cell in zip(padded, row, strict=True)]
        say("  ".join(padded).rstrip())


def page(texts: Iterable[str]) -> None:
    """Print texts: on a terminal by its pager (``PAGER``, else ``less``), as they come, so that it opens at once.

    Whoever leaves the pager early ends the reading of ``texts`` as well.
    """
    import shlex
    import subprocess

    command = shlex.split(os.environ.get("PAGER", "")) or ["less"]
    pager = None
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        env = {"LESS": "FRX", "LESSCHARSET": "utf-8", **os.environ}
        try:
            pager = subprocess.Popen(command, stdin=subprocess.PIPE, encoding="utf-8", errors="replace", env=env)
        except OSError:
            pager = None  # there is none on this machine
    if pager is None:
        for text in texts:
            sys.stdout.write(text)
        return
    assert pager.stdin is not None
    try:
        with pager.stdin as pipe:
            for text in texts:
                pipe.write(text)
    except (BrokenPipeError, KeyboardInterrupt):
        pass  # enough was read; what Ctrl-C means in a pager is the pager's affair
    finally:
        while pager.poll() is None:
            try:
                pager.wait()
            except KeyboardInterrupt:
                continue


def _coloured(text: str, cell: str) -> str:
    style = STATE_STYLES.get(cell)
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if style else text


def counted(things: Iterable[T], *, total: float | None, unit: str) -> Iterator[T]:
    """The same things, with a bar and a rate on a terminal once they take longer than two seconds."""
    from tqdm import tqdm

    hide = True if OPTIONS.quiet else None  # None: unless standard error is a terminal
    yield from tqdm(things, total=total, unit=f" {unit}", delay=2, leave=False, disable=hide)


def age(moment: datetime | None) -> str:
    """How long ago, as kubectl writes it: 45s, 12m, 3h, 2d."""
    if moment is None:
        return "-"
    return duration((datetime.now(UTC) - moment).total_seconds())


def next_commands(*commands: str) -> None:
    """The next useful commands, on standard error so that pipes stay clean; none with ``--quiet``."""
    if OPTIONS.quiet:
        return
    say(err=True)
    for command in commands:
        say(f"  {command}", err=True)
