"""transformers' Trainer, taught our data order, our loss, our evaluation and when to keep a checkpoint.

What is overridden is public: the loader, the loss, the token count, the scheduler, the evaluation, the log.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from jobs.specs import SpecError
from jobs.train.data import GlobalBatches, count_targets
from jobs.train.dropout import LateDropout
from jobs.train.keeper import Ended, Keeper
from jobs.train.plan import Plan, schedule
from jobs.train.soft_targets import training_nats
from jobs.train.surroundings import memory_mib

log = logging.getLogger(__name__)

RECORDS = 400  # points of the training curve, at most


def arguments(plan: Plan, *, precision: str, compiled: bool, activation_checkpointing: bool) -> TrainingArguments:
    """The Trainer's arguments; whatever it could do by itself (saving, reporting) is off."""
    s = plan.settings
    args = TrainingArguments(
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
    # A process takes one GPU. Where it sees several the Trainer would wrap the model in DataParallel, which splits our
    # batches and sums their loss in its own way. The number is found out once, together with the device.
    args._n_gpu = min(args.n_gpu, 1)
    return args


class PostTrainer(Trainer):  # type: ignore[misc]
    """A Trainer for packed posts. ``plan`` holds what it works on; ``plan.journal`` what it has seen."""

    lr_scheduler: Any
    control: Any

    def __init__(self, plan: Plan, model: Any, args: TrainingArguments, first_step: int) -> None:
        self.plan = plan
        self.first_step = first_step
        self.step_tokens = 0  # of the step that is under way
        self.dropout = LateDropout(model, plan.settings.dropout or 0.0, plan.settings.dropout_after)
        share = plan.settings.soft_targets
        self.nats = training_nats(plan.train, model.config.vocab_size, share, plan.head)
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
        self.step_tokens = int(count.item())
        self.plan.journal.tokens += self.step_tokens
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
        self.dropout.at(self.epochs(self.state.global_step))
        outputs = self.forward(model, inputs)
        with self.accelerator.autocast():  # the model's own forward has it by itself; its head is computed here
            nats = self.nats(outputs.logits, inputs)
        loss = nats / num_items_in_batch * self.plan.world
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
            before = plan.journal.warm_start_seconds
            by_time = (plan.journal.seconds - before) / max(1e-9, 60 * s.max_minutes - before)
            if by_time > done:
                done, total = min(1.0, by_time), max(1, round(step / by_time))
        return schedule(s, step, done, total)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self.keeper.saving_since = self.plan.clock()  # a checkpoint begins with it
        super().save_model(output_dir, _internal_call)

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
            # Not to be tried again at the end of the Trainer's loop: that would write this checkpoint a second time,
            # into the folder that is being uploaded.
            self.control.should_evaluate = False
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
