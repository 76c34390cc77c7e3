"""Completion of runs and artefacts in the shell: quick, bounded in time, and silent whatever happens.

A shell asks for this while somebody types. The embedded bucket's folder is looked at directly, so that no server has
to be started for it; another bucket has ``PATIENCE`` seconds to answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from cli.settings import Settings

PATIENCE = 2.0  # seconds, with all that has to be imported for the question
KINDS = ("source", "posts", "dataset", "model", "batch")
PARTS = ("scrape", "preprocess", "train", "generate", "driver")

Completion = Callable[[typer.Context, str], list[str]]


def run_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of runs."""
    return _within(lambda: [n for n in _folders(_settings(ctx), "runs") if n.startswith(incomplete)])


def parts(incomplete: str) -> list[str]:
    """What a run has logs of."""
    return [p for p in PARTS if p.startswith(incomplete)]


def refs(*kinds: str) -> Completion:
    """Artefacts of some kinds, of all kinds when none is named: ``KIND/ID``, or the bare id once it is begun."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        return _within(lambda: list(_refs(_settings(ctx), kinds or KINDS, incomplete)))

    return complete


def _refs(settings: Settings, kinds: Iterable[str], incomplete: str) -> Iterable[str]:
    given, slash, _ = incomplete.partition("/")
    whole = [k for k in kinds if (k == given if slash else k.startswith(given))]
    if whole:
        return [r for k in whole for n in _folders(settings, k) if (r := f"{k}/{n}").startswith(incomplete)]
    return [n for k in kinds for n in _folders(settings, k) if n.startswith(incomplete)] if not slash else []


def _settings(ctx: typer.Context) -> Settings:
    from cli.settings import load

    # While it completes, the program runs no callbacks: the options before the command are only in the context.
    return load(ctx.find_root().params.get("config"))


def _folders(settings: Settings, kind: str) -> list[str]:
    """Names of the runs, or of the artefacts of a kind."""
    from cli.places import is_embedded

    if is_embedded(settings):
        from cli.clusters.local_s3 import BUCKET, served

        root = served(settings.state) / BUCKET / settings.s3.prefix / kind
        return _committed(root, "run.json" if kind == "runs" else "manifest.json")
    from cli.places import s3_env
    from jobs.artifacts import ArtifactStore

    return sorted(ArtifactStore.from_env(s3_env(settings)).bucket.folders(f"{kind}/"))


def _committed(root: Path, record: str) -> list[str]:
    return sorted(path.parent.name for path in root.glob(f"*/{record}"))


def _within(ask: Callable[[], list[str]]) -> list[str]:
    """The answer, or none: when it takes too long, and when anything at all goes wrong."""
    import logging

    answer: list[str] = []
    logging.disable()  # what is logged would appear in the middle of the line that is being typed

    def work() -> None:
        try:
            answer.extend(ask())
        except Exception:
            logging.getLogger(__name__).debug("nothing to complete", exc_info=True)

    thread = threading.Thread(target=work, name="complete", daemon=True)  # the process does not wait for it
    thread.start()
    thread.join(PATIENCE)
    return [] if thread.is_alive() else answer
