"""The other machines of a training on several: they lend their processes; the first machine is the stage proper.

They write no progress and no log to the bucket, hold no lease and commit nothing. They end when the first one has
committed the model, so that all of them are there again if it has to start anew.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import NoReturn

from jobs.artifacts import ArtifactStore
from jobs.reporting import configure_logging
from jobs.specs import Interrupted, SpecError, TemporaryError, TrainSpec
from jobs.stage import explain, load_spec, log
from jobs.train.launch import TooLarge, launch
from jobs.train.run import await_commit
from jobs.train.surroundings import check_gpus
from jobs.train.topology import Topology


def main(argv: Sequence[str] | None = None, env: Mapping[str, str] = os.environ) -> NoReturn:
    """Train along with the first machine; exits as a stage does."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description=__doc__)
    parser.add_argument("--spec")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--debug", action="store_true")
    options = parser.parse_args(argv)
    configure_logging(debug=options.debug or env.get("BUGURT_DEBUG", "") not in ("", "0"))
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    workdir = Path(tempfile.mkdtemp(prefix="bugurt-train-peer-", dir=env.get("BUGURT_WORKDIR") or None))
    code = 0
    try:
        text = options.spec or env.get("BUGURT_SPEC")
        if not text:
            raise SpecError("no spec: give --spec FILE or set BUGURT_SPEC")
        force = options.force or env.get("BUGURT_FORCE", "") not in ("", "0")
        _work(load_spec(TrainSpec, text, env), Topology.from_env(env), workdir, stop, env, force=force)
    except BaseException as error:
        sentence, code = explain(error)
        log.error("%s", sentence)
    shutil.rmtree(workdir, ignore_errors=True)
    sys.stderr.flush()
    os._exit(code)


def _work(
    spec: TrainSpec, topology: Topology, workdir: Path, stop: Event, env: Mapping[str, str], *, force: bool
) -> None:
    store = ArtifactStore.from_env(env)
    ref, run = spec.ref(), env.get("BUGURT_RUN") or "adhoc"
    found = store.find(ref)
    if found is not None and (not force or found.run == run):
        log.info("found %s: nothing to do", ref)
        return
    check_gpus()
    batch: tuple[int, int] | None = None
    while True:
        try:
            launch(
                spec,
                ref=ref,
                run=run,
                topology=topology,
                workdir=workdir,
                report=lambda **_: None,
                stop=stop,
                batch=batch,
            )
            break
        except TooLarge as error:
            # The first machine begins anew as well, for it has lost us, and takes the smaller batch from us.
            batch = (error.batch, error.accumulation)
            log.warning("a batch does not fit into this machine's memory; going on with batch_size %d", batch[0])
    log.info("trained; waiting for the first machine to commit %s", ref)
    if not await_commit(store, ref, stop):
        if stop.is_set():
            raise Interrupted("interrupted while the first machine was committing")
        raise TemporaryError(f"the first machine did not commit {ref} within an hour")
