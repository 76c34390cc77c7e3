"""Submit a run: find what is there already, write ``run.json``, create the driver."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from cli.clusters.base import Cluster, JobRequest
from cli.manifests import store_digest
from cli.run_page import RunPage
from cli.runs import (
    RunRecord,
    RunStatus,
    StageStatus,
    find_record,
    load_status,
    run_name,
    save_record,
    save_status,
    with_input,
)
from cli.settings import Settings
from cli.sources import channel_key, legible
from cli.view import driver_job
from jobs import __version__
from jobs.artifacts import ArtifactStore, Manifest
from jobs.specs import CHAIN, MAKES, AnyStageSpec, DataError, RunSpec, ScrapeSpec, StageName

MAX_COMPARED = 300  # artefacts that are looked through for the nearest one


@dataclass(frozen=True)
class Plan:
    """What is known of one step before it runs. ``ref`` is None while an input of it is yet to be made."""

    step: str
    spec: AnyStageSpec
    ref: str | None
    found: Manifest | None
    why: str

    @property
    def stage(self) -> StageName:
        """The stage that does it."""
        return self.spec.stage


@dataclass(frozen=True)
class Submitted:
    """How a submission ended: a new run, one that goes on, or everything was there already."""

    record: RunRecord
    how: Literal["new", "adopted", "again", "found"]
    plans: list[Plan]


def plan(store: ArtifactStore, spec: RunSpec, *, force: bool = False) -> list[Plan]:
    """Which stages' artefacts are there, and why those that are not are not.

    Raises DataError when a manifest is damaged, unless it is to be made again by force anyway.
    """
    plans: list[Plan] = []
    ref: str | None = None
    known = True
    for step, asked in spec.steps().items():
        stage = asked.stage
        filled = with_input(asked, ref)
        known = known and not (stage in CHAIN and getattr(filled, CHAIN[stage]) is None)
        if not known:
            before = plans[-1].stage if plans else "its input"
            plans.append(Plan(step, filled, None, None, f"to be made after {before}"))
            ref = None  # what comes next is made from this step's artefact, which has no id yet
            continue
        ref = filled.ref()
        try:
            manifest = store.find(ref)
        except DataError as error:
            if not force:
                raise DataError(f"{error}; --force makes it again") from error
            manifest = None
        why = (
            _why(store, stage, filled)
            if manifest is None
            else f"made by run {manifest.run} from the same spec and inputs{_outlived(store, manifest)}"
        )
        plans.append(Plan(step, filled, ref, manifest, why))
        known = manifest is not None or bool(spec.also)  # no channel waits for what another one gives
    return plans


def _why(store: ArtifactStore, stage: StageName, spec: AnyStageSpec) -> str:
    """Why there is no artefact: what it differs in from the one that is nearest."""
    kind = MAKES[stage]
    names = list(store.bucket.folders(f"{kind}/"))
    if not names:
        return f"to be made: there is no {kind} artefact yet"
    if len(names) > MAX_COMPARED:
        return "to be made: none with this spec and these inputs"
    wanted: dict[str, Any] = {**spec.identity(), **spec.inputs()}
    best: tuple[int, Manifest, list[str]] | None = None
    for manifest in store.list(kind):
        if manifest.stage != stage:
            continue
        theirs = {**manifest.spec, **manifest.inputs}
        differing = [k for k, v in wanted.items() if theirs.get(k) != v]
        if best is None or len(differing) < best[0]:
            best = (len(differing), manifest, differing)
    if best is None:
        return f"to be made: there is no {kind} artefact of this stage yet"
    _, manifest, differing = best
    theirs = {**manifest.spec, **manifest.inputs}
    shown = ", ".join(f"{k} {_short(theirs.get(k))} → {_short(wanted[k])}" for k in differing[:3])
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    return f"to be made: differs from {manifest.ref} in {shown or 'the stage version'}{more}"


def _outlived(store: ArtifactStore, manifest: Manifest) -> str:
    """What to know of an artefact one of whose inputs was made again by force since."""
    for name, ref in manifest.inputs.items():
        then = manifest.made_from.get(name)
        now = store.find(ref) if then is not None else None
        if now is not None and now.created != then:
            return f", before run {now.run} made {ref} again (--force makes this one again, too)"
    return ""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 28 else text[:25] + "..."


def record_for(
    store: ArtifactStore, settings: Settings, spec: RunSpec, *, label: str, source: str, force: bool, name: str | None
) -> tuple[RunRecord, RunRecord | None]:
    """The record to submit and the one that is there under the same name. Nothing is written."""
    # Several people share a namespace, each with a bucket or a prefix of their own, and may ask for the same.
    digest = store_digest(settings) if settings.cluster.kind == "kubernetes" else None
    run = name or run_name(spec, label, store=digest)
    before = find_record(store, run)
    serial = 1
    while before is not None and (force or before.spec != spec):
        serial += 1
        again = f"-{serial}"
        run = name[: 31 - len(again)] + again if name else run_name(spec, label, serial=serial, store=digest)
        before = find_record(store, run)
    now = datetime.now(UTC)
    owner = owner_of(settings)
    if before is not None:
        return before.model_copy(update={"submitted": now}), before
    record = RunRecord(
        run=run,
        spec=spec,
        source=legible(source),
        owner=legible(owner),
        force=force,
        created=now,
        submitted=now,
        code_version=__version__,
    )
    return record, None


def owner_of(settings: Settings) -> str:
    """Whose runs these are: the setting, else the user's name on this machine."""
    if settings.owner:
        return settings.owner
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's uid without a name
        return ""


