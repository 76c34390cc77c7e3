"""One training, from the inputs in the bucket to a folder with the finished model; in one process or in several."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from jobs.artifacts import ArtifactStore, Manifest
from jobs.specs import BugurtError, ConfigError, DataError, Interrupted, TrainSpec
from jobs.style import STYLE_FILE, Style
from jobs.train import checkpoints, export
from jobs.train.data import Blocks, fetch_blocks, steps_for
from jobs.train.head import choose_head, use_fused_gelu
from jobs.train.journal import Journal
from jobs.train.keeper import Ended, Keeper, full_disk_said
from jobs.train.launch import TooLarge
from jobs.train.models import Base, is_scratch, load_base, load_tokenizer, one_line
from jobs.train.packing import choose_layout
from jobs.train.plan import ENDLESS, Plan
from jobs.train.presets import Settings, resolve
from jobs.train.soft_targets import share_of
from jobs.train.surroundings import (
    check_compiling,
    check_kernels,
    device_of,
    out_of_memory,
    precision_of,
    release_memory,
)
from jobs.train.trainer import PostTrainer, arguments
from jobs.train.warm_start import warm_start

log = logging.getLogger(__name__)


@dataclass
class Work:
    """What a training process is told.

    ``out``: the folder that the finished model goes to; ``report``: takes progress fields; ``stopped``: whether a
    signal has arrived; ``rank`` of ``world`` processes, ``local_rank`` on this machine; ``batch``: batch size and
    accumulation that are known to fit, instead of the settings'; ``guard``: raises once the lease on the model is lost.
    """

    spec: TrainSpec
    ref: str
    run: str
    store: ArtifactStore
    workdir: Path
    report: Callable[..., None]
    stopped: Callable[[], bool]
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    batch: tuple[int, int] | None = None
    guard: Callable[[], None] | None = None

    @property
    def out(self) -> Path:
        return self.workdir / "model"


@dataclass
class Result:
    """Of the process with rank 0: what the manifest says."""

    counts: dict[str, int | float]
    info: dict[str, Any]


def train(work: Work) -> Result | None:
    """Train, and write the best model to ``work.out``; rank 0 returns the Result, others None.

    Raises Interrupted after a checkpoint has been uploaded, and every kind of BugurtError.
    """
    quiet_transformers()
    check_kernels()
    spec, store = work.spec, work.store
    assert spec.dataset is not None  # the stage contract has seen to it
    dataset = store.manifest(spec.dataset)
    inputs = work.workdir / f"inputs-{work.rank}"
    style = read_style(store, dataset)
    store.download(dataset.ref, inputs, "tokenizer/*", manifest=dataset)
    tokenizer = load_tokenizer(inputs / "tokenizer")
    blocks = fetch_blocks(store, dataset, "train", inputs, style.vocab_size)
    held_out = fetch_blocks(store, dataset, "validation", inputs, style.vocab_size)
    characters = int(dataset.counts.get("characters_validation", 0))
    if characters < 1:
        raise DataError(f"{dataset.ref} does not count its 'characters_validation'; make it anew with preprocess")
    settings = resolve(spec, from_scratch=is_scratch(spec))
    settings = replace(settings, soft_targets=share_of(settings, blocks))
    check_length(style)
    precision = precision_of(spec)
    if spec.torch_compile:
        work.report(message="trying torch.compile")
        check_compiling()
    log.info("training on %s, in %s", device_of(work.world), precision)
    log.info(
        "%d blocks of %s, %d tokens; held out: %d tokens", len(blocks), dataset.ref, blocks.tokens, held_out.tokens
    )

    resumed = None
    best = work.workdir / "resumed-best"
    if work.rank == 0:
        resumed = checkpoints.restore(store, checkpoints.find(store, work.ref, work.run), work.workdir / "resumed")
        if resumed and (resumed[1] / checkpoints.BEST).is_dir():
            # The Trainer would take a folder with an adapter in it for one more adapter of the model.
            (resumed[1] / checkpoints.BEST).replace(best)
    resumed = shared(work, resumed)
    journal = Journal.load(resumed[1]) if resumed else Journal()
    if resumed:
        journal.attempts += 1
        log.info("resuming at step %d, from %s", resumed[0].step, resumed[0].ref)
        if work.rank == 0:
            keep_best(work, journal, resumed[0].step, resumed[1], best)
    uploader = None
    if work.rank == 0:
        uploader = checkpoints.Uploader(
            store, run=work.run, artifact=work.ref, spec=spec.model_dump(mode="json"), keep=spec.keep_checkpoints,
            guard=work.guard,
        )  # fmt: skip
    session = Session(work, settings, style, tokenizer, blocks, held_out, characters, journal, uploader, precision)
    try:
        trainer, base = session.run(resumed)
    except BugurtError:
        if uploader is not None:
            uploader.settle()  # the last checkpoint before what went wrong is still on its way
        raise
    keeper = trainer.keeper
    if keeper.interrupted:
        if uploader is not None:
            work.report(message="waiting for the last checkpoint's upload")
            uploader.finish()
        if work.world > 1:
            torch.distributed.barrier()  # torchrun ends all processes when the first one is gone
        step = trainer.state.global_step
        raise Interrupted(f"interrupted at step {step}" + ("; its checkpoint is in the bucket" if step else ""))
    if uploader is not None:
        uploader.wait()
    if work.rank:
        return None
    work.report(message="writing the model")
    return finish(session, trainer, base, dataset, style, tokenizer)


def read_style(store: ArtifactStore, dataset: Manifest) -> Style:
    """The dataset's ``style.json``."""
    return Style.from_json(store.read(dataset.ref, dataset.file(STYLE_FILE)), f"{dataset.ref}/{STYLE_FILE}")


