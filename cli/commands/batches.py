"""``bugurt batches``: the posts that were written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.commands import artifacts
from cli.commands.artifacts import clean, open_store
from cli.complete import refs

if TYPE_CHECKING:
    from jobs.artifacts import ArtifactStore, Manifest

app = typer.Typer(help="List, read, pull, open and compare batches.", no_args_is_help=True, rich_markup_mode=None)
NONE = "there are no batches yet; see `bugurt submit generate -h`"
Batch = Annotated[
    str | None,
    typer.Argument(metavar="[BATCH]", help="The batch's id; the newest when left out.", autocompletion=refs("batch")),
]


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.add_typer(app, name="batches")


@app.command("list")
def list_(as_json: artifacts.Json = False) -> None:
    """List batches, newest first."""
    from cli.output import age, print_json, print_table

    found = sorted(open_store().list("batch"), key=lambda m: m.created, reverse=True)
    if as_json:
        print_json([artifacts.summary(m) for m in found])
        return
    rows = [
        (m.ref, f"{m.counts.get('posts', 0):,}", m.inputs.get("model", "-"), m.run or "-", age(m.created))
        for m in found
    ]
    print_table(("batch", "posts", "model", "run", "age"), rows, empty=NONE)


def find(store: ArtifactStore, batch: str | None) -> Manifest:
    """A batch by its (abbreviated) id, or the newest. Raises NotFoundError."""
    from jobs.specs import NotFoundError

    if batch is not None:
        return store.manifest(store.resolve(batch, "batch"))
    found = list(store.list("batch"))
    if not found:
        raise NotFoundError(NONE)
    return max(found, key=lambda m: m.created)


@app.command()
def show(
    batch: Batch = None,
    number: Annotated[int | None, typer.Option("-n", "--number", min=1, help="At most so many posts.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON Lines.")] = False,
) -> None:
    """Read a batch; on a terminal page by page."""
    import itertools
    import json

    from cli.batch_lines import jsonl
    from cli.output import page, say

    store = open_store()
    manifest = find(store, batch)
    found = itertools.islice(jsonl(store, manifest), number)
    if as_json:
        for record in found:
            say(json.dumps(record, ensure_ascii=False))
        return
    page(f"[{r.get('index')}]\n{clean(str(r.get('text', '')))}\n\n" for r in found)


@app.command()
def pull(
    batch: Batch = None,
    dest: artifacts.Output = None,
    form: artifacts.Form = None,
) -> None:
    """Download a batch."""
    artifacts.pull(find(open_store(), batch).ref, dest, form)


@app.command("open")
def open_(
    batch: Batch = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it, or only say where it is.")] = True,
) -> None:
    """Open a batch's gallery in the browser."""
    from cli import options
    from cli.pages import fetch, show_page
    from jobs.specs import NotFoundError

    store = open_store()
    manifest = find(store, batch)
    page = fetch(store, manifest, options.settings().state / "view")
    if page is None:
        raise NotFoundError(f"{manifest.ref} has no gallery; `bugurt batches show {manifest.id}` prints it")
    show_page(page, browser=browser)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A batch.", autocompletion=refs("batch"))],
    second: Annotated[str, typer.Argument(metavar="B", help="Another batch.", autocompletion=refs("batch"))],
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="Pairs to show.")] = 10,
    as_json: artifacts.Json = False,
) -> None:
    """Two batches side by side, on the same prompts where they have them."""
    from cli.output import console, print_json, say

    store = open_store()
    manifests = [store.manifest(store.resolve(b, "batch")) for b in (first, second)]
    pairs = list(_pairs(store, manifests[0], manifests[1], number))
    if as_json:
        print_json([{"prompt": p, "a": a, "b": b} for p, a, b in pairs])
        return
    if not pairs:
        say(f"no post of {manifests[0].ref} begins with the prompt of one of {manifests[1].ref}", err=True)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", show_lines=True)
    for manifest in manifests:
        table.add_column(f"{manifest.ref[:14]} ({manifest.inputs.get('model', '-')[:14]})", ratio=1)
    for _, a, b in pairs:
        table.add_row(Text(clean(str(a["text"]))), Text(clean(str(b["text"]))))
    console().print(table)


def _pairs(store: ArtifactStore, a: Manifest, b: Manifest, number: int) -> list[tuple[str, Any, Any]]:
    """The first records of both that share a prompt, in the order of the first batch."""
    from cli.batch_lines import jsonl

    theirs: dict[str, list[dict[str, Any]]] = {}
    for record in jsonl(store, b):
        bucket = theirs.setdefault(str(record.get("prompt") or ""), [])
        if len(bucket) < number:
            bucket.append(record)
    found: list[tuple[str, Any, Any]] = []
    for record in jsonl(store, a):
        prompt = str(record.get("prompt") or "")
        if theirs.get(prompt):
            found.append((prompt, record, theirs[prompt].pop(0)))
        if len(found) == number:
            break
    return found
