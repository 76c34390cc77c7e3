"""Sending a run off: what would be sent, what was found, and what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from cli.options import OPTIONS

if TYPE_CHECKING:
    from cli.clusters.base import Cluster
    from cli.follow import Screen
    from cli.settings import Settings
    from cli.sources import Uploads
    from cli.submission import Plan, Submitted
    from jobs.artifacts import ArtifactStore
    from jobs.specs import RunSpec, ScrapeSpec, StageName


@dataclass(frozen=True)
class Reckon:
    """What ``--estimate`` is to reckon with."""

    gpu: str | None
    tokens_per_second: float | None


def submit_stages(
    settings: Settings, uploads: Uploads, cluster: Cluster, stages: tuple[StageName, ...],
    given: dict[str, dict[str, Any]], assign: list[str] | None, sources: Sequence[str | None] | None,
    name: str | None, *, dry_run: bool, wait: bool, force: bool, reckon: Reckon | None = None,
    also: Sequence[dict[str, Any]] = (),
) -> None:  # fmt: skip
    """What ``bugurt submit`` does once its options are fields; ``sources``: in the user's words."""
    from cli.assemble import build_run
    from jobs.specs import RUN_NAME, SpecError

    store = uploads.store
    if name is not None:
        import re

        if not re.fullmatch(RUN_NAME, name):
            raise SpecError(f"--name {name!r}: use at most 31 lower-case letters, digits and hyphens")
    texts = [s for s in sources or () if s]
    source = ", ".join(texts)
    spec = build_run(store, settings, stages, given, assign or [], also)
    for first in spec.scrapes() or (spec.spec(stages[0]),):
        missing = first.missing_inputs()
        if missing:
            raise SpecError(f"{stages[0]}: --{missing[0]} is needed")
        for ref in first.inputs().values():
            if ref not in uploads.unsent:
                store.manifest(ref)
    if reckon is not None:
        from cli.submission import plan

        plans = plan(store, spec)
        check_model(settings, plans, force=force, only_warn=True)
        _print_estimate(store, plans, source, reckon)
        return
    label = "-".join(label_of(text, stages) for text in texts) or stages[0]
    submitted = send(settings, store, cluster, spec, label=label, source=source, name=name,
                     force=force, dry_run=dry_run)  # fmt: skip
    if dry_run:
        _print_unsent(uploads)
    if submitted is not None:
        finish(store, cluster, submitted, wait=wait)


def check_model(settings: Settings, plans: Sequence[Plan], *, force: bool, only_warn: bool = False) -> None:
    """Raise ConfigError where a pod would ask the hub for a model, which it may not: here, and not after the scrape."""
    from cli.assemble import offline, unmirrored
    from cli.output import say
    from jobs.specs import ConfigError

    spec = unmirrored(item.spec for item in plans if force or item.found is None)
    if spec is None or not offline(settings):
        return
    revision = "" if spec.revision == "main" else f" --revision {spec.revision}"
    message = (
        f"{spec.model} is not in the bucket, and pods may not load from the hub: run "
        f"`bugurt mirror {spec.model}{revision}`, or set hub = true in [cluster] and run `bugurt install`"
    )
    if not only_warn:
        raise ConfigError(message)
    say(f"warning: {message}", err=True)


def _print_estimate(store: ArtifactStore, plans: list[Plan], source: str | None, reckon: Reckon) -> None:
    from cli.estimating import estimate_plan
    from cli.output import say

    found = estimate_plan(store, plans, source, gpu=reckon.gpu, tokens_per_second=reckon.tokens_per_second)
    for name, value in found.rows():
        say(f"{name:<24} {value}")


def label_of(source: str, stages: tuple[StageName, ...]) -> str:
    """The readable part of a run's name."""
    from cli.sources import parse_source

    if "/" in source and source.split("/", 1)[0] in ("posts", "dataset", "model"):
        return stages[0]
    return parse_source(source).label


def send(
    settings: Settings, store: ArtifactStore, cluster: Cluster, spec: RunSpec, *, label: str, source: str,
    name: str | None = None, force: bool = False, dry_run: bool = False, tell: bool = True,
) -> Submitted | None:  # fmt: skip
    """Submit a run and, if asked to ``tell``, say what was found; None after a dry run."""
    from cli.output import say
    from cli.submission import driver_request, plan, record_for, submit

    spec, running = _live(store, spec)
    record, before = (running, running) if running and not force else record_for(
        store, settings, spec, label=label, source=source, force=force, name=name
    )  # fmt: skip
    plans = plan(store, record.spec, force=force)
    check_model(settings, plans, force=force, only_warn=dry_run)
    if dry_run:
        _print_dry_run(cluster, record, plans, driver_request(record))
        return None
    if tell and not OPTIONS.quiet:
        say(f"run {record.run}")
        for item in plans:
            word = "found" if item.found and not force else "to do"
            say(f"  {item.step:<11} {word:<6} {item.ref or '-':<28} {'forced' if force else item.why}")
    return submit(store, cluster, record, before, plans)


