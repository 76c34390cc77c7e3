"""``bugurt artifacts``: what lies in the bucket, to look at and to take home."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli import options
from cli.complete import refs

if TYPE_CHECKING:
    from jobs.artifacts import ArtifactStore, Manifest

app = typer.Typer(help="List, show, pull and remove artefacts.", no_args_is_help=True, rich_markup_mode=None)
Ref = Annotated[
    str,
    typer.Argument(metavar="KIND/ID", help="The artefact; the id may be abbreviated.", autocompletion=refs()),
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="Folder; with --format a file, or - for standard output.")
]
Form = Annotated[str | None, typer.Option("--format", metavar="txt|jsonl", help="One plain file of the posts instead.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.add_typer(app, name="artifacts")


def open_store() -> ArtifactStore:
    """The bucket of the settings."""
    from cli.places import open_store as opened

    return opened(options.settings())


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="source, posts, dataset, model or batch.")] = None,
    as_json: Json = False,
) -> None:
    """List artefacts, newest first."""
    from cli.output import age, print_json, print_table
    from cli.quantities import size
    from jobs.specs import KINDS, SpecError

    if kind is not None and kind not in KINDS:
        raise SpecError(f"{kind!r} is no kind of artefact; choose one of {', '.join(KINDS)}")
    found = sorted(open_store().list(*([kind] if kind else [])), key=lambda m: m.created, reverse=True)
    if as_json:
        print_json([summary(m) for m in found])
        return
    rows = [(m.ref, m.stage, m.run or "-", size(m.size), _counts(m), age(m.created)) for m in found]
    print_table(("artifact", "stage", "run", "size", "counts", "age"), rows, empty="no artefacts yet")


def summary(manifest: Manifest) -> dict[str, Any]:
    """A manifest without its list of files."""
    body = manifest.model_dump(mode="json", exclude={"files"})
    return {**body, "ref": manifest.ref, "files": len(manifest.files), "size": manifest.size}


def _counts(manifest: Manifest) -> str:
    return ", ".join(f"{k} {v:,}" for k, v in list(manifest.counts.items())[:3]) or "-"


@app.command()
def show(
    ref: Ref,
    number: Annotated[int, typer.Option("-n", "--number", min=0, help="Records of the sample.")] = 5,
    files: Annotated[bool, typer.Option("--files", help="List the files.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="A dataset's changed posts, before and after.")] = False,
    as_json: Json = False,
) -> None:
    """Print what an artefact is, and a readable sample of it."""
    from cli.output import age, print_json, say
    from cli.quantities import size

    store = open_store()
    manifest = store.manifest(store.resolve(ref))
    if as_json:
        print_json({**summary(manifest), "files": [f.model_dump(mode="json") for f in manifest.files]})
        return
    if diff:
        _diff(store, manifest, number)
        return
    say(f"{manifest.ref}  made by {manifest.stage} in run {manifest.run or '-'}, {age(manifest.created)} ago")
    say(f"  where    {store.bucket.url(manifest.ref)}/  ({len(manifest.files)} files, {size(manifest.size)})")
    for name, other in manifest.inputs.items():
        say(f"  from     {name} {other}")
    if manifest.parent:
        say(f"  adds to  {manifest.parent}")
    for name, value in manifest.counts.items():
        say(f"  {name:<24} {value:,}")
    if files:
        for entry in manifest.files:
            place = f"{entry.artifact}/{entry.path}" if entry.artifact else entry.path
            say(f"  {size(entry.size):>10}  {entry.sha256[:12]}  {place}")
        return
    sample(store, manifest, number)


def sample(store: ArtifactStore, manifest: Manifest, number: int) -> None:
    """Print some records of an artefact, or the beginning of a model's card."""
    from cli.output import say
    from cli.records import records

    if manifest.kind == "source":
        say(f"  file     {manifest.info.get('name', '-')}")
        return
    if manifest.kind == "model":
        cards = manifest.matching("README.md")
        text = store.read(manifest.ref, cards[0]).decode("utf-8", "replace") if cards else ""
        say()
        say("\n".join(text.splitlines()[: 8 * max(1, number)]))
        return
    shown = 0
    for record in records(store, manifest):
        if shown >= number:
            break
        if not str(record.get("text", "")).strip():
            continue
        shown += 1
        say()
        say(_headline(manifest.kind, record))
        say(clean(str(record["text"])))


