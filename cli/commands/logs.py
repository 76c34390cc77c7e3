"""``bugurt logs``: what the stages of a run wrote, live or from the bucket."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from cli import options
from cli.complete import parts, run_names


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("logs")(logs)


def logs(
    run: Annotated[str, typer.Argument(help="The run's name.", autocompletion=run_names)],
    stage: Annotated[
        str | None, typer.Argument(help="A stage, or 'driver'; all when left out.", autocompletion=parts)
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as lines arrive.")] = False,
    since: Annotated[str | None, typer.Option("--since", help="Only lines newer than this: 90s, 10m, 2h.")] = None,
    tail: Annotated[int | None, typer.Option("--tail", min=0, help="Only the last lines.")] = None,
) -> None:
    """Print the logs of a run."""
    from cli.log_lines import kept_lines, live_lines
    from cli.output import say
    from cli.runs import load_record
    from jobs.specs import SpecError

    _, store, cluster = options.places()
    record = load_record(store, run)
    parts = [*record.spec.steps(), "driver"]
    if stage is not None and stage not in parts:
        raise SpecError(f"run {run} has no stage {stage!r}, but {', '.join(parts)}")
    wanted = [stage] if stage else parts
    seconds = _seconds(since)
    if follow:
        for line in live_lines(store, cluster, record, wanted, since=seconds, tail=tail):
            say(line)
        return
    for line in kept_lines(store, cluster, record, wanted, since=seconds, tail=tail):
        say(line)


def _seconds(text: str | None) -> float | None:
    from jobs.specs import SpecError

    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    if match is None:
        raise SpecError(f"--since {text!r}: write 90s, 10m, 2h or 1d")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
