"""The stage as a process, on models that were really trained."""

from __future__ import annotations

import json
from typing import Any

from jobs.artifacts import ArtifactStore
from jobs.specs import GenerateSpec
from tests.conftest import RunStage
from tests.generate.models import MadeModel


def spec_of(model: str, **fields: Any) -> GenerateSpec:
    """A spec that suits the small models."""
    given: dict[str, Any] = {"model": model, "count": 40, "micro_batch": 16, "max_new_tokens": 60, "top_k": 0}
    return GenerateSpec(**{**given, **fields})


def records(store: ArtifactStore, ref: str) -> list[dict[str, Any]]:
    """All records of a batch, in the order of its parts."""
    manifest = store.manifest(ref)
    lines = b"".join(store.read(ref, entry) for entry in manifest.matching("part-*.jsonl")).splitlines()
    return [json.loads(line) for line in lines]


def test_a_batch_of_posts(store: ArtifactStore, run_stage: RunStage, writer: MadeModel) -> None:
    spec = spec_of(writer.put(store))
    result = run_stage(spec)
    assert result.code == 0, result.stderr
    posts = records(store, spec.ref())
    assert [p["index"] for p in posts] == list(range(40))
