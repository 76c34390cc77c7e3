"""Batches in the tests: specs that suit the small models, and what lies in the bucket afterwards."""

from __future__ import annotations

import json
from typing import Any

from jobs.artifacts import ArtifactStore
from jobs.reporting import ProgressReporter
from jobs.specs import GenerateSpec


def spec_of(model: str, **fields: Any) -> GenerateSpec:
    """A spec that suits the small models."""
    given: dict[str, Any] = {"model": model, "count": 40, "micro_batch": 16, "max_new_tokens": 60, "top_k": 0}
    return GenerateSpec(**{**given, **fields})


def files_of(store: ArtifactStore, ref: str) -> dict[str, bytes]:
    """All files of a batch by their names."""
    return {entry.path: store.read(ref, entry) for entry in store.manifest(ref).files}


def records(store: ArtifactStore, ref: str) -> list[dict[str, Any]]:
    """All records of a batch, in the order of its parts."""
    manifest = store.manifest(ref)
    lines = b"".join(store.read(ref, entry) for entry in manifest.matching("part-*.jsonl")).splitlines()
    return [json.loads(line) for line in lines]


def quiet(store: ArtifactStore, shard: int | None = None) -> ProgressReporter:
    """A reporter that nobody has started."""
    return ProgressReporter(store.bucket, f"p/{shard}.json", stage="generate", run="r", shard=shard)
