"""``bugurt status``: one run, its stages, and why something waits or failed."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options
from cli.complete import run_names
from cli.options import OPTIONS


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("status")(status)


def status(
    run: Annotated[str, typer.Argument(help="The run's name.", autocompletion=run_names)],
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Stay until the run has ended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a run. Exits with the run's own code after --watch."""
    from cli.follow import follow, show
    from cli.output import is_terminal, print_json
    from cli.view import view

    _, store, cluster = options.places()
    found = follow(store, cluster, run, quiet=OPTIONS.quiet or as_json) if watch else view(store, cluster, run)
    if as_json:
        print_json(found.as_json())
    elif not watch or OPTIONS.quiet or not is_terminal():
        show(found)
    if watch and found.state != "succeeded":
        raise typer.Exit(found.exit_code or 1)
