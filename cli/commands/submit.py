"""``bugurt submit``: send stages off, one alone or the whole pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.complete import refs
from cli.options import OPTIONS

if TYPE_CHECKING:
    from cli.clusters.base import Cluster
    from cli.follow import Screen
    from cli.settings import Settings
    from cli.submission import Submitted
    from jobs.artifacts import ArtifactStore
    from jobs.specs import RunSpec, ScrapeSpec, StageName

app = typer.Typer(
    help="Send a stage or a whole pipeline off. Asking for the same thing twice finds it instead of doing it twice.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Set = Annotated[list[str] | None, typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="Any field of a spec.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be sent, and start nothing; files of a source are uploaded.")
]
Wait = Annotated[bool, typer.Option("--wait/--detach", help="Follow the run to its end / return at once.")]
Force = Annotated[bool, typer.Option("--force", help="Do it again although it was done before.")]
Name = Annotated[str | None, typer.Option("--name", help="The run's name instead of a made-up one.")]
Source = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        help="A Desktop export (file, folder, zip), .jsonl, .txt, or a channel (@name, link); scrape takes several.",
    ),
]
Profile = Annotated[str | None, typer.Option("--profile", help="bugurt, plain, or a profile's .toml file.")]
Model = Annotated[str | None, typer.Option("--model", help="scratch:tiny, scratch:small, a hub name, or model/ID.")]
Preset = Annotated[str | None, typer.Option("--preset", help="Training settings: default, reference or tiny.")]
Count = Annotated[int | None, typer.Option("--count", help="Posts that pass the gates.")]
Prompt = Annotated[list[str] | None, typer.Option("--prompt", help="A beginning; may be given several times.")]
PromptFile = Annotated[str | None, typer.Option("--prompt-file", help="A text file with one beginning a line.")]
Openings = Annotated[bool | None, typer.Option("--openings", help="Begin as training posts begin.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of every random choice.")]
Shards = Annotated[int | None, typer.Option("--shards", help="Parts of the batch made at the same time.")]
EstimateOnly = Annotated[bool, typer.Option("--estimate", help="Reckon tokens, steps, hours and memory; send nothing.")]
Gpu = Annotated[str | None, typer.Option("--gpu", help="With --estimate: for this GPU, as in --gpu A100.")]
Speed = Annotated[
    float | None, typer.Option("--tokens-per-second", min=0.001, help="With --estimate: the speed that was measured.")
]
Since = Annotated[datetime | None, typer.Option("--since", formats=["%Y-%m-%d"], help="First day to read (UTC).")]
Until = Annotated[datetime | None, typer.Option("--until", formats=["%Y-%m-%d"], help="First day not to read.")]
Limit = Annotated[int | None, typer.Option("--limit", help="At most so many posts.")]
Resync = Annotated[int | None, typer.Option("--resync", metavar="DAYS", help="Look for edits and deletions, too.")]


@dataclass(frozen=True)
class Reckon:
    """What ``--estimate`` is to reckon with."""

    gpu: str | None
    tokens_per_second: float | None


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.add_typer(app, name="submit")


@app.command()
def pipeline(
    source: Source = None,
    profile: Profile = None,
    model: Model = None,
    preset: Preset = None,
    count: Count = None,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    openings: Openings = None,
    seed: Seed = None,
    shards: Shards = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = None,
    resync: Resync = None,
    assign: Set = None,
    name: Name = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    force: Force = False,
    estimate: EstimateOnly = False,
    gpu: Gpu = None,
    tokens_per_second: Speed = None,
) -> None:
    """All four stages: bugurt submit pipeline --source examples/channel --model scratch:tiny --count 200 --wait"""
    settings, store, cluster = options.places()
    given = {
        "scrape": scrape_options(store, only(source), since, until, limit, resync, required=True),
        "preprocess": {
            **profile_options(store, profile),
            "model": model,
            "seed": seed,
            "vocab_size": vocabulary_for(settings, model),
        },
        "train": {"model": model, "preset": preset or preset_for(settings, model), "seed": seed},
        "generate": {**generate_options(store, count, prompt, prompt_file, openings, shards), "seed": seed},
    }
    reckon = Reckon(gpu, tokens_per_second) if estimate else None
    _send(settings, store, cluster, ("scrape", "preprocess", "train", "generate"), given, assign, source, name,
          dry_run=dry_run, wait=wait, force=force, reckon=reckon)  # fmt: skip


@app.command()
def scrape(
    source: Source = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = None,
    resync: Resync = None,
    assign: Set = None,
    name: Name = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    force: Force = False,
) -> None:
    """Read channels, each into posts of its own: bugurt submit scrape --source @channel --source @other --wait"""
    settings, store, cluster = options.places()
    check_distinct(source or ())
    first, *others = source or (None,)
    given = {"scrape": scrape_options(store, first, since, until, limit, resync, required=not assign)}
    also = [source_fields(store, text) for text in others if text]
    _send(settings, store, cluster, ("scrape",), given, assign, source, name,
          dry_run=dry_run, wait=wait, force=force, also=also)  # fmt: skip


@app.command()
def preprocess(
    posts: Annotated[
        str | None, typer.Option("--posts", help="The posts artefact.", autocompletion=refs("posts"))
    ] = None,
    profile: Profile = None,
    model: Model = None,
    seed: Seed = None,
    assign: Set = None,
    name: Name = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    force: Force = False,
) -> None:
    """Make a dataset of posts: bugurt submit preprocess --posts posts/ID --profile bugurt --wait"""
    settings, store, cluster = options.places()
    ref = store.resolve(posts, "posts") if posts else None
    fields = {**profile_options(store, profile), "vocab_size": vocabulary_for(settings, model)}
    given = {"preprocess": {"posts": ref, **fields, "model": model, "seed": seed}}
    _send(settings, store, cluster, ("preprocess",), given, assign, [ref], name,
          dry_run=dry_run, wait=wait, force=force)  # fmt: skip


@app.command()
def train(
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="The dataset artefact.", autocompletion=refs("dataset"))
    ] = None,
    model: Model = None,
    preset: Preset = None,
    seed: Seed = None,
    assign: Set = None,
    name: Name = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    force: Force = False,
    estimate: EstimateOnly = False,
    gpu: Gpu = None,
    tokens_per_second: Speed = None,
) -> None:
    """Train on a dataset: bugurt submit train --dataset dataset/ID --model scratch:tiny --wait"""
    settings, store, cluster = options.places()
    ref = store.resolve(dataset, "dataset") if dataset else None
    given = {"train": {"dataset": ref, "model": model, "preset": preset or preset_for(settings, model), "seed": seed}}
    reckon = Reckon(gpu, tokens_per_second) if estimate else None
    _send(settings, store, cluster, ("train",), given, assign, [ref], name,
          dry_run=dry_run, wait=wait, force=force, reckon=reckon)  # fmt: skip


@app.command()
def generate(
    model: Annotated[
        str | None, typer.Option("--model", help="The model artefact.", autocompletion=refs("model"))
    ] = None,
    count: Count = None,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    openings: Openings = None,
    seed: Seed = None,
    shards: Shards = None,
    assign: Set = None,
    name: Name = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    force: Force = False,
) -> None:
    """Write posts with a model: bugurt submit generate --model model/ID --count 1000 --wait"""
    settings, store, cluster = options.places()
    ref = store.resolve(model, "model") if model else None
    fields = generate_options(store, count, prompt, prompt_file, openings, shards)
    given = {"generate": {"model": ref, **fields, "seed": seed}}
    _send(settings, store, cluster, ("generate",), given, assign, [ref], name,
          dry_run=dry_run, wait=wait, force=force)  # fmt: skip


# -- options to spec fields


def scrape_options(
    store: ArtifactStore, source: str | None, since: datetime | None, until: datetime | None, limit: int | None,
    resync: int | None, *, required: bool,
) -> dict[str, Any]:  # fmt: skip
    """Fields of the scrape spec; a file is uploaded on the way."""
    from jobs.specs import SpecError

    fields: dict[str, Any] = {
        "since": since.date() if since else None,
        "until": until.date() if until else None,
        "limit": limit,
        "resync_days": resync,
    }
    if source is None:
        if required:
            raise SpecError("--source is needed: an export (file, folder, zip), .jsonl, .txt, or a channel")
        return fields
    return {**fields, **source_fields(store, source)}


def source_fields(store: ArtifactStore, source: str) -> dict[str, Any]:
    """The field of the scrape spec that says where the posts come from; a file is uploaded on the way."""
    from cli.sources import parse_source, upload

    found = parse_source(source)
    if found.channel:
        return {"channel": found.channel}
    assert found.file is not None
    return {"source": upload(store, found.file)}


def check_distinct(sources: Sequence[str]) -> None:
    """Raises SpecError when one of several sources is named twice, in whatever way it is written."""
    from collections import Counter

    from cli.sources import channel_key
    from jobs.specs import SpecError

    for name, times in Counter(map(channel_key, sources)).items():
        if times > 1:
            raise SpecError(f"--source {name} is given {times} times; name each channel once")


def only(sources: list[str] | None) -> str | None:
    """The one source of a pipeline. Raises SpecError for several."""
    from jobs.specs import SpecError

    if sources and len(sources) > 1:
        raise SpecError(
            "a pipeline learns from one channel: give one --source; "
            "`bugurt submit scrape` reads several, and a pipeline of its own makes a model of each"
        )
    return sources[0] if sources else None


def profile_options(store: ArtifactStore, profile: str | None) -> dict[str, Any]:
    """A built-in profile's name, or the artefact of a file."""
    from cli.sources import local_path, upload
    from jobs.specs import SpecError

    if profile is None or not (profile.endswith(".toml") or "/" in profile):
        return {"profile": profile}
    path = local_path(profile)
    if not path.is_file():
        raise SpecError(f"there is no profile file {profile}")
    return {"profile": "custom", "profile_file": upload(store, path)}


