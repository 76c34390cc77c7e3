"""A training that is killed ends with the same weights, bit for bit, as one that is not."""

from __future__ import annotations

import random
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.artifacts import ArtifactStore
from jobs.specs import TrainSpec
from jobs.train.journal import Journal
from jobs.train.keeper import Keeper
from jobs.train.presets import Settings
from tests.train import hooks
from tests.train.datasets import invented_posts, make_dataset
from tests.train.forks import Fork

#: Dropout, so that random states matter; evaluations and checkpoints that do not fall together.
SPEC: dict[str, Any] = {
    "model": "scratch:tiny",
    "preset": "tiny",
    "batch_size": 2,
    "max_steps": 60,
    "eval_steps": 7,
    "dropout": 0.1,
}


def weights(store: ArtifactStore, ref: str) -> dict[str, str]:
    """SHA-256 of all files of a model: weights, curves, card, report."""
    return {f.path: f.sha256 for f in store.manifest(ref).files}


def undisturbed(store: ArtifactStore, s3_env: dict[str, str], folder: Path, spec: TrainSpec) -> dict[str, str]:
    """The hashes that a training without interruption gives; its artefact is removed again."""
    whole = Fork(spec.model_copy(update={"checkpoint_steps": None}), s3_env, folder, run="whole")
    assert whole.end() == 0, whole.text
    found = weights(store, spec.ref())
    store.remove(spec.ref())
    return found


def committed(store: ArtifactStore, run: str) -> list[int]:
    """Steps of the checkpoints that exist for readers."""
    found = [
        re.fullmatch(rf"runs/{run}/train/checkpoints/(\d+)/manifest\.json", o.path) for o in store.bucket.list("runs/")
    ]
    return sorted(int(m[1]) for m in found if m)


def last_step(attempt: Fork) -> int:
    """The last step that an attempt is known to have made."""
    return max((int(s) for s in re.findall(r"step (\d+): loss", attempt.text)), default=0)


@pytest.mark.slow
def test_sigterm_keeps_the_step_and_sigkill_at_most_an_interval(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path
) -> None:
    spec = TrainSpec.model_validate({**SPEC, "dataset": make_dataset(store), "checkpoint_steps": 5})
    expected = undisturbed(store, s3_env, tmp_path, spec)

    first = Fork(spec, s3_env, tmp_path, run="one")
    first.wait_for("checkpoint 20 is in the bucket")
    assert first.end(signal.SIGTERM) == 143
    assert store.find(spec.ref()) is None
    steps = committed(store, "one")
    assert len(steps) == 2  # keep_checkpoints
    assert steps[-1] == last_step(first)
    assert f"interrupted at step {steps[-1]}" in first.last

    second = Fork(spec, s3_env, tmp_path, run="two")  # another run, the same artefact
    second.wait_for(f"resuming at step {steps[-1]}, from runs/one/")
    second.wait_for("is in the bucket")
    assert second.end(signal.SIGKILL) == -signal.SIGKILL
    assert store.find(spec.ref()) is None

    third = Fork(spec, s3_env, tmp_path, run="two")
    assert third.end() == 0, third.text
    assert weights(store, spec.ref()) == expected
    assert store.manifest(spec.ref()).info["attempts"] == 3
    assert committed(store, "one") == committed(store, "two") == []


def test_a_signal_during_the_evaluation_puts_it_off(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path
) -> None:
    spec = TrainSpec.model_validate({**SPEC, "max_steps": 21, "dataset": make_dataset(store)})
    expected = undisturbed(store, s3_env, tmp_path, spec)
    first = Fork(spec, s3_env, tmp_path, run="one")
    first.wait_for("evaluating at step 14")
    assert first.end(signal.SIGTERM) == 143
    assert committed(store, "one") == [14]
    assert first.text.count("evaluating at step 14") == first.text.count("checkpoint 14 is in the bucket") == 1
    second = Fork(spec, s3_env, tmp_path, run="one")
    second.wait_for("resuming at step 14")
    assert second.end() == 0, second.text
    assert weights(store, spec.ref()) == expected


def test_a_signal_does_not_wait_for_the_end_of_a_long_step(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path
) -> None:
    spec = TrainSpec.model_validate(
        {**SPEC, "max_steps": 12, "gradient_accumulation_steps": 4, "dataset": make_dataset(store)}
    )
    expected = undisturbed(store, s3_env, tmp_path, spec)
    early = Fork(spec, s3_env, tmp_path, run="one", hook=hooks.signal_in_the_first_step)
    assert early.end() == 143, early.text
    assert "interrupted at step 0" in early.last
    assert committed(store, "one") == []
    first = Fork(spec, s3_env, tmp_path, run="one", hook=hooks.signal_in_the_middle_of_step_six)
    assert first.end() == 143, first.text
    assert "interrupted at step 5; its checkpoint is in the bucket" in first.last
    assert committed(store, "one") == [5]
    # Where there is a checkpoint of that step already it is not written over.
    again = Fork(spec, s3_env, tmp_path, run="one", hook=hooks.signal_in_the_first_step)
    assert again.end() == 143, again.text
    assert committed(store, "one") == [5]
    assert "checkpoint 5 is in the bucket" not in again.text
    last = Fork(spec, s3_env, tmp_path, run="one")
    assert last.end() == 0, last.text
    assert weights(store, spec.ref()) == expected