def check_length(style: Style) -> None:
    """Refuse what no model of ours could take."""
    if max(style.bos_token_id, style.eos_token_id, style.pad_token_id) >= style.vocab_size:
        raise DataError("the dataset's style.json names special tokens outside its own vocabulary")


def shared(work: Work, resumed: tuple[checkpoints.Found, Path] | None) -> tuple[checkpoints.Found, Path] | None:
    """Let all processes know, and have on their disks, the checkpoint that rank 0 chose."""
    if work.world == 1:
        return resumed
    box: list[Any] = [resumed[0] if resumed else None]
    torch.distributed.broadcast_object_list(box, src=0)
    chosen: checkpoints.Found | None = box[0]
    if chosen is None:
        return None
    folder = work.workdir / "resumed" / f"checkpoint-{chosen.step}"
    if work.rank and work.local_rank == 0:
        work.store.download(chosen.ref, folder, manifest=chosen.manifest)
    torch.distributed.barrier()
    return chosen, folder


def agreed(batch: tuple[int, int], world: int) -> tuple[int, int]:
    """The smallest batch size (with its accumulation) that any process knows to fit.

    A machine that found out that a batch does not fit begins anew with less, and those that were started again
    beside it know nothing of that.
    """
    if world == 1:
        return batch
    known: list[Any] = [None] * world
    torch.distributed.all_gather_object(known, batch)
    least: tuple[int, int] = min(known)
    return least


def keep_best(work: Work, journal: Journal, step: int, folder: Path, best: Path) -> None:
    """Put the best weights that a checkpoint brought to where the training keeps them."""
    if journal.best_step is None:
        return
    target = work.workdir / "training" / f"best-{journal.best_step}"
    target.mkdir(parents=True, exist_ok=True)
    source = folder if journal.best_step == step else best
    for name in ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "adapter_*"):
        for file in source.glob(name):
            shutil.copyfile(file, target / file.name)