def generate_options(
    store: ArtifactStore, count: int | None, prompts: list[str] | None, prompt_file: str | None,
    openings: bool | None, shards: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Fields of the generate spec; a prompt file is uploaded on the way."""
    from cli.sources import local_path, upload
    from jobs.specs import SpecError

    fields: dict[str, Any] = {"count": count, "openings": openings, "shards": shards, "prompts": prompts or None}
    if prompt_file is not None:
        path = local_path(prompt_file)
        if not path.is_file():
            raise SpecError(f"there is no prompt file {prompt_file}")
        fields["prompts_file"] = upload(store, path)
    return fields


def vocabulary_for(settings: Settings, model: str | None) -> int | None:
    """The vocabulary that goes with the tiny model, whose channels are small: 1,024 pieces.

    With as many pieces as so small a text bears (5,827 for the sample channel) the tiny model hardly learns where a
    line ends.
    """
    if "vocab_size" in settings.preprocess or preset_for(settings, model) is None:
        return None
    return 1024


def preset_for(settings: Settings, model: str | None) -> str | None:
    """The training preset that goes with a model when neither the options nor the settings name one."""
    if "preset" in settings.train:
        return None
    return "tiny" if (model or settings.train.get("model", "scratch:tiny")) == "scratch:tiny" else None


# -- sending


def _send(
    settings: Settings, store: ArtifactStore, cluster: Cluster, stages: tuple[StageName, ...],
    given: dict[str, dict[str, Any]], assign: list[str] | None, sources: Sequence[str | None] | None,
    name: str | None, *, dry_run: bool, wait: bool, force: bool, reckon: Reckon | None = None,
    also: Sequence[dict[str, Any]] = (),
) -> None:  # fmt: skip
    from cli.assemble import build_run
    from jobs.specs import RUN_NAME, SpecError

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
            store.manifest(ref)
    if reckon is not None:
        _print_estimate(store, spec, source, reckon)
        return
    label = "-".join(label_of(text, stages) for text in texts) or stages[0]
    submitted = send(settings, store, cluster, spec, label=label, source=source, name=name,
                     force=force, dry_run=dry_run)  # fmt: skip
    if submitted is not None:
        finish(store, cluster, submitted, wait=wait)


def _print_estimate(store: ArtifactStore, spec: RunSpec, source: str | None, reckon: Reckon) -> None:
    from cli.estimating import estimate_plan
    from cli.output import say
    from cli.submission import plan

    found = estimate_plan(store, plan(store, spec), source, gpu=reckon.gpu, tokens_per_second=reckon.tokens_per_second)
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
                where = f" -n {cluster.namespace}" if hasattr(cluster, "namespace") else ""
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
