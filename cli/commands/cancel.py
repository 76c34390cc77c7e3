"""``bugurt cancel``: stop a run."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options
from cli.complete import run_names


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("cancel")(cancel)


def cancel(run: Annotated[str, typer.Argument(help="The run's name.", autocompletion=run_names)]) -> None:
    """Stop a run. What its stages have committed stays; training keeps its last checkpoint for `rerun`."""
    from cli.output import next_commands, say
    from cli.run_page import RunPage
    from cli.runs import load_record, load_status, save_status
    from cli.view import driver_job

    _, store, cluster = options.places()
    record = load_record(store, run)
    status = load_status(store, run)
    jobs = [j for j in cluster.list(run) if not j.state.finished]
    if not jobs and status.state in ("succeeded", "failed", "cancelled"):
        say(f"run {run} has ended already: {status.state}")
        return
    cluster.delete(driver_job(record))  # first, so that it does not start anything anew
    for job in cluster.list(run):
        if not job.state.finished:
            cluster.delete(job.name)
    status = load_status(store, run)
    for stage in status.stages.values():
        if stage.state in ("running", "waiting"):
            stage.state, stage.message = "cancelled", ""
    status.state, status.message, status.exit_code = "cancelled", "cancelled by the user", 143
    status = status.model_copy(update={"attempt": record.attempt})
    save_status(store, status)
    RunPage(store, record).publish(status)
    say(f"run {run} cancelled")
    next_commands(f"bugurt rerun {run}")