@dataclass
class Session:
    """A training with what it works on."""

    work: Work
    settings: Settings
    style: Style
    tokenizer: Any
    blocks: Blocks
    held_out: Blocks
    characters: int
    journal: Journal
    uploader: checkpoints.Uploader | None
    precision: str
    layout: str = ""
    parameters: int = 0

    def run(self, resumed: tuple[checkpoints.Found, Path] | None) -> tuple[PostTrainer, Base]:
        """Train to the end, or to the signal. Raises TooLarge with what to try when the memory does not suffice."""
        s = self.settings
        known = self.work.batch or (
            self.journal.batch_size or s.batch_size,
            self.journal.accumulation or s.gradient_accumulation_steps,
        )
        batch, accumulation = agreed(known, self.work.world)
        release_memory()
        try:
            base = self.base()
            trainer = self.trainer(base, batch, accumulation, resumed[0].step if resumed else 0)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise ConfigError(
                f"there is not enough memory for the model itself ({one_line(error)[:160]}): give the stage more, or "
                "take a smaller model" + (", or 'soft_targets' 0, for which nothing is counted" * bool(s.soft_targets))
            ) from None
        try:
            with full_disk_said():
                trainer.train(resume_from_checkpoint=str(resumed[1]) if resumed else None)
        except Ended:
            log.info("the evaluation that was due ends the training")
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            problem = one_line(error)[:160]
            if self.uploader is not None:
                self.uploader.wait()
            # From None: the traceback would keep the model, and its memory, alive.
            raise self.smaller(batch, accumulation, problem) from None
        return trainer, base

    def smaller(self, batch: int, accumulation: int, problem: str) -> TooLarge | ConfigError:
        """Half the batch, or the next divisor of it, and so much more accumulation that a step stays the same."""
        less = next((d for d in range(batch // 2, 0, -1) if batch % d == 0), None)
        if less is None:
            return ConfigError(
                f"out of memory with one block a step and process ({problem}): ask for gradient_checkpointing, lora, "
                "or a dataset with a smaller block_size"
            )
        return TooLarge(less, accumulation * (batch // less))

    def base(self) -> Base:
        """A fresh model to start from."""
        from transformers import set_seed

        work = self.work
        set_seed(work.spec.seed)
        base = load_base(
            work.spec, self.settings, self.style, self.tokenizer, work.store, work.workdir / f"base-{work.local_rank}"
        )
        positions = getattr(base.model.config, "max_position_embeddings", None)
        longest = max(self.blocks.longest, self.held_out.longest)
        if positions is not None and longest > positions:
            raise DataError(
                f"a post of the dataset has {longest} tokens, but {base.origin} takes {positions}: make the dataset "
                f"anew with preprocess's block_size at most {positions}"
            )
        self.layout, self.collate = choose_layout(base.model, self.style.pad_token_id, self.style.vocab_size)
        use_fused_gelu(base.model)
        self.head = choose_head(base.model, self.style.vocab_size)
        if work.spec.lora is not None:
            from jobs.train.lora import adapted

            base.model = adapted(base.model, work.spec.lora, work.spec.base_model or work.spec.model)
        self.parameters = sum(p.numel() for p in base.model.parameters())
        return base

    def trainer(self, base: Base, batch: int, accumulation: int, first_step: int) -> PostTrainer:
        """A trainer for this batch size, at this step."""
        work, s, spec = self.work, self.settings, self.work.spec
        global_batch = batch * accumulation * work.world
        if s.max_steps is not None:
            total = s.max_steps
        elif s.max_minutes is not None and spec.epochs is None:
            total = ENDLESS
        else:
            total = steps_for(s.epochs, len(self.blocks), global_batch)
        eval_every = s.eval_steps or steps_for(1, len(self.blocks), global_batch)
        self.journal.batch_size, self.journal.accumulation = batch, accumulation
        plan = Plan(
            settings=s,
            seed=spec.seed,
            train=self.blocks,
            held_out=self.held_out,
            characters=self.characters,
            collate=self.collate,
            head=self.head,
            total_steps=total,
            eval_every=eval_every,
            batch_size=batch,
            accumulation=accumulation,
            folder=work.workdir / "training",
            journal=self.journal,
            report=work.report,
            stopped=work.stopped,
            uploader=self.uploader,
            checkpoint_steps=spec.checkpoint_steps,
            checkpoint_seconds=60 * spec.checkpoint_minutes,
            rank=work.rank,
            world=work.world,
        )
        args = arguments(
            plan,
            precision=self.precision,
            compiled=spec.torch_compile,
            activation_checkpointing=spec.gradient_checkpointing,
        )
        args.eval_on_start = self.journal.evaluation_due
        if base.from_scratch and first_step == 0:
            warm_start(plan, base.model, self.precision)
        return PostTrainer(plan, base.model, args, first_step)


def finish(
    session: Session, trainer: PostTrainer, base: Base, dataset: Manifest, style: Style, tokenizer: Any
) -> Result:
    """Write the model with all that belongs to it, from the best weights."""
    journal, work = session.journal, session.work
    session.head.release()
    keeper: Keeper = trainer.keeper
    best = journal.best_step
    assert best is not None  # each training ends with an evaluation
    if best != trainer.state.global_step:
        export.load_weights(trainer.model, keeper.best_folder(best))
    record = next(r for r in journal.history if r["step"] == best and "eval_loss" in r)
    settings = replace(
        session.settings, batch_size=journal.batch_size, gradient_accumulation_steps=journal.accumulation
    )
    info: dict[str, Any] = {
        "name": work.spec.model if work.spec.base_model is None else base.origin,
        "base": base.origin,
        "dataset": dataset.ref,
        "settings": settings.to_dict(),
        "device": device_of(work.world),
        "precision": session.precision,
        "layout": session.layout,
        "head": session.head.name,
        "processes": work.world,
        "threads": torch.get_num_threads(),
        "parameters": session.parameters,
        "best_step": best,
        "best_loss": record["eval_loss"],
        "bits_per_character": record["bits_per_character"],
        "stopped_early": keeper.stopped_early,
        "tokens_per_second": round(keeper.speed(), 1),
        "training_seconds": round(journal.seconds, 1),
        "warm_start_seconds": round(journal.warm_start_seconds, 1),
        "saving_seconds": round(keeper.seconds_saving, 2),
        "upload_seconds": round(session.uploader.seconds_uploading, 2) if session.uploader else 0.0,
        "attempts": journal.attempts,
    }
    counts: dict[str, int | float] = {
        "steps": trainer.state.global_step,
        "tokens": journal.tokens,
        "parameters": session.parameters,
        "posts": int(dataset.counts.get("train", 0)),
    }
    export.write(
        work.out, trainer.model, tokenizer, style, export.Story(work.spec, info, dict(dataset.counts), journal)
    )
    return Result(counts, info)


def quiet_transformers() -> None:
    """Send the libraries' warnings through our log, and keep them from drawing bars."""
    import transformers.utils.logging as hf

    hf.disable_default_handler()
    hf.enable_propagation()
    hf.disable_progress_bar()
    hf.set_verbosity_error()
