"""transformers' Trainer, taught our data order, our loss, our evaluation and when to keep a checkpoint.

What is overridden is public: the loader, the loss, the token count, the scheduler, the evaluation, the log.
"""

from __future__ import annotations

import errno
import itertools
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from jobs.specs import SpecError, TemporaryError
from jobs.train.checkpoints import Uploader
from jobs.train.data import Blocks, GlobalBatches, count_targets
from jobs.train.head import PlainHead
from jobs.train.journal import Journal
from jobs.train.packing import Collate
from jobs.train.presets import Settings, warmup_of

log = logging.getLogger(__name__)

RECORDS = 400  # points of the training curve, at most


@dataclass
class Plan:
    """All that a training needs to know of its surroundings.

    ``report``: takes progress fields; ``stopped``: whether a signal has arrived; ``uploader``: of the process that
    keeps checkpoints, None in the others; ``characters``: of the held-out posts.
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


def arguments(plan: Plan, *, precision: str, compiled: bool, activation_checkpointing: bool) -> TrainingArguments:
    """The Trainer's arguments; whatever it could do by itself (saving, reporting) is off."""
    s = plan.settings
    return TrainingArguments(
        output_dir=str(plan.folder),
        max_steps=plan.total_steps,
        per_device_train_batch_size=plan.batch_size,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=s.learning_rate,
        weight_decay=s.weight_decay,
        adam_beta2=s.adam_beta2,
        max_grad_norm=s.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        torch_compile=compiled,
        activation_checkpointing=activation_checkpointing,
        seed=plan.seed,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        ignore_data_skip=True,
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        log_level="warning",
    )


