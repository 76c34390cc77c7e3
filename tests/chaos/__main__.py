"""``python -m tests.chaos --seed 1 --rounds 20``: rounds of chaos and a table of what they did."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos.rounds import Result, play_all


def main() -> int:
    """Play rounds until they, or the time, are spent; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first round; each one has the next number")
    parser.add_argument("--rounds", type=int, default=1)
    jobs = 3 * (os.cpu_count() or 1)  # most of a round is waiting: for leases, lost answers, pauses
    parser.add_argument("--jobs", type=int, default=jobs, help="rounds side by side")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round after so many")
    parser.add_argument("--folder", type=Path, help="where rounds with violations are kept")
    parser.add_argument("--json", type=Path, help="append a line for each round to this file")
    options = parser.parse_args()
    base = options.folder or Path(tempfile.mkdtemp(prefix="bugurt-chaos-"))
    base.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    results: list[Result] = []
    try:
        seeds = range(options.seed, options.seed + options.rounds)
        for result in play_all(seeds, base, jobs=options.jobs, seconds=options.seconds):
            results.append(result)
            show(result)
            if options.json:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(plain(result)) + "\n")
    finally:
        summary(results, base, time.monotonic() - began)
        if options.folder is None and not any(r.violations for r in results):
            shutil.rmtree(base)
    return int(any(r.violations for r in results))


def plain(result: Result) -> dict[str, object]:
    """A round as JSON values."""
    return {
        "seed": result.plan.seed,
        "plan": str(result.plan),
        "seconds": round(result.seconds, 1),
        "requests": result.requests,
        "faults": result.faults,
        "kills": result.kills,
        "told": result.told,
        "violations": result.violations,
    }


def show(result: Result) -> None:
    """A line for a round, and one for each violation."""
    print(
        f"{result.plan.seed:>6}  {result.seconds:5.1f} s  {result.requests:>5} requests  "
        f"{sum(result.faults.values()):>4} faults  {sum(result.kills.values()):>2} kills  "
        f"{result.submissions:>2} submits  {'VIOLATED' if result.violations else 'holds':<8}  {result.plan}",
        flush=True,
    )
    for sentence in result.violations:
        print(f"        ! {sentence}", flush=True)


def summary(results: list[Result], base: Path, seconds: float) -> None:
    """All rounds together."""
    faults: Counter[str] = Counter()
    kills: Counter[str] = Counter()
    told: Counter[str] = Counter()
    for result in results:
        faults.update(result.faults)
        kills.update(result.kills)
        told.update(result.told)
    broken = [r.plan.seed for r in results if r.violations]
    print()
    rows = [
        ("rounds", len(results)),
        ("rounds without warm processes", sum(r.plan.plain for r in results)),
        ("rounds from Telegram", sum(r.plan.telegram for r in results)),
        ("rounds with two pipelines at once", sum(r.plan.twins > 1 for r in results)),
        ("rounds with a clock that differs", sum(r.plan.skew != 0 for r in results)),
        ("rounds on a small disk", sum(r.plan.small_disk > 0 for r in results)),
        ("seconds", round(seconds)),
        ("seconds a round", round(seconds / max(1, len(results)), 1)),
        ("requests", sum(r.requests for r in results)),
        *((f"fault {kind}", count) for kind, count in sorted(faults.items())),
        ("faults in all", sum(faults.values())),
        *((f"told: {words}", count) for words, count in sorted(told.items())),
        *((kind, count) for kind, count in sorted(kills.items())),
        ("kills in all", sum(kills.values())),
        ("rounds with violations", len(broken)),
    ]
    for name, value in rows:
        print(f"{name:<40} {value:>8}")
    if broken:
        print(f"seeds with violations: {', '.join(map(str, broken))}; what they left is in {base}")


if __name__ == "__main__":
    sys.exit(main())
