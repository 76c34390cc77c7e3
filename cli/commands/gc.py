"""``bugurt gc``: reclaim what was never committed."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("gc")(gc)


def gc(
    older_than: Annotated[
        float, typer.Option("--older-than", metavar="HOURS", min=0, help="Leave newer things.")
    ] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Remove half-written artefacts, abandoned uploads, dead leases, and checkpoints of models that are done."""
    from cli.clusters.local_s3 import served
    from cli.garbage import collect
    from cli.output import print_json, say
    from cli.places import is_embedded, open_store
    from cli.quantities import size

    settings = options.settings()
    folder = served(settings.state) if is_embedded(settings) else None
    found = collect(open_store(settings), older_than * 3600, dry_run=dry_run, embedded=folder)
    if settings.cluster.kind == "local" and not dry_run:
        from cli.clusters.local import LocalCluster

        LocalCluster.from_settings(settings, dict).sweep()
    if as_json:
        print_json({"removed": found.lines, "size": found.size, "dry_run": dry_run})
        return
    for line in found.lines:
        say(f"{'would remove' if dry_run else 'removed'}  {line}")
    say(f"{len(found.lines)} things, {size(found.size)}{' (dry run)' if dry_run else ''}")
