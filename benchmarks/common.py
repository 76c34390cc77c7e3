"""What the benchmarks share: one kind of row, timing, peak memory, a table to read and ``--json`` for machines."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Row:
    """One comparison: our value, the peer's in the same run, and how many times better ours is (1 = equal)."""

    name: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    unit: str
    better: Better


def row(name: str, ours: float, peer: float, *, peer_name: str, unit: str, better: Better) -> Row:
    """A row; ``ratio`` above 1 means that ours is better, whichever way the unit counts."""
    above, below = (ours, peer) if better == "higher" else (peer, ours)
    return Row(name, ours, peer, peer_name, above / below if below else float("inf"), unit, better)


def timed(work: Callable[[], T], *, repeat: int = 1) -> tuple[float, T]:
    """Seconds of the fastest of ``repeat`` calls, and what the last one returned."""
    best = float("inf")
    result: Any = None
    for _ in range(repeat):
        start = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - start)
    return best, result


def arguments(description: str, *options: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """Parse ``--json`` and the benchmark's own ``(name, keywords of add_argument)``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    for name, keywords in options:
        parser.add_argument(name, **keywords)
    return parser.parse_args()


def say(text: str) -> None:
    """A line of progress, on standard error so that ``--json`` stays clean."""
    print(text, file=sys.stderr, flush=True)


def report(rows: Sequence[Row], *, as_json: bool) -> None:
    """Print the rows: a JSON list, or a table."""
    if as_json:
        plain = [{**asdict(r), "ratio": r.ratio if r.ratio != float("inf") else None} for r in rows]
        print(json.dumps(plain, ensure_ascii=False, indent=1))
        return
    head = ("what", "ours", "peer", "unit", "times better", "peer's name")
    lines = [
        (r.name, f"{r.ours:,.4g}", f"{r.peer:,.4g}", f"{r.unit} ({r.better} is better)", f"{r.ratio:.2f}", r.peer_name)
        for r in rows
    ]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    for line in [head, *lines]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
