"""The records of a batch. Without a package, as the driver needs it for the page of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jobs.artifacts import ArtifactStore, Manifest
from jobs.specs import DataError, load_json


def jsonl(store: ArtifactStore, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """The records of a batch, in the order of their index."""
    for entry in manifest.matching("part-*.jsonl"):
        with store.open(manifest.ref, entry) as stream:
            for number, line in enumerate(stream, 1):
                try:
                    record = load_json(line)
                except ValueError as error:
                    raise DataError(f"{manifest.ref}/{entry.path}, line {number}: not JSON") from error
                if not isinstance(record, dict):
                    raise DataError(f"{manifest.ref}/{entry.path}, line {number}: no JSON object")
                yield record
