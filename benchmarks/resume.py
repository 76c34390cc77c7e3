"""Checkpoints: what they cost, and what a kill loses.

    python -m benchmarks.resume             5 minutes a training, 4 of them, and 8 kills: half an hour
    python -m benchmarks.resume --quick     1 minute, 2 of them, and 3 kills: 5 minutes

The train stage itself, as a process, with ``scratch:small`` on fortunes-ru and a bucket of ``rclone serve s3``.

- *cost*: the same number of steps without checkpoints and with two an interval of steps, by the stage's own clock;
  the difference for each checkpoint, or the time that the training stood still for it where that is more (differences
  of two runs are noisy), as a share of the default interval of 10 minutes. The peer is a training that waits until its
  checkpoint is in the bucket, as the Trainer with a synced folder would.
- *loss*: the stage is killed (SIGKILL) at random moments and started again; steps made and not kept, of which no kill
  may cost more than an interval, against the mean loss of the reference method, which saves every 7,000 steps: half
  of them.
"""

from __future__ import annotations

import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks._training import Corpus, commit_dataset
from benchmarks.common import Row, arguments, report, row, s3_server, say
from jobs.artifacts import ArtifactStore
from jobs.specs import TrainSpec
from jobs.train.keeper import due_by_steps

DEFAULT_INTERVAL = 600.0  # seconds: TrainSpec's checkpoint_minutes
REFERENCE_SAVE_STEPS = 7000
STEP = re.compile(r"step (\d+): loss")


class Stage:
    """A train stage's process whose log is read as it comes."""

    def __init__(self, spec: TrainSpec, env: dict[str, str], folder: Path, run: str) -> None:
        path = folder / "spec.json"
        path.write_text(spec.model_dump_json(), encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs.train", "--spec", str(path), "--debug", "--force"],
            env={**os.environ, **env, "BUGURT_RUN": run, "HF_HUB_OFFLINE": "1"},
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[1],
        )
        self.text = ""
        self.stepping = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.text += line
            if STEP.search(line):
                self.stepping.set()
        self.stepping.set()

    def end(self, number: int | None = None) -> int:
        """Send a signal, if one is given; the exit code."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait()
        self._reader.join()
        return code

    @property
    def last_step(self) -> int:
        """The last step that is known to have been made."""
        return max((int(s) for s in STEP.findall(self.text)), default=0)

    @property
    def resumed(self) -> int:
        """The step that it went on from."""
        found = re.search(r"resuming at step (\d+)", self.text)
        return int(found[1]) if found else 0


def seconds_of(store: ArtifactStore, spec: TrainSpec, env: dict[str, str], folder: Path, run: str) -> dict[str, Any]:
    """Train to the end; the manifest's info."""
    stage = Stage(spec, env, folder, run)
    if stage.end():
        raise SystemExit(f"the train stage failed: {stage.text[-2000:]}")
    info = store.manifest(spec.ref()).info
    store.remove(spec.ref())
    return info


def cost(
    store: ArtifactStore, env: dict[str, str], folder: Path, spec: TrainSpec, every: int, rounds: int
) -> list[Row]:
    """Seconds that each checkpoint adds, and what waiting for its upload would add."""
    total = spec.max_steps or 1
    count = sum(due_by_steps(step, every) for step in range(1, total))
    added, stood, waited = [], [], []
    for number in range(rounds):
        plain = seconds_of(store, spec, env, folder, f"plain{number}")
        saved = seconds_of(store, spec.model_copy(update={"checkpoint_steps": every}), env, folder, f"saved{number}")
        added.append((saved["training_seconds"] - plain["training_seconds"]) / count)
        stood.append(saved["saving_seconds"] / count)
        waited.append((saved["saving_seconds"] + saved["upload_seconds"]) / count)
        say(f"without {plain['training_seconds']} s, with {count} checkpoints {saved['training_seconds']} s")
    ours, peer = max(statistics.median(added), statistics.median(stood)), statistics.median(waited)
    return [
        row("cost of a checkpoint", ours, peer, peer_name="waiting for the upload", unit="s", better="lower"),
        row(
            "share of the time, one every 10 minutes",
            100 * ours / DEFAULT_INTERVAL,
            100 * peer / DEFAULT_INTERVAL,
            peer_name="waiting for the upload",
            unit="%",
            better="lower",
            at_most=5.0,
        ),
    ]


def loss(env: dict[str, str], folder: Path, spec: TrainSpec, kills: int) -> list[Row]:
    """Steps that kills at random moments lose."""
    draw = random.Random(1)
    reached, lost = 0, []
    for number in range(kills + 1):
        stage = Stage(spec, env, folder, "killed")
        stage.stepping.wait()
        if number:
            lost.append(max(0, reached - stage.resumed))
            say(f"kill {number}: had made step {reached}, goes on from {stage.resumed}")
        time.sleep(draw.uniform(5, 20))  # the moment of the kill, which nothing foretells
        stage.end(signal.SIGKILL)
        reached = stage.last_step
    say(f"at most {max(lost)} steps were lost, of an interval of {spec.checkpoint_steps}")
    return [
        row(
            f"steps lost to a kill, an interval of {spec.checkpoint_steps}",
            statistics.mean(lost),
            REFERENCE_SAVE_STEPS / 2,
            peer_name="reference method",
            unit="steps",
            better="lower",
        )
    ]


def main() -> None:
    options: Any = arguments(__doc__ or "", ("--quick", {"action": "store_true", "help": "shorter"}))
    corpus = Corpus.named("fortunes")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "s3").mkdir()
        with s3_server(folder / "s3") as env:
            store = ArtifactStore.from_env(env)
            spec = TrainSpec.model_validate(
                {
                    "model": "scratch:small",
                    "dataset": commit_dataset(store, corpus),
                    "max_steps": 80 if options.quick else 600,
                    "eval_steps": 10_000,
                    "checkpoint_minutes": 10_000,
                }
            )
            rows = cost(store, env, folder, spec, 20 if options.quick else 100, 1 if options.quick else 2)
            endless = spec.model_copy(update={"max_steps": 1_000_000, "checkpoint_steps": 10})
            rows += loss(env, folder, endless, 3 if options.quick else 8)
    report(rows, as_json=options.json)


if __name__ == "__main__":
    main()