class PostTrainer(Trainer):  # type: ignore[misc]
    """A Trainer for packed posts. ``plan`` holds what it works on; ``plan.journal`` what it has seen."""

    lr_scheduler: Any
    control: Any

    def __init__(self, plan: Plan, model: Any, args: TrainingArguments, first_step: int) -> None:
        self.plan = plan
        self.first_step = first_step
        super().__init__(model=model, args=args)
        self.remove_callback(PrinterCallback)
        self.add_callback(Keeper(self))
        self.loss_is_scaled_for_ga = True

    # -- data

    def get_train_dataloader(self) -> DataLoader[Any]:
        plan = self.plan
        batches = GlobalBatches(
            len(plan.train),
            seed=plan.seed,
            batch_size=plan.batch_size,
            accumulation=plan.accumulation,
            steps=plan.total_steps,
            first_step=self.first_step,
            rank=plan.rank,
            world=plan.world,
        )
        # A generator of its own: making an iterator draws a number, which must not come from dropout's generator.
        return DataLoader(
            plan.train, batch_sampler=batches, collate_fn=plan.collate, generator=torch.Generator().manual_seed(0)
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """The batches of one step, and how many tokens all processes together predict in it."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        count = torch.tensor(float(sum(map(count_targets, batches))), device=device)
        count = self.summed(count)
        self.plan.journal.tokens += int(count.item())
        return batches, count

    def summed(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        if self.plan.world > 1:
            torch.distributed.all_reduce(value)
        return value

    # -- loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy summed over this batch, divided by the tokens of the whole step.

        Gradients are averaged over processes, hence the factor.
        """
        outputs = self.forward(model, inputs)
        loss = self.plan.head.nats(outputs.logits, inputs["labels"]) / num_items_in_batch * self.plan.world
        return (loss, outputs) if return_outputs else loss

    @staticmethod
    def forward(model: Any, inputs: dict[str, Any]) -> Any:
        """The model's answer to a collated batch."""
        return model(**{n: v for n, v in inputs.items() if n != "labels"}, use_cache=False)

    # -- schedule

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self.rate)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def rate(self, step: int) -> float:
        """The share of the learning rate at ``step``; with a limit of time, whichever of both ends first counts."""
        plan, s = self.plan, self.plan.settings
        total = plan.total_steps
        done = step / total
        if s.max_minutes is not None:
            by_time = plan.journal.seconds / (60 * s.max_minutes)
            if by_time > done:
                done, total = min(1.0, by_time), max(1, round(step / by_time))
        return schedule(s, step, done, total)

    # -- evaluation and the log

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Held-out loss (nats a token) and bits a character; an empty result when a signal cut it short."""
        plan = self.plan
        log.debug("evaluating at step %d", self.state.global_step)
        total = self.held_out_nats()
        if total is None:
            plan.journal.evaluation_due = True
            self.keeper.interrupted = True
            if self.at_start:
                raise Ended  # the checkpoint that this attempt began with says all there is to say
            self.control.should_save = self.control.should_training_stop = True
            return {}
        plan.journal.evaluation_due = False
        loss = total / plan.held_out.targets
        metrics = {"eval_loss": loss, "bits_per_character": total / math.log(2) / plan.characters}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def at_start(self) -> bool:
        """Whether this attempt has not made a step yet."""
        return bool(self.state.global_step == self.first_step)

    def held_out_nats(self) -> float | None:
        """Cross-entropy summed over all held-out tokens; None when a signal has arrived meanwhile."""
        plan, model = self.plan, self.model
        was_training = model.training
        model.eval()
        total = torch.zeros((), dtype=torch.float64)
        size = plan.batch_size * plan.world
        stopped = False
        with torch.no_grad():
            for start in range(0, len(plan.held_out), size):
                stopped = stopped or plan.stopped()
                if stopped and plan.world == 1:
                    break
                chosen = range(start, min(start + size, len(plan.held_out)))[plan.rank :: plan.world]
                if len(chosen) and not stopped:
                    batch = self._prepare_inputs(plan.collate([plan.held_out[i] for i in chosen]))
                    with self.accelerator.autocast():
                        total += plan.head.nats(self.forward(model, batch).logits, batch["labels"]).double().cpu()
        model.train(was_training)
        both = self.summed(torch.stack([total, torch.tensor(float(stopped), dtype=torch.float64)]).to(self.args.device))
        return None if both[1].item() > 0 else float(both[0].item())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Take in a step's loss; raises SpecError when it is no number any more."""
        if "loss" not in logs:
            return
        journal, step = self.plan.journal, self.state.global_step
        loss, grad = logs["loss"], float(logs.get("grad_norm", 0.0))
        rate = logs.get("learning_rate", 0.0)
        scaled = self.accelerator.scaler is not None  # which skips steps whose gradients overflow
        if not math.isfinite(loss) or not (math.isfinite(grad) or scaled):
            raise SpecError(
                f"the training diverged at step {step}: the loss is {loss}, the gradients' norm {grad}; lower "
                f"'learning_rate' (it was {rate:.2g} there), or lengthen the warm-up"
            )
        log.debug("step %d: loss %.4f", step, loss)
        journal.step(loss, grad if math.isfinite(grad) else 0.0)
        every = max(1, self.plan.total_steps // RECORDS) if self.plan.total_steps < 10**7 else 50
        if step % every == 0 or step in (1, self.plan.total_steps):
            journal.record(step, self.epochs(step), rate)
        self.progress(loss, rate)

    def epochs(self, step: int) -> float:
        """How often all blocks have been seen after ``step``."""
        plan = self.plan
        return step * plan.batch_size * plan.accumulation * plan.world / len(plan.train)

    def progress(self, loss: float, rate: float) -> None:
        """Tell the user where the training is."""
        plan, journal, step = self.plan, self.plan.journal, self.state.global_step
        if plan.rank:
            return
        speed = self.keeper.speed()
        left = self.keeper.seconds_left(step)
        plan.report(
            message=f"step {step} of {plan.total_steps}" if plan.total_steps < 10**7 else f"step {step}",
            done=step,
            total=plan.total_steps if plan.total_steps < 10**7 else None,
            unit="steps",
            epoch=round(self.epochs(step), 3),
            loss=round(loss, 4),
            learning_rate=rate,
            held_out_loss=None if journal.best_loss is None else round(journal.best_loss, 4),
            tokens_per_second=round(speed, 1),
            seconds_left=round(left),
            memory_mib=memory_mib(),
        )

    @property
    def keeper(self) -> Keeper:
        """The callback that keeps time, evaluations and checkpoints."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, Keeper))


class Ended(Exception):  # noqa: N818
    """The evaluation that a restart had to make up for ends the training: there is no step left to do."""


class Keeper(TrainerCallback):  # type: ignore[misc]
    """Decides at each step's end what is due: evaluation, checkpoint, the end. All processes decide alike."""

    def __init__(self, trainer: PostTrainer) -> None:
        self.trainer, self.plan = trainer, trainer.plan
        self.interrupted = False
        self.stopped_early = False
        self._began = self._saved = time.monotonic()
        self._before = self.plan.journal.seconds
        self._tokens_before = self.plan.journal.tokens
        self.seconds_saving = 0.0

    # -- measures

    def speed(self) -> float:
        """Tokens a second of this attempt."""
        return (self.plan.journal.tokens - self._tokens_before) / max(1e-9, time.monotonic() - self._began)

    def seconds_left(self, step: int) -> float:
        """By the speed so far, and by the limit of time."""
        plan = self.plan
        spent = time.monotonic() - self._began
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
        self._began = self._saved = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Dropout's numbers are a function of the step: whatever happened before a restart cannot shift them.
        torch.manual_seed((self.plan.seed * 1_000_003 + state.global_step) * 1_009 + self.plan.rank)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        plan = self.plan
        now = time.monotonic()
        due = now - self._saved >= plan.checkpoint_seconds
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
        by_steps = plan.checkpoint_steps is not None and step % plan.checkpoint_steps == 0
        control.should_save = bool(due_flag) or by_steps
        control.should_training_stop = control.should_training_stop or ended

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        plan, trainer = self.plan, self.trainer
        loss, bits = metrics["eval_loss"], metrics["bits_per_character"]
        if not math.isfinite(loss):
            raise SpecError(f"the training diverged: the held-out loss is {loss} at step {state.global_step}")
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
        started = time.monotonic()
        folder = plan.folder / f"checkpoint-{state.global_step}"
        if plan.uploader is not None:
            with full_disk_said():
                plan.journal.save(folder)
            plan.uploader.wait()
            self._drop_old_best()
            best = plan.journal.best_step
            elsewhere = best is not None and best != state.global_step
            plan.uploader.submit(folder, state.global_step, self.best_folder(best) if elsewhere and best else None)
        self.seconds_saving += time.monotonic() - started
        self._saved = time.monotonic()

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


def memory_mib() -> int:
    """Peak memory of this process: the accelerator's where there is one, else the resident set's; MiB."""
    import resource

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated() >> 20)
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
