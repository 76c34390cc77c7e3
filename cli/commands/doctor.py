"""``bugurt doctor``: look at everything that a run needs, and say what to do about what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cli.checks import Finding
    from cli.settings import Settings


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("doctor")(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this machine, the bucket and the cluster. Exit code 0 when a run can start, else 78."""
    from cli.output import print_json, print_table, say

    findings = list(examine(options.settings()))
    bad = [f for f in findings if f.result == "fail"]
    if as_json:
        print_json([f.as_json() for f in findings])
    else:
        print_table(("result", "check", "finding"), [(f.result, f.check, f.text) for f in findings])
        todo = [f for f in findings if f.todo]
        if todo:
            say()
            print_table(("check", "what to do"), [(f.check, f.todo) for f in todo])
        warnings = sum(f.result == "warn" for f in findings)
        say(f"\n{len(findings)} checks: {len(bad)} failed, {warnings} to look at", err=True)
    if bad:
        raise typer.Exit(78)


def examine(settings: Settings) -> Iterator[Finding]:
    """All findings for these settings, as they are made."""
    from cli.checks import fail, machine_checks, run_checks
    from jobs.specs import ConfigError

    yield from run_checks(machine_checks(settings))
    if settings.cluster.kind != "kubernetes":
        return
    from cli.cluster_checks import ClusterChecks
    from cli.clusters.kubernetes_api import connect

    try:
        access = connect(settings.cluster.context, settings.cluster.namespace)
    except ConfigError as error:
        yield fail(
            "cluster", str(error), "a kubeconfig by which `kubectl get nodes` answers; cluster.context in bugurt.toml"
        )
        return
    for finding in run_checks(ClusterChecks(settings, access).all()):
        yield finding
        if finding.check == "cluster" and finding.result == "fail":
            return  # nobody there to answer the rest
