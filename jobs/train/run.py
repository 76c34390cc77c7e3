"""The stage: train, in this process or in several, and commit the model."""

from __future__ import annotations

import gc
import os
import time
from typing import Any

from jobs.specs import DataError, TrainSpec
from jobs.stage import StageContext
from jobs.train import checkpoints
from jobs.train.launch import TooLarge, launch
from jobs.train.surroundings import check_gpus
from jobs.train.topology import Topology

COMMIT_PATIENCE = 3600.0  # seconds that the other machines wait for the first one's commit


def run(ctx: StageContext[TrainSpec]) -> None:
    """Train by ``ctx.spec`` and commit ``ctx.ref``.

    A batch that does not fit into memory is halved, with the accumulation doubled, and the training goes on from
    its newest checkpoint. Raises Interrupted (143) after SIGTERM, once a checkpoint is in the bucket.
    """
    topology = Topology.from_env(os.environ)
    ctx.handle_stop()
    ctx.check_stop()
    ctx.progress.update(message="loading the libraries")
    check_gpus()
    several = topology.nodes > 1 or topology.local_processes() > 1
    batch: tuple[int, int] | None = None
    while True:
        try:
            counts, info = _in_several(ctx, topology, batch) if several else _here(ctx, batch)
            break
        except TooLarge as error:
            batch = (error.batch, error.accumulation)
            ctx.log.warning(
                "the batch does not fit into memory; going on with batch_size %d, gradient_accumulation_steps %d",
                *batch,
            )
        gc.collect()  # the failed attempt's tensors, now that its traceback is gone
    ctx.check_stop()
    writer = ctx.writer()
    writer.put_folder(ctx.workdir / "model")
    ctx.commit(writer, counts=counts, info=info)
    removed = checkpoints.remove_all(ctx.store, ctx.ref, ctx.run)
    ctx.log.info("held out: %.3f bits a character; %d checkpoints removed", info["bits_per_character"], removed)


def _here(ctx: StageContext[TrainSpec], batch: tuple[int, int] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    from jobs.train.loop import Work, train

    result = train(
        Work(
            spec=ctx.spec,
            ref=ctx.ref,
            run=ctx.run,
            store=ctx.store,
            workdir=ctx.workdir,
            report=ctx.progress.update,
            stopped=ctx.stop.is_set,
            batch=batch,
            guard=ctx.lease.ensure if ctx.lease else None,
        )
    )
    assert result is not None  # one process has rank 0
    return result.counts, result.info


def _in_several(
    ctx: StageContext[TrainSpec], topology: Topology, batch: tuple[int, int] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    result = launch(
        ctx.spec,
        ref=ctx.ref,
        run=ctx.run,
        topology=topology,
        workdir=ctx.workdir,
        report=ctx.progress.update,
        stop=ctx.stop,
        batch=batch,
        guard=ctx.lease.ensure if ctx.lease else None,
    )
    if result is None:
        raise DataError("the training processes ended without a result")
    return result


def await_commit(ctx_store: Any, ref: str, stop: Any) -> bool:
    """Wait until the first machine has committed ``ref``; False when it did not in COMMIT_PATIENCE, or on a signal.

    A machine that left before would not come back if the first one had to start again.
    """
    deadline = time.monotonic() + COMMIT_PATIENCE
    while time.monotonic() < deadline:
        if ctx_store.find(ref) is not None:
            return True
        if stop.wait(2.0):  # S3 has no events to wait for
            return False
    return False
