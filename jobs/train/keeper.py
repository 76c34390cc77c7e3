"""When to evaluate, to keep a checkpoint, to stop: decided at each step's end, by all processes alike."""

from __future__ import annotations

import errno
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from jobs.specs import SpecError, TemporaryError

if TYPE_CHECKING:
    from jobs.train.trainer import PostTrainer


def due_by_steps(step: int, every: int | None) -> bool:
    """Whether a checkpoint is due, so that a kill costs ``every`` steps at most; None: never by steps.

    Twice an interval: whoever is killed while a checkpoint is on its way loses what came since the one before it, and
    no training goes on to the next one before that. So two checkpoints are an interval apart, if one stands between
    them.
    """
    return every is not None and step % every in (0, every // 2)


class Ended(Exception):  # noqa: N818
    """The evaluation that a restart had to make up for ends the training: there is no step left to do."""


class Keeper(TrainerCallback):  # type: ignore[misc]
    """Decides at each step's end what is due: evaluation, checkpoint, the end. All processes decide alike."""

    def __init__(self, trainer: PostTrainer) -> None:
        self.trainer, self.plan = trainer, trainer.plan
        self.interrupted = False
        self.stopped_early = False
        self._began = self._saved = self._state_of = self.plan.clock()
        self._last_saving = 0.0
        self._saved_step: int | None = None
        self._before = self.plan.journal.seconds
        self._tokens_before = self.plan.journal.tokens
        self.saving_since = 0.0
        self.seconds_saving = 0.0

    # -- measures

    def speed(self) -> float:
        """Tokens a second of this attempt."""
        return (self.plan.journal.tokens - self._tokens_before) / max(1e-9, self.plan.clock() - self._began)

    def seconds_left(self, step: int) -> float:
        """By the speed so far, and by the limit of time."""
        plan = self.plan
        spent = self.plan.clock() - self._began
        done = max(1, step - self.trainer.first_step)
        left = spent / done * (plan.total_steps - step)
        if plan.settings.max_minutes is not None:
            left = min(left, max(0.0, 60 * plan.settings.max_minutes - plan.journal.seconds))
        return left

    def _agree(self, *values: float) -> list[float]:
        """The largest of each value over all processes."""
        if self.plan.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.trainer.args.device)
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        return [float(v) for v in tensor.tolist()]

    # -- the Trainer's events

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = self._saved = self._state_of = self.plan.clock()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Dropout's numbers are a function of the step: whatever happened before a restart cannot shift them.
        torch.manual_seed((self.plan.seed * 1_000_003 + state.global_step) * 1_009 + self.plan.rank)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        plan = self.plan
        now = plan.clock()
        due = now - self._saved >= plan.checkpoint_seconds - self._under_way()
        stop, due_flag, seconds = self._agree(plan.stopped(), due, self._before + now - self._began)
        plan.journal.seconds = seconds
        step = state.global_step
        ended = step >= plan.total_steps or self._out_of_time()
        if stop:
            self.interrupted = True
            plan.journal.evaluation_due = plan.journal.evaluation_due or ended or step % plan.eval_every == 0
            control.should_evaluate, control.should_save, control.should_training_stop = False, True, True
            return
        control.should_evaluate = ended or step % plan.eval_every == 0
        control.should_save = bool(due_flag) or due_by_steps(step, plan.checkpoint_steps)
        self._state_of = now
        control.should_training_stop = control.should_training_stop or ended

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A signal does not wait for the rest of a step of many batches: the state before the step is kept."""
        (stop,) = self._agree(self.plan.stopped())
        if not stop:
            return
        self.interrupted = True
        self.plan.journal.tokens -= self.trainer.step_tokens
        control.should_evaluate = False
        control.should_training_stop = True
        control.should_save = state.global_step not in (self.trainer.first_step, self._saved_step)

    def _under_way(self) -> float:
        """Seconds from a state of the training to its checkpoint's commit, by the last one; half the interval at most,
        and as long as there was none.

        Whoever is killed while a checkpoint is on its way loses what came since the one before it: that must not be
        more than an interval either.
        """
        uploader, half = self.plan.uploader, self.plan.checkpoint_seconds / 2
        if uploader is None:
            return 0.0
        return half if uploader.last_seconds is None else min(self._last_saving + uploader.last_seconds, half)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        plan, trainer = self.plan, self.trainer
        loss, bits = metrics["eval_loss"], metrics["bits_per_character"]
        if not math.isfinite(loss):
            raise SpecError(
                f"the training diverged: the held-out loss is {loss} at step {state.global_step}; lower "
                "'learning_rate', or lengthen the warm-up"
            )
        best = plan.journal.evaluated(state.global_step, trainer.epochs(state.global_step), loss, bits)
        if best and plan.rank == 0:
            with full_disk_said():
                trainer.model.save_pretrained(self.best_folder(state.global_step))
        if plan.rank == 0:
            plan.report(
                held_out_loss=round(loss, 4), bits_per_character=round(bits, 4), best_step=plan.journal.best_step
            )
        patience = plan.settings.early_stopping_patience
        self.stopped_early = patience is not None and plan.journal.worse >= patience
        ended = self.stopped_early or self._out_of_time()
        if trainer.at_start and ended:
            raise Ended
        control.should_training_stop = control.should_training_stop or ended

    def _out_of_time(self) -> bool:
        limit = self.plan.settings.max_minutes
        return limit is not None and self.plan.journal.seconds >= 60 * limit

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer has written its part; add ours and hand it to the uploading thread."""
        plan = self.plan
        folder = plan.folder / f"checkpoint-{state.global_step}"
        if plan.uploader is not None:
            with full_disk_said():
                plan.journal.save(folder)
            plan.uploader.wait()
            self._drop_old_best()
            best = plan.journal.best_step
            elsewhere = best is not None and best != state.global_step
            plan.uploader.submit(folder, state.global_step, self.best_folder(best) if elsewhere and best else None)
            if plan.checkpoint_steps == 1:  # there is nothing between two steps
                plan.uploader.wait()
        self._saved, self._saved_step = self._state_of, int(state.global_step)
        self._last_saving = plan.clock() - self.saving_since
        self.seconds_saving += self._last_saving

    def best_folder(self, step: int) -> Path:
        """Where the best weights of ``step`` are kept on the disk."""
        return self.plan.folder / f"best-{step}"

    def _drop_old_best(self) -> None:
        for old in self.plan.folder.glob("best-*"):
            if old.name != f"best-{self.plan.journal.best_step}":
                shutil.rmtree(old, ignore_errors=True)


class full_disk_said:  # noqa: N801  # used as a word in a with statement
    """Turns what torch and safetensors make of a full disk into TemporaryError."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            return
        text = str(error)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        # torch's writer tells nothing of the disk, only that its file is not as long as it should be.
        torn = any(words in text for words in ("No space left", "PytorchStreamWriter failed", "inline_container.cc"))
        if full or torn:
            raise TemporaryError(
                "the disk is full, a checkpoint found no room; free some space and try again"
            ) from error
