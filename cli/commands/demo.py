"""``bugurt demo``: the whole way on the sample channel, as a story."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.options import OPTIONS

SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "channel"


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("demo")(demo)


def demo(
    model: Annotated[str, typer.Option("--model", help="scratch:tiny, scratch:small, or a hub name.")] = "scratch:tiny",
    count: Annotated[int, typer.Option("--count", min=1, help="Posts to write.")] = 100,
    source: Annotated[str | None, typer.Option("--source", help="Another channel than the sample.")] = None,
    show: Annotated[int, typer.Option("--show", min=0, help="Posts to print.")] = 10,
    force: Annotated[bool, typer.Option("--force", help="Do it again although it was done before.")] = False,
) -> None:
    """Run the whole pipeline on the sample export and print new posts."""
    from cli.assemble import build_run
    from cli.given import preset_for, scrape_options, vocabulary_for
    from cli.output import next_commands, say
    from cli.sending import finish, send
    from cli.sources import Uploads, parse_source
    from cli.story import Story
    from jobs.specs import ConfigError

    if source is None and not SAMPLE.is_dir():
        raise ConfigError("the sample channel is not installed; give --source EXPORT, or run from a checkout")
    where = source or str(SAMPLE)
    settings, store, cluster = options.places(making=True)
    given = {
        "scrape": scrape_options(Uploads(store), where, None, None, None, None, required=True),
        "preprocess": {"model": model, "vocab_size": vocabulary_for(settings, model)},
        "train": {"model": model, "preset": preset_for(settings, model)},
        "generate": {"count": count, "temperature": 0.8, "rerank": 4},
    }
    spec = build_run(store, settings, ("scrape", "preprocess", "train", "generate"), given, [])
    if not OPTIONS.quiet:
        channel = "a made-up channel" if source is None else parse_source(where).label
        say(f"From {channel} to new posts, with the model {model}, in four stages.")
        if model not in ("scratch:tiny", "scratch:small"):
            say(f"A real model takes its time; --estimate says how much:\n  {estimate_command(where, model)}")
        say()
    submitted = send(
        settings, store, cluster, spec, label="demo", source=source or "the sample channel", force=force, tell=False
    )
    assert submitted is not None
    story = Story(store)
    if submitted.how == "found":
        for item in submitted.plans:
            story.found(item)
        if not OPTIONS.quiet:
            say("everything was found; nothing to do (--force does it again)")
    else:
        finish(store, cluster, submitted, wait=True, screen=story)

    from cli.best import best_posts
    from cli.clusters.local_s3 import served
    from cli.runs import load_status

    batch = load_status(store, submitted.record.run).stages["generate"].artifact
    assert batch is not None
    manifest = store.manifest(batch)
    best = best_posts(store, manifest, show)
    if not OPTIONS.quiet:
        say(f"\n{manifest.counts.get('posts', 0)} new posts; the {len(best)} that the model itself finds likeliest:\n")
    for text in best:
        say(text + "\n")
    if OPTIONS.quiet:
        return
    say(f"They lie in {store.bucket.url(batch)}/")
    folder = served(settings.state) / store.bucket.settings.bucket / store.bucket.key(batch)
    if folder.is_dir():
        say(f"on this machine in {folder}")
    next_commands(
        f"bugurt open {submitted.record.run}",
        f"bugurt batches open {batch}",
        f"bugurt batches pull {batch} --format txt",
    )


def estimate_command(source: str, model: str) -> str:
    """The command that says how long a training would take here."""
    return shlex.join(["bugurt", "submit", "pipeline", "--source", source, "--model", model, "--estimate"])
