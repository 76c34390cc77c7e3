"""Choose the posts of a batch that are shown first."""

from __future__ import annotations

import heapq
from itertools import pairwise
from typing import Any

from cli.batch_lines import jsonl
from cli.commands.artifacts import clean
from jobs.artifacts import ArtifactStore, Manifest


def best_posts(store: ArtifactStore, manifest: Manifest, number: int) -> list[str]:
    """Texts of the posts that the model itself found likeliest, by mean log-probability.

    All posts of a batch have passed the gates, so none of them is a copy of a training post. One that says the same
    line twice running comes last: a model that repeats itself finds that very likely indeed.
    """

    def rank(record: dict[str, Any]) -> tuple[bool, float]:
        score = record.get("score")
        lines = [line.strip() for line in str(record.get("text", "")).splitlines() if line.strip()]
        stutters = any(a == b for a, b in pairwise(lines))
        return not stutters, float(score) if isinstance(score, int | float) else float("-inf")

    found = heapq.nlargest(number, jsonl(store, manifest), key=rank)
    return [clean(str(record.get("text", ""))) for record in found]