def _live(store: ArtifactStore, spec: RunSpec) -> tuple[RunSpec, Any]:
    """Pin live channels to this moment and to the posts that are there; or the run that is at it already."""
    from datetime import UTC

    from cli.submission import latest_posts, unfinished_run

    if not any(s.channel and s.as_of is None for s in spec.scrapes()):
        return spec, None
    running = unfinished_run(store, spec)
    if running is not None:
        return running.spec, running
    now = datetime.now(UTC).replace(microsecond=0)

    def pin(scrape: ScrapeSpec) -> dict[str, Any]:
        if scrape.as_of is not None or scrape.channel is None:
            return {}
        return {"as_of": now, "parent": scrape.parent or latest_posts(store, scrape)}

    return spec.pinned(pin), None


def _print_dry_run(cluster: Cluster, record: Any, plans: list[Any], driver: Any) -> None:
    """What would be sent: the driver's Job, or what one machine would start, and the stages' Jobs behind it."""
    from cli.clusters.base import JobRequest, job_name
    from cli.output import print_json
    from cli.runs import step_env

    documents = list(cluster.render(driver))
    for item in plans:
        request = JobRequest(
            name=job_name(record.run, item.stage, item.ref, record.attempt),
            run=record.run,
            component=item.stage,
            spec=item.spec.model_dump(mode="json"),
            attempt=record.attempt,
            shards=getattr(item.spec, "shards", 1),
            force=record.force,
            artifact=item.ref,
            env=step_env(item.step, item.spec),
        )
        documents += cluster.render(request)
    if cluster.kind == "kubernetes":
        from cli.manifests import to_yaml

        typer.echo(to_yaml(documents), nl=False)
    else:
        print_json({"run": record.model_dump(mode="json"), "jobs": documents})


def _print_unsent(uploads: Uploads) -> None:
    """The files that go to the bucket before the run begins, beside what is printed for other programs to read."""
    from cli.output import say
    from cli.quantities import size

    for ref, (file, count) in uploads.unsent.items():
        say(f"would upload {file} as {ref} ({size(count)})", err=True)


def finish(
    store: ArtifactStore, cluster: Cluster, submitted: Submitted, *, wait: bool, screen: Screen | None = None
) -> None:
    """Say how it was submitted, follow it if asked to, and exit with the run's code.

    ``screen`` shows it in another way than ``status -w`` does, and says what comes next.
    """
    from cli.follow import follow
    from cli.output import next_commands, say

    run = submitted.record.run
    if submitted.how == "found":
        batch = next((p.ref for p in submitted.plans if p.stage == "generate"), None)
        if not OPTIONS.quiet:
            say("everything was found; nothing to do (--force does it again)")
            next_commands(f"bugurt batches show {batch}" if batch else f"bugurt status {run}")
        return
    if not OPTIONS.quiet:
        words = {"new": "submitted", "adopted": "is running already: adopted", "again": "goes on where it stopped"}
        if screen is None:
            say(f"run {run} {words[submitted.how]}")
    if not wait:
        if not OPTIONS.quiet:
            hints = [f"bugurt status {run} -w", f"bugurt logs {run} -f", f"bugurt cancel {run}"]
            if cluster.kind == "kubernetes":
                where = f" {cluster.place}" if hasattr(cluster, "place") else ""
                hints.append(f"kubectl get jobs,pods{where} -l app.kubernetes.io/instance={run}")
            next_commands(*hints)
        return
    try:
        found = follow(store, cluster, run, quiet=OPTIONS.quiet, screen=screen)
    except KeyboardInterrupt:
        say(f"\nthe run goes on; `bugurt status {run} -w` shows it again, `bugurt cancel {run}` stops it", err=True)
        raise typer.Exit(130) from None
    if found.state != "succeeded":
        say(f"error: {found.message or 'the run did not succeed'}", err=True)
        if not OPTIONS.quiet:
            useless = found.exit_code in (64, 65)  # the same spec and data would end in the same way
            next_commands(f"bugurt logs {run}", *([] if useless else [f"bugurt rerun {run}"]))
        raise typer.Exit(found.exit_code or 70)
    if screen is None and not OPTIONS.quiet:
        batch = next((r.artifact for r in found.rows if r.stage == "generate"), None)
        made = [r.artifact for r in found.rows] if found.record.spec.also else [found.rows[-1].artifact]
        next_commands(*([f"bugurt batches show {batch}", f"bugurt batches open {batch}"] if batch
                        else [f"bugurt artifacts show {ref}" for ref in made]))  # fmt: skip
