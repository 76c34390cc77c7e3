"""``submit --estimate``: what is known of a run's data before it runs, put into ``cli.estimate``'s formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cli.estimate import Estimate, estimate_training
from cli.submission import Plan
from jobs.artifacts import ArtifactStore
from jobs.specs import SpecError, TrainSpec

#: Bytes of a Desktop export for each character of a post: its text stands there twice, in two-byte letters, between
#: keys and dates. Measured on the sample channel, 8.6; a plain text has 1.8.
BYTES_PER_CHARACTER = {".json": 8.6, ".zip": 1.6, ".jsonl": 4.0, ".txt": 1.8}


def estimate_plan(
    store: ArtifactStore,
    plans: Sequence[Plan],
    source: str | None,
    *,
    gpu: str | None,
    tokens_per_second: float | None,
) -> Estimate:
    """Tokens, steps, hours and memory of a run's training. Raises SpecError when nothing is known of its data."""
    train = next((p.spec for p in plans if p.stage == "train"), None)
    if not isinstance(train, TrainSpec):
        raise SpecError("--estimate is about training; this run has none")
    known: dict[str, Any] = {"gpu_name": gpu, "measured_tokens_per_second": tokens_per_second}
    dataset = next((p.found for p in plans if p.stage == "preprocess"), None)
    if dataset is None and train.dataset is not None:
        dataset = store.find(train.dataset)
    if dataset is not None:
        known["block_size"] = dataset.spec.get("block_size", 256)
        return estimate_training(train, tokens=int(dataset.counts["tokens_train"]), **known)
    file = Path(source).expanduser() if source else None
    if file is not None and file.is_dir():
        file = file / "result.json"
    if file is None or not file.is_file():
        raise SpecError("--estimate needs an export, or a dataset that is there; a live channel has yet to be read")
    rate = BYTES_PER_CHARACTER.get(file.suffix.lower(), 4.0)
    found = estimate_training(train, characters=math.ceil(file.stat().st_size / rate), **known)
    return replace(found, assumptions=(f"{rate:g} bytes of {file.suffix} a character of posts", *found.assumptions))
