"""Pages of the bucket on this machine: a folder laid out like the bucket, so that links between them work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cli.output import say
from cli.run_page import ARTIFACT_PAGES
from jobs.artifacts import MANIFEST

if TYPE_CHECKING:
    from jobs.artifacts import ArtifactStore, Manifest


def fetch(store: ArtifactStore, manifest: Manifest, folder: Path) -> Path | None:
    """Bring an artefact's page and its manifest here, verified; returns the page, or None when it has none."""
    place = folder / manifest.ref
    page = ARTIFACT_PAGES.get(manifest.kind)
    if page is not None and manifest.matching(page):
        store.download(manifest.ref, place, page, manifest=manifest)
    place.mkdir(parents=True, exist_ok=True)
    (place / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return place / page if page is not None and (place / page).is_file() else None


def show_page(page: Path, *, browser: bool) -> None:
    """Say where a page is, and open it in the browser if asked to."""
    import webbrowser

    say(str(page))
    if browser:
        webbrowser.open(page.resolve().as_uri())
