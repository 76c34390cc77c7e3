"""``bugurt rerun``: submit a run again, as it was."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options
from cli.complete import run_names


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("rerun")(rerun)


def rerun(
    run: Annotated[str, typer.Argument(help="The run's name.", autocompletion=run_names)],
    force: Annotated[bool, typer.Option("--force", help="Do all of it again.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--detach", help="Follow it to its end / return at once.")] = False,
) -> None:
    """Go on with a run that failed or was cancelled: artefacts that are there are found, the rest is done."""
    from cli.assemble import offline, remirrored, unmirrored
    from cli.runs import load_record
    from cli.sending import check_model, finish, send
    from cli.submission import plan, submit

    settings, store, cluster = options.places()
    before = load_record(store, run)
    spec = before.spec
    anew = force or before.force
    plans = plan(store, spec, force=anew)
    to_do = [item.spec for item in plans if anew or item.found is None]
    # Only where it cannot go on without: with another input it is other work, and finds nothing of before.
    if offline(settings) and unmirrored(to_do) is not None:
        spec = remirrored(store, spec, {asked.stage for asked in to_do})
        plans = plan(store, spec, force=anew)
    if force:
        submitted = send(settings, store, cluster, spec, label=run[:24], source=before.source, force=True)
        assert submitted is not None
    else:
        check_model(settings, plans, force=anew)
        submitted = submit(store, cluster, before.model_copy(update={"spec": spec}), before, plans)
    finish(store, cluster, submitted, wait=wait)