def clean(text: str) -> str:
    """Text that is safe for a terminal: no control characters but line ends and tabs."""
    return "".join(c if c in "\n\t" or c.isprintable() else "�" for c in text)


def _headline(kind: str, record: dict[str, Any]) -> str:
    if kind == "batch":
        keys = ("prompt", "seed", "tokens", "overlap_words", "model")
        facts = ", ".join(f"{k} {record[k]}" for k in keys if record.get(k) not in (None, ""))
        return clean(f"[{record.get('index')}]  {facts}")
    return clean(f"[{record.get('id')}]  {record.get('date') or ''}")


def _diff(store: ArtifactStore, manifest: Manifest, number: int) -> None:
    import difflib

    from cli.output import say
    from cli.records import records
    from jobs.specs import SpecError

    if not manifest.matching("changed*.parquet"):
        raise SpecError(f"{manifest.ref} has no changed posts to show; --diff is for dataset artefacts")
    for shown, record in enumerate(records(store, manifest, table="changed")):
        if shown >= number:
            break
        say(f"[{record.get('id')}]  {record.get('rules', '')}")
        before, after = (clean(str(record.get(k) or "")).splitlines() for k in ("before", "after"))
        for line in list(difflib.unified_diff(before, after, lineterm="", n=100))[3:]:
            say(f"  {line}")
        say()


@app.command()
def pull(
    ref: Ref,
    dest: Output = None,
    form: Form = None,
) -> None:
    """Download an artefact, verified; or its posts as one plain file."""
    from cli.output import say
    from jobs.specs import SpecError

    store = open_store()
    manifest = store.manifest(store.resolve(ref))
    short = manifest.ref.replace("/", "-")[:20]
    if form is None:
        folder = dest or Path(short)
        store.download(manifest.ref, folder, manifest=manifest)
        say(f"{manifest.ref}: {len(manifest.files)} files in {folder}/")
        return
    if form not in ("txt", "jsonl"):
        raise SpecError(f"--format {form!r}: choose txt or jsonl")
    count, where = pull_plain(store, manifest, form, dest or Path(f"{short}.{form}"))  # type: ignore[arg-type]
    say(f"{manifest.ref}: {count} posts in {where}", err=where == "-")


def pull_plain(store: ArtifactStore, manifest: Manifest, form: Literal["txt", "jsonl"], dest: Path) -> tuple[int, str]:
    """Write the posts as text (a line ``---`` between them) or JSON Lines; returns how many and where."""
    import json

    from cli.output import counted
    from cli.records import SEPARATOR, records

    def lines() -> Any:
        found = counted(records(store, manifest), total=manifest.counts.get("posts"), unit="posts")
        for number, record in enumerate(found):
            if form == "jsonl":
                yield json.dumps(record, ensure_ascii=False, default=str) + "\n"
            else:
                yield (f"{SEPARATOR}\n" if number else "") + str(record.get("text", "")) + "\n"

    if str(dest) == "-":
        count = 0
        for line in lines():
            sys.stdout.write(line)
            count += 1
        return count, "-"
    part = dest.with_name(f".{dest.name}.part")
    count = 0
    try:
        with part.open("w", encoding="utf-8", errors="surrogatepass") as file:
            for line in lines():
                file.write(line)
                count += 1
        part.replace(dest)
    finally:
        part.unlink(missing_ok=True)
    return count, str(dest)


@app.command()
def rm(
    wanted: Annotated[list[str], typer.Argument(metavar="KIND/ID...", help="The artefacts.", autocompletion=refs())],
    force: Annotated[bool, typer.Option("--force", help="Even if others were made from it.")] = False,
) -> None:
    """Remove artefacts."""
    from cli.output import say
    from jobs.specs import SpecError

    store = open_store()
    gone = [store.resolve(r) for r in wanted]
    for manifest in store.list():
        if manifest.ref in gone:
            continue
        needed = {f.artifact for f in manifest.files if f.artifact} & set(gone)
        if needed:
            raise SpecError(f"{needed.pop()} holds files of {manifest.ref}; remove that one, too")
        used = set(manifest.inputs.values()) & set(gone)
        if used and not force:
            raise SpecError(f"{manifest.ref} was made from {used.pop()}; remove that one, too, or give --force")
    for ref in gone:
        say(f"{ref}: {store.remove(ref)} objects removed")
