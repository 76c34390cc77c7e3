"""Choose the posts of a batch that are shown first."""

from __future__ import annotations

import heapq
from typing import Any

from cli.commands.artifacts import clean
from cli.records import jsonl
from jobs.artifacts import ArtifactStore, Manifest


def best_posts(store: ArtifactStore, manifest: Manifest, number: int) -> list[str]:
    """Texts of the posts that the model itself found likeliest, by mean log-probability.

    All posts of a batch have passed the gates, so none of them is a copy of a training post.
    """

    def rank(record: dict[str, Any]) -> float:
        score = record.get("score")
        return float(score) if isinstance(score, int | float) else float("-inf")

    found = heapq.nlargest(number, jsonl(store, manifest), key=rank)
    return [clean(str(record.get("text", ""))) for record in found]
