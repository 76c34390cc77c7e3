"""What a training remembers besides weights: curves, the best model so far, how far it has come.

It goes into each checkpoint as ``journal.json``, so that a training that was killed tells the same story as one
that was not.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs.specs import load_json

FILE = "journal.json"


@dataclass
class Journal:
    """``history``: records with ``step`` and ``epoch``, and ``loss``, ``learning_rate``, ``grad_norm`` (means over
    the steps since the record before) or ``eval_loss``, ``bits_per_character``. Losses are nats a token.

    ``seconds``: of training, all attempts together, as far as they were kept.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best_loss: float | None = None
    best_step: int | None = None
    worse: int = 0  # evaluations since the best
    tokens: int = 0  # predicted tokens that were trained on
    seconds: float = 0.0
    warm_start_seconds: float = 0.0  # of those, before the first step
    attempts: int = 1
    evaluation_due: bool = False  # a signal cut the evaluation of this step short
    window_loss: float = 0.0
    window_grad: float = 0.0
    window_steps: int = 0
    batch_size: int = 0  # what fitted into memory in the end
    accumulation: int = 0

    def step(self, loss: float, grad_norm: float) -> None:
        """Take in one step of the optimiser."""
        self.window_loss += loss
        self.window_grad += grad_norm
        self.window_steps += 1

    def record(self, step: int, epoch: float, learning_rate: float) -> dict[str, float]:
        """Close the window of steps and append its means to the history."""
        count = max(1, self.window_steps)
        entry = {
            "step": step,
            "epoch": round(epoch, 6),
            "loss": self.window_loss / count,
            "grad_norm": self.window_grad / count,
            "learning_rate": learning_rate,
            "tokens": self.tokens,
        }
        self.window_loss = self.window_grad = 0.0
        self.window_steps = 0
        self.history.append(entry)
        return entry

    def warm_start(self, steps: int, loss: float) -> None:
        """Append the record of a start from counts: so many steps before the first, and the loss they came to."""
        self.history.append({"step": 0, "epoch": 0.0, "warm_start_steps": steps, "warm_start_loss": loss})

    def evaluated(self, step: int, epoch: float, loss: float, bits: float) -> bool:
        """Append an evaluation; True when it is the best so far."""
        self.history.append({"step": step, "epoch": round(epoch, 6), "eval_loss": loss, "bits_per_character": bits})
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step, self.worse = loss, step, 0
            return True
        self.worse += 1
        return False

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of all records that have ``name``."""
        return [(r["step"], r[name]) for r in self.history if name in r and math.isfinite(r[name])]

    def save(self, folder: Path) -> None:
        """Write ``journal.json``."""
        (folder / FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Journal:
        """Read ``journal.json``; raises OSError, ValueError or TypeError when it is not one."""
        data: dict[str, Any] = load_json((folder / FILE).read_text(encoding="utf-8"))
        return cls(**data)
