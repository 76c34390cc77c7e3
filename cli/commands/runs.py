"""``bugurt runs``: all runs of the bucket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options

if TYPE_CHECKING:
    from cli.runs import StageStatus


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("runs")(runs)


def runs(
    mine: Annotated[bool, typer.Option("--mine", help="Only those that I submitted.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List runs, newest first."""
    from itertools import islice

    from cli.output import age, print_json, print_table
    from cli.runs import all_records, with_status
    from cli.submission import owner_of
    from cli.view import quick_state

    settings, store, cluster = options.places()
    me = owner_of(settings)
    jobs = {j.name: j for j in cluster.list() if j.component == "driver"}
    wanted = (record for record in all_records(store) if not mine or record.owner == me)
    shown = list(islice(wanted, limit))
    found = [(record, status, *quick_state(record, status, jobs)) for record, status in with_status(store, shown)]
    if as_json:
        print_json(
            [
                {
                    "run": record.run,
                    "state": state,
                    "message": message,
                    "source": record.source,
                    "owner": record.owner,
                    "submitted": record.submitted.isoformat(),
                    "attempt": record.attempt,
                    "stages": {n: s.model_dump(mode="json") for n, s in status.stages.items()},
                }
                for record, status, state, message in found
            ]
        )
        return
    rows = [
        (r.run, state, _stage(status.stages), r.source or "-", r.owner or "-", age(r.submitted))
        for r, status, state, _ in found
    ]
    print_table(("run", "state", "stage", "source", "owner", "age"), rows, empty="no runs yet; see `bugurt submit -h`")


def _stage(stages: Mapping[str, StageStatus]) -> str:
    """The stage that a run is at."""
    at = "-"
    for name, status in stages.items():
        if status.state != "waiting":
            at = name
    return at
