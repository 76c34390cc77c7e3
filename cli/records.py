"""The records inside an artefact, for people: posts, cleaned texts and generated posts as plain dicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cli.batch_lines import jsonl
from jobs.artifacts import ArtifactStore, Manifest
from jobs.specs import ConfigError, SpecError

SEPARATOR = "---"  # the line between posts in plain text


def records(store: ArtifactStore, manifest: Manifest, *, table: str = "") -> Iterator[dict[str, Any]]:
    """All records of a posts, dataset or batch artefact. Raises SpecError for kinds that have none."""
    if manifest.kind == "posts":
        yield from _posts(store, manifest)
    elif manifest.kind == "dataset":
        patterns = [f"{table}*.parquet"] if table else ["train-*.parquet", "validation-*.parquet"]
        for entry in manifest.matching(*patterns):
            for row in _parquet(store, manifest.ref, entry.path):
                row.pop("input_ids", None)
                yield row
    elif manifest.kind == "batch":
        yield from jsonl(store, manifest)
    else:
        raise SpecError(f"a {manifest.kind} artefact holds no posts; pull it without --format")


def _posts(store: ArtifactStore, manifest: Manifest) -> Iterator[dict[str, Any]]:
    try:
        from jobs.posts import read_posts
    except ImportError as error:
        raise _no_pyarrow() from error
    for batch in read_posts(store, manifest.ref):
        yield from batch.to_pylist()


def _parquet(store: ArtifactStore, ref: str, path: str) -> Iterator[dict[str, Any]]:
    """Rows of one Parquet file, through a temporary copy: Parquet is read from its end."""
    import tempfile
    from pathlib import Path

    try:
        import pyarrow.parquet as pq

        from jobs.parquet import reading
    except ImportError as error:
        raise _no_pyarrow() from error
    with tempfile.TemporaryDirectory(prefix="bugurt-") as folder:
        store.download(ref, Path(folder), path)
        with reading(f"{ref}/{path}"), pq.ParquetFile(Path(folder) / path) as file:
            for batch in file.iter_batches(batch_size=1000):
                yield from batch.to_pylist()


def _no_pyarrow() -> ConfigError:
    return ConfigError("reading Parquet needs pyarrow: pip install pyarrow, or 'bugurt[local]'")
