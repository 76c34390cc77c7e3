"""The stage: train, alone or with helpers, and commit the model."""

from __future__ import annotations

from jobs.specs import TrainSpec
from jobs.stage import StageContext
from jobs.train import checkpoints


def run(ctx: StageContext[TrainSpec]) -> None:
    """Train by ``ctx.spec`` and commit ``ctx.ref``.

    Raises Interrupted (143) after SIGTERM, once a checkpoint is in the bucket.
    """
    ctx.handle_stop()
    ctx.check_stop()
    ctx.progress.update(message="loading the libraries")
    from jobs.train.loop import Work, train

    work = Work(
        spec=ctx.spec,
        ref=ctx.ref,
        run=ctx.run,
        store=ctx.store,
        workdir=ctx.workdir,
        report=ctx.progress.update,
        stopped=ctx.stop.is_set,
    )
    result = train(work)
    assert result is not None  # one process has rank 0
    ctx.check_stop()
    writer = ctx.writer()
    writer.put_folder(work.out)
    ctx.commit(writer, counts=result.counts, info=result.info)
    removed = checkpoints.remove_all(ctx.store, ctx.ref, ctx.run)
    ctx.log.info("held out: %.3f bits a character; %d checkpoints removed", result.info["bits_per_character"], removed)
