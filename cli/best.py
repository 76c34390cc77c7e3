"""Choose the posts of a batch that are shown first."""

from __future__ import annotations

import heapq
from typing import Any

from cli.commands.artifacts import clean
from cli.records import jsonl
from jobs.artifacts import ArtifactStore, Manifest


def best_posts(store: ArtifactStore, manifest: Manifest, number: int) -> list[str]:
    """Texts of the posts that the model itself found likeliest, the least borrowed from training first.

    Ranked by the words shared with training (fewer is better), then by score (mean log-probability).
    """

    def rank(record: dict[str, Any]) -> tuple[float, float]:
        score = record.get("score")
        return (-float(record.get("overlap_words") or 0), float(score) if isinstance(score, int | float) else 0.0)

    found = heapq.nlargest(number, jsonl(store, manifest), key=rank)
    return [clean(str(record.get("text", ""))) for record in found]