def test_the_best_weights_outlive_a_kill(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path) -> None:
    posts = invented_posts(20)
    other = [p[::-1] for p in invented_posts(5, seed=9)]  # held out is something else: it only gets worse
    changed = {
        "dataset": make_dataset(store, posts, held_out=other),
        "eval_steps": 5,
        "checkpoint_steps": 3,
        "max_steps": 400,
        "learning_rate": 0.01,
        "early_stopping_patience": 6,
    }
    spec = TrainSpec.model_validate({**SPEC, **changed})
    whole = Fork(spec.model_copy(update={"checkpoint_steps": None}), s3_env, tmp_path, run="whole")
    assert whole.end() == 0, whole.text
    manifest = store.manifest(spec.ref())
    expected, best = weights(store, spec.ref()), manifest.info["best_step"]
    assert manifest.counts["steps"] == best + 30
    store.remove(spec.ref())

    later = next(step for step in range(best + 1, best + 5) if step % 3 == 0)
    killed = Fork(spec, s3_env, tmp_path, run="one")
    killed.wait_for(f"checkpoint {later} is in the bucket")
    assert killed.end(signal.SIGKILL) == -signal.SIGKILL
    newest = committed(store, "one")[-1]
    assert best < newest < best + 30
    kept = {f.path for f in store.manifest(f"runs/one/train/checkpoints/{newest}").files}
    assert {"model.safetensors", "best/model.safetensors"} <= kept
    again = Fork(spec, s3_env, tmp_path, run="one")
    assert again.end() == 0, again.text
    assert f"resuming at step {newest}" in again.text
    assert weights(store, spec.ref()) == expected


class Slow:
    """Uploads that take so many seconds."""

    def __init__(self, seconds: float | None) -> None:
        self.last_seconds = seconds

    def wait(self) -> None:
        """It has ended."""

    def submit(self, *_: object) -> None:
        """Begun."""


@pytest.mark.parametrize(
    ("every", "upload", "expected"),
    [
        (None, 0.0, [3, 6, 9]),
        (None, None, [2, 4, 6, 8, 10]),  # the first upload may take as long as any
        (1, 0.0, [*range(1, 11)]),
        (5, 0.0, [2, 5, 7, 10]),
        (8, 0.0, [3, 4, 7, 8]),
        (None, 6.5, [2, 4, 6, 8, 10]),  # whoever is killed at the end of an upload has lost 20 seconds, not 26
        (None, 1000.0, [2, 4, 6, 8, 10]),
    ],
)
def test_checkpoints_are_due_by_time_and_by_steps(
    tmp_path: Path, every: int | None, upload: float | None, expected: list[int]
) -> None:
    from transformers import TrainerControl, TrainerState

    now = 0.0
    plan = SimpleNamespace(
        clock=lambda: now,
        checkpoint_seconds=20.0,
        checkpoint_steps=every,
        journal=Journal(),
        settings=Settings(),
        stopped=lambda: False,
        total_steps=100,
        eval_every=1000,
        uploader=Slow(upload),
        folder=tmp_path,
        world=1,
    )
    keeper: Any = Keeper(SimpleNamespace(plan=plan))  # type: ignore[arg-type]
    state, control = TrainerState(), TrainerControl()
    keeper.on_train_begin(None, state, control)
    saved = []
    for step in range(1, 11):
        now += 7.0  # seconds that a step takes
        state.global_step = step
        keeper.on_step_end(None, state, control)
        if control.should_save:
            saved.append(step)
            (tmp_path / f"checkpoint-{step}").mkdir()
            keeper.saving_since = now
            keeper.on_save(None, state, control)
    assert saved == expected


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_a_kill_at_the_end_of_an_upload_costs_no_more_than_an_interval(
    store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path, interval: int
) -> None:
    spec = TrainSpec.model_validate({**SPEC, "dataset": make_dataset(store), "checkpoint_steps": interval})
    attempt = Fork(spec, s3_env, tmp_path, run="one", hook=hooks.the_third_checkpoint_is_stuck)
    attempt.wait_for("waiting for the third checkpoint")
    assert attempt.end(signal.SIGKILL) == -signal.SIGKILL
    kept = committed(store, "one")
    assert len(kept) == 2
    assert 0 < last_step(attempt) - kept[-1] <= interval


@pytest.mark.slow
def test_twenty_random_kills_change_nothing(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path) -> None:
    interval = 5
    spec = TrainSpec.model_validate(
        {**SPEC, "max_steps": 150, "dataset": make_dataset(store), "checkpoint_steps": interval}
    )
    expected = undisturbed(store, s3_env, tmp_path, spec)
    draw = random.Random(20)
    kills = 0
    resumed_at = 0
    while kills < 20:
        attempt = Fork(spec, s3_env, tmp_path, run=draw.choice(("one", "two")))
        number = draw.choice((signal.SIGTERM, signal.SIGKILL))
        if draw.random() < 0.2:
            attempt.wait(draw.uniform(0.0, 0.5))  # while it starts, or resumes
        else:
            for _ in range(draw.randint(1, 12)):
                if not next(attempt.read(), ""):
                    break
            attempt.wait(draw.uniform(0.0, 0.1))
        code = attempt.end(number)
        assert "is not whole" not in attempt.text
        # It never gets as far as the end; a SIGTERM that comes before there is a handler ends the process at once.
        early = code == -signal.SIGTERM and not attempt.lines
        assert early or code in (143, -signal.SIGKILL), attempt.text
        kills += 1
        assert store.find(spec.ref()) is None
        kept = max(committed(store, "one") + committed(store, "two"), default=0)
        reached = max(last_step(attempt), resumed_at)
        assert kept >= resumed_at  # an earlier whole checkpoint is always still there
        assert reached - kept <= interval
        if code == 143 and last_step(attempt):
            assert kept == reached
        resumed_at = kept
    last = Fork(spec, s3_env, tmp_path, run="one")
    assert last.end() == 0, last.text
    assert weights(store, spec.ref()) == expected
