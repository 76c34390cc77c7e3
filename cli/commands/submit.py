"""``bugurt submit``: send stages off, one alone or the whole pipeline."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.complete import refs
from cli.given import (
    check_distinct,
    generate_options,
    only,
    preset_for,
    profile_options,
    scrape_options,
    source_fields,
    vocabulary_for,
)
from cli.sending import Reckon, submit_stages

if TYPE_CHECKING:
    from cli.clusters.base import Cluster
    from cli.settings import Settings
    from cli.sources import Uploads

app = typer.Typer(
    help="Send a stage or a whole pipeline off. Asking for the same thing twice finds it instead of doing it twice.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Set = Annotated[list[str] | None, typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="Any field of a spec.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be sent; start and upload nothing.")]
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


def _places(*, dry: bool) -> tuple[Settings, Uploads, Cluster]:
    """Settings, the way into the bucket, and the cluster; ``dry``: nothing may change anywhere."""
    from cli.sources import Uploads

    settings, store, cluster = options.places(making=not dry)
    return settings, Uploads(store, dry=dry), cluster


def _reckon(estimate: bool, gpu: str | None, tokens_per_second: float | None) -> Reckon | None:
    """What ``--estimate`` is to reckon with. Without it a GPU's name would be taken for the one to train on."""
    if estimate:
        return Reckon(gpu, tokens_per_second)
    for option, value in (("--gpu", gpu), ("--tokens-per-second", tokens_per_second)):
        if value is not None:
            raise typer.BadParameter("it says nothing without --estimate; give both or none", param_hint=option)
    return None


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
    reckon = _reckon(estimate, gpu, tokens_per_second)
    settings, uploads, cluster = _places(dry=dry_run or estimate)
    given = {
        "scrape": scrape_options(uploads, only(source), since, until, limit, resync, required=True),
        "preprocess": {
            **profile_options(uploads, profile),
            "model": model,
            "seed": seed,
            "vocab_size": vocabulary_for(settings, model),
        },
        "train": {"model": model, "preset": preset or preset_for(settings, model), "seed": seed},
        "generate": {**generate_options(uploads, count, prompt, prompt_file, openings, shards), "seed": seed},
    }
    submit_stages(
        settings,
        uploads,
        cluster,
        ("scrape", "preprocess", "train", "generate"),
        given,
        assign,
        source,
        name,
        dry_run=dry_run,
        wait=wait,
        force=force,
        reckon=reckon,
    )


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
    settings, uploads, cluster = _places(dry=dry_run)
    check_distinct(source or ())
    first, *others = source or (None,)
    given = {"scrape": scrape_options(uploads, first, since, until, limit, resync, required=not assign)}
    also = [source_fields(uploads, text) for text in others if text]
    submit_stages(
        settings,
        uploads,
        cluster,
        ("scrape",),
        given,
        assign,
        source,
        name,
        dry_run=dry_run,
        wait=wait,
        force=force,
        also=also,
    )


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
    settings, uploads, cluster = _places(dry=dry_run)
    ref = uploads.store.resolve(posts, "posts") if posts else None
    fields = {**profile_options(uploads, profile), "vocab_size": vocabulary_for(settings, model)}
    given = {"preprocess": {"posts": ref, **fields, "model": model, "seed": seed}}
    submit_stages(
        settings, uploads, cluster, ("preprocess",), given, assign, [ref], name, dry_run=dry_run, wait=wait, force=force
    )


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
    reckon = _reckon(estimate, gpu, tokens_per_second)
    settings, uploads, cluster = _places(dry=dry_run or estimate)
    ref = uploads.store.resolve(dataset, "dataset") if dataset else None
    given = {"train": {"dataset": ref, "model": model, "preset": preset or preset_for(settings, model), "seed": seed}}
    submit_stages(
        settings,
        uploads,
        cluster,
        ("train",),
        given,
        assign,
        [ref],
        name,
        dry_run=dry_run,
        wait=wait,
        force=force,
        reckon=reckon,
    )


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
    settings, uploads, cluster = _places(dry=dry_run)
    ref = uploads.store.resolve(model, "model") if model else None
    fields = generate_options(uploads, count, prompt, prompt_file, openings, shards)
    given = {"generate": {"model": ref, **fields, "seed": seed}}
    submit_stages(
        settings, uploads, cluster, ("generate",), given, assign, [ref], name, dry_run=dry_run, wait=wait, force=force
    )
