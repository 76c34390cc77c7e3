"""``bugurt open``: a run as a page."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options
from cli.complete import run_names


def register(root: typer.Typer) -> None:
    """Add the command."""
    root.command("open")(open_)


def open_(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="The run's name; the newest when left out.", autocompletion=run_names),
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it, or only say where it is.")] = True,
) -> None:
    """Open a run's page in the browser: its stages, the funnel, the curves, the first posts, all artefacts."""
    from cli.pages import fetch, show_page
    from cli.places import open_store
    from cli.run_page import RunPage, page_path
    from cli.runs import all_records, load_record, load_status
    from jobs.specs import NotFoundError

    settings = options.settings()
    store = open_store(settings)
    if run is None:
        record = next(all_records(store), None)
        if record is None:
            raise NotFoundError("there are no runs yet; see `bugurt submit -h`")
    else:
        record = load_record(store, run)
    status = load_status(store, record.run)
    made = RunPage(store, record)
    folder = settings.state / "view"
    page = folder / page_path(record.run)
    page.parent.mkdir(parents=True, exist_ok=True)
    # Made from what is there now: the driver's copy in the bucket is as old as the last end of a stage.
    page.write_text(made.make(status), encoding="utf-8")
    for manifest in made.manifests(status):
        fetch(store, manifest, folder)
    show_page(page, browser=browser)
