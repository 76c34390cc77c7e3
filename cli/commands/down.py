"""``bugurt down``: stop the embedded S3 server of one machine."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("down")(down)


def down(
    force: Annotated[bool, typer.Option("--force", help="Cancel what still runs.")] = False,
) -> None:
    """Stop the embedded S3 server; the bucket's folder stays."""
    from cli.clusters import local_s3
    from cli.clusters.local import LocalCluster
    from cli.output import say
    from jobs.specs import ConfigError

    settings = options.settings()
    cluster = LocalCluster.from_settings(settings, dict)
    running = [j for j in cluster.list() if not j.state.finished and j.active]
    if running and not force:
        raise ConfigError(f"run {running[0].run} is still running; `bugurt cancel {running[0].run}` first, or --force")
    for job in sorted(running, key=lambda j: j.component != "driver"):
        cluster.delete(job.name)
    cluster.sweep()
    stopped = local_s3.stop(settings.state)
    say("the local S3 server has stopped" if stopped else "no local S3 server was running")