def driver_request(record: RunRecord) -> JobRequest:
    """The driver's Job."""
    return JobRequest(
        name=driver_job(record), run=record.run, component="driver", spec={"run": record.run}, attempt=record.attempt
    )


def submit(
    store: ArtifactStore, cluster: Cluster, record: RunRecord, before: RunRecord | None, plans: list[Plan]
) -> Submitted:
    """Send a run off. What was submitted before and still goes on is adopted; what is all there is found."""
    if before is not None:
        driver = cluster.get(driver_job(before))
        if driver is not None and not driver.state.finished:
            cluster.create(driver_request(before))  # takes care of a driver whose supervisor was killed
            return Submitted(before, "adopted", plans)
        record = record.model_copy(update={"attempt": before.attempt + 1})
    if not record.force and all(p.found is not None for p in plans):
        if before is None:
            save_record(store, record)
        status = _all_found(before or record, plans)
        save_status(store, status)
        page = RunPage(store, before or record)
        for item in plans:
            if item.found is not None:
                page.know(item.found)
        page.publish(status)
        return Submitted(before or record, "found", plans)
    save_record(store, record)
    cluster.create(driver_request(record))
    return Submitted(record, "new" if before is None else "again", plans)


def _all_found(record: RunRecord, plans: list[Plan]) -> RunStatus:
    stages: dict[str, StageStatus] = {}
    for item in plans:
        manifest = item.found
        assert manifest is not None
        stages[item.step] = StageStatus(
            state="found",
            artifact=manifest.ref,
            made_by=manifest.run,
            exit_code=0,
            counts=dict(manifest.counts),
            started=manifest.started,
            finished=manifest.created,
        )
    return RunStatus(run=record.run, state="succeeded", attempt=record.attempt, exit_code=0, stages=stages)


def latest_posts(store: ArtifactStore, wanted: ScrapeSpec) -> str | None:
    """The newest posts artefact that a scrape of this channel can add to, or None.

    A scrape begins after the newest post of its parent. So the parent must hold all that is asked for of the time
    before, and nothing else: it and all its ancestors began where this one is to begin, and ended no later than it is
    to end. Otherwise posts that were asked for would be left out in silence, and others be in.
    """
    assert wanted.channel is not None
    asked = wanted.identity()
    all_posts = {m.ref: m for m in store.list("posts")}

    def chain(manifest: Manifest | None) -> Iterator[Manifest]:
        while manifest is not None:
            yield manifest
            manifest = all_posts.get(manifest.parent or "")

    def fits(spec: dict[str, Any]) -> bool:
        begins = all(spec.get(name) == asked[name] for name in ("since", "min_id"))
        ends = all(
            asked[name] is None or (spec.get(name) is not None and spec[name] <= asked[name])
            for name in ("until", "max_id")
        )
        return begins and ends

    key = channel_key(wanted.channel)
    found = [
        m
        for m in all_posts.values()
        if channel_key(str(m.spec.get("channel") or "")) == key and all(fits(a.spec) for a in chain(m))
    ]
    return max(found, key=lambda m: m.created).ref if found else None


def unfinished_run(store: ArtifactStore, spec: RunSpec) -> RunRecord | None:
    """A run of the same live channels that has not ended: asking again means that one, not another scrape."""
    from cli.runs import all_records

    def timeless(found: RunSpec) -> RunSpec:
        return found.pinned(lambda scrape: {"as_of": None, "parent": None})

    for record in all_records(store):
        if not any(s.channel for s in record.spec.scrapes()) or timeless(record.spec) != timeless(spec):
            continue
        if load_status(store, record.run).state in ("waiting", "running"):
            return record
    return None
