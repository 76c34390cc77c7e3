"""What a training has to work with, and when it learns how fast."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs.train.checkpoints import Uploader
from jobs.train.data import Blocks
from jobs.train.head import PlainHead
from jobs.train.journal import Journal
from jobs.train.packing import Collate
from jobs.train.presets import Settings, warmup_of

ENDLESS = 10**9  # steps, when only time ends a training


@dataclass
class Plan:
    """All that a training needs to know of its surroundings.

    ``report``: takes progress fields; ``stopped``: whether a signal has arrived; ``uploader``: of the process that
    keeps checkpoints, None in the others; ``characters``: of the held-out posts; ``clock``: seconds that limits of
    time count.
    """

    settings: Settings
    seed: int
    train: Blocks
    held_out: Blocks
    characters: int
    collate: Collate
    head: PlainHead
    total_steps: int
    eval_every: int
    batch_size: int
    accumulation: int
    folder: Path
    journal: Journal
    report: Callable[..., None]
    stopped: Callable[[], bool]
    uploader: Uploader | None
    checkpoint_steps: int | None
    checkpoint_seconds: float
    rank: int = 0
    world: int = 1
    clock: Callable[[], float] = time.monotonic


def schedule(settings: Settings, step: int, done: float, total: int) -> float:
    """The learning rate's factor after ``step`` steps, ``done`` of the whole; ``total`` steps in all."""
    warmup = warmup_of(settings, total)
    if step < warmup:
        return step / max(1, warmup) if settings.warmup_steps is not None else (step + 1) / (warmup + 1)
    if settings.lr_scheduler_type in ("constant", "constant_with_warmup"):
        return 1.0
    begin = warmup / total
    share = 0.0 if begin >= 1 else min(1.0, max(0.0, (done - begin) / (1 - begin)))
    if settings.lr_scheduler_type == "linear":
        return 1.0 - share
    return 0.5 * (1.0 + math.cos(math.pi * share))
