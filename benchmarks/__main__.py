"""All benchmarks in their quick form, and one table: ``python -m benchmarks [NAME …] [--full] [--json]``.

Each one is a module of this folder and runs as a process of its own, so that times and memory are its own. One that
lacks something it needs says so and is left out; one that fails makes this end in 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common import Row, report, say

FOLDER = Path(__file__).resolve().parent
#: The options of the quick form, where the usual one takes more than a minute or so.
QUICK: dict[str, tuple[str, ...]] = {
    "generate": ("--posts", "64", "--layers", "4", "--width", "256", "--vocabulary", "8192", "--training", "5000"),
    "load": ("--mib", "256", "--shards", "100", "--runs", "500"),
    "resume": ("--quick",),
    "train": ("--quick",),
    "transfer": ("--quick",),
    "preprocess": ("--sizes", "2000,10000", "--no-channel"),
    "scrape": ("--posts", "8000", "--rounds", "2"),
    "transfer_speed": ("--mib", "64", "--rounds", "3"),
}


@dataclass(frozen=True)
class Outcome:
    """What one benchmark gave: rows, or why there are none."""

    name: str
    rows: list[Row] = field(default_factory=list)
    skipped: str = ""
    failed: str = ""


def names() -> list[str]:
    """The benchmarks there are."""
    return sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "common" and not p.stem.startswith("_"))


def run(name: str, options: Sequence[str]) -> Outcome:
    """Run one of them; its progress goes to standard error as it comes."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{name}", "--json", *options],
        cwd=FOLDER.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:  # the result is some lines at the end, so standard output cannot fill up meanwhile
        said.append(line.rstrip())
        say(f"  {said[-1]}")
    out = process.stdout.read()
    if process.wait():
        last = next((line for line in reversed(said) if line), "it said nothing")
        absent = "Traceback" not in "\n".join(said) or last.startswith("ModuleNotFoundError")
        return Outcome(name, skipped=last) if absent else Outcome(name, failed=last)
    try:
        rows = [Row(**{**plain, "ratio": float(plain["ratio"] or "inf")}) for plain in json.loads(out)]
    except (ValueError, TypeError, KeyError) as error:
        return Outcome(name, failed=f"its output is no list of rows: {error}")
    return Outcome(name, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(names())} (default: all)")
    parser.add_argument("--full", action="store_true", help="in their usual size, which takes longer")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(names()):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    outcomes = []
    for name in options.names or names():
        begun = time.monotonic()
        say(f"{name} …")
        outcomes.append(run(name, () if options.full else QUICK.get(name, ())))
        say(f"{name}: {time.monotonic() - begun:.0f} s")
    report([row for outcome in outcomes for row in outcome.rows], as_json=options.json)
    for outcome in outcomes:
        if outcome.skipped:
            say(f"left out: {outcome.name}: {outcome.skipped}")
        if outcome.failed:
            say(f"failed: {outcome.name}: {outcome.failed}")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
