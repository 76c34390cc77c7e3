"""The stage contract: read the spec, open the inputs, run, commit; progress, logs, signals and exit codes.

A stage's package calls ``main(SpecType, run)`` from its ``__main__``. ``run`` gets a StageContext, commits the
artefact ``ctx.ref`` and returns. What a container is told besides its spec comes from the environment:

- ``BUGURT_SPEC``: the spec as JSON text, a file or an ``s3://`` address (``--spec`` wins over it);
- ``BUGURT_RUN``: the run that this belongs to; logs and progress go to ``runs/RUN/STAGE/``;
- ``BUGURT_FORCE``: do it again although the artefact is there;
- ``JOB_COMPLETION_INDEX``: which shard this is, as Kubernetes sets it for Indexed Jobs;
- ``BUGURT_S3_*``: the bucket (``jobs.storage``).
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any, Generic, NoReturn, TypeVar

from jobs import __version__
from jobs.artifacts import ArtifactStore, ArtifactWriter, Bucket, Manifest, S3Settings
from jobs.reporting import LogShipper, ProgressReporter, configure_logging
from jobs.specs import (
    RUN_NAME,
    BugurtError,
    ConfigError,
    DataError,
    ExitCode,
    Interrupted,
    SpecError,
    StageSpec,
    TemporaryError,
    parse_spec,
)

S = TypeVar("S", bound=StageSpec)
log = logging.getLogger("bugurt")


class StageContext(Generic[S]):
    """What a stage works with.

    ``spec``: what to make; ``ref``: the artefact's ``kind/id``; ``store``: the bucket; ``run``: the run's name;
    ``shard``: this process's index among ``spec.shards``, or None; ``workdir``: an empty folder that is removed
    at the end; ``progress``: for the user's eyes; ``stop``: set once SIGTERM or SIGINT has arrived.
    """

    def __init__(
        self, spec: S, store: ArtifactStore, *, run: str, shard: int | None, workdir: Path, progress: ProgressReporter
    ) -> None:
        self.spec = spec
        self.store = store
        self.run = run
        self.shard = shard
        self.workdir = workdir
        self.progress = progress
        self.log = log
        self.ref = spec.ref()
        self.stop = Event()
        self._graceful = False

    @property
    def folder(self) -> str:
        """This stage's folder of the run: ``runs/RUN/STAGE``."""
        return f"runs/{self.run}/{self.spec.stage}"

    def input(self, name: str) -> Manifest:
        """The manifest of an input, by the spec's field. Raises SpecError when the spec leaves it out."""
        ref = self.spec.inputs().get(name)
        if ref is None:
            raise SpecError(f"the {self.spec.stage} spec needs the field '{name}'")
        return self.store.manifest(ref)

    def writer(self) -> ArtifactWriter:
        """A writer for the artefact that the spec names."""
        return self.store.writer(self.ref)

    def commit(
        self,
        writer: ArtifactWriter,
        *,
        counts: Mapping[str, int | float],
        info: Mapping[str, Any] | None = None,
        parent: str | None = None,
    ) -> Manifest:
        """Commit the artefact with this stage's spec, inputs and run filled in."""
        return writer.commit(
            stage=self.spec.stage,
            spec=self.spec.model_dump(mode="json"),
            inputs=self.spec.inputs(),
            parent=parent,
            counts=counts,
            info=info,
            run=self.run,
        )

    def handle_stop(self) -> None:
        """The stage watches ``stop`` itself from now on: signals no longer raise Interrupted in it."""
        self._graceful = True

    def check_stop(self) -> None:
        """Raise Interrupted once a signal has arrived."""
        if self.stop.is_set():
            raise Interrupted("interrupted by a signal")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self.stop.is_set()
        self.stop.set()
        if not self._graceful or (again and number == signal.SIGINT):
            raise Interrupted(f"interrupted by {signal.Signals(number).name}")


def load_spec(spec_type: type[S], text: str, env: Mapping[str, str] = os.environ) -> S:
    """Read a spec from JSON text, a file, or an ``s3://BUCKET/KEY`` address. Raises SpecError."""
    where = "the spec"
    if not text.lstrip().startswith("{"):
        where, text = text, _read_spec(text, env)
    try:
        data = json.loads(text)
    except ValueError as error:
        raise SpecError(f"{where} is not valid JSON: {error}") from error
    stage = spec_type.model_fields["stage"].default
    if isinstance(data, dict) and data.get("stage", stage) != stage:
        raise SpecError(f"{where}: stage: this is the {stage} stage, not {data['stage']!r}")
    spec = parse_spec(spec_type, data, where)
    missing = spec.missing_inputs()
    if missing:
        raise SpecError(f"{where}: {missing[0]}: is needed to run the {spec.stage} stage")
    return spec


def _read_spec(address: str, env: Mapping[str, str]) -> str:
    if address.startswith("s3://"):
        bucket, _, key = address.removeprefix("s3://").partition("/")
        settings = S3Settings.from_env({**env, "BUGURT_S3_BUCKET": bucket, "BUGURT_S3_PREFIX": ""})
        data = Bucket(settings).get_bytes(key)
    else:
        try:
            data = Path(address).read_bytes()
        except OSError as error:
            raise SpecError(f"cannot read the spec {address}: {error.strerror}") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"the spec {address} is not UTF-8 text") from error


def explain(error: BaseException) -> tuple[str, ExitCode]:
    """One sentence and the exit code for whatever ended a stage."""
    if isinstance(error, BugurtError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", ExitCode.INTERRUPTED
    if isinstance(error, MemoryError):
        return "out of memory; give the stage more, or ask for smaller batches", ExitCode.TRY_AGAIN
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" ({error.filename})" if error.filename else ""
        return f"the disk is full{place}; free some space and try again", ExitCode.TRY_AGAIN
    if isinstance(error, OSError):
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{place}", ExitCode.TRY_AGAIN
    text = " ".join(str(error).split())[:500]
    return f"internal error, please report it: {type(error).__name__}: {text}", ExitCode.INTERNAL


def _shard(env: Mapping[str, str], spec: StageSpec) -> int | None:
    text = env.get("JOB_COMPLETION_INDEX")
    if text is None or not hasattr(spec, "shards"):
        return None
    if not text.isdigit() or int(text) >= spec.shards:
        raise SpecError(f"JOB_COMPLETION_INDEX is {text!r}, but the spec has {spec.shards} shards")
    return int(text)


def main(
    spec_type: type[S],
    run: Callable[[StageContext[S]], str | None],
    *,
    argv: Sequence[str] | None = None,
    exclusive: bool = True,
    description: str = "",
) -> NoReturn:
    """Run a stage as a process and exit with its code.

    ``run`` returns None after it has committed ``ctx.ref``, or the reference of an artefact that already is the
    answer (a scrape that found nothing new returns its parent). ``exclusive``: hold a lease on the artefact, so
    that two processes asked for the same one do not write over each other; a sharded stage passes False and
    takes its own.
    """
    stage = spec_type.model_fields["stage"].default
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{stage}", description=description or spec_type.__doc__)
    parser.add_argument("--spec", help="a JSON file or an s3:// address (default: the variable BUGURT_SPEC)")
    parser.add_argument("--force", action="store_true", help="do it again although the artefact is there")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and debug messages")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(argv)
    debug = options.debug or os.environ.get("BUGURT_DEBUG", "") not in ("", "0")
    env = os.environ
    configure_logging(debug=debug)
    workdir: Path | None = None
    progress: ProgressReporter | None = None
    shipper: LogShipper | None = None
    try:
        workdir = Path(tempfile.mkdtemp(prefix=f"bugurt-{stage}-", dir=env.get("BUGURT_WORKDIR") or None))
        log_file = workdir / "log.txt"
        configure_logging(debug=debug, file=log_file)
        text = options.spec or env.get("BUGURT_SPEC")
        if not text:
            raise SpecError("no spec: give --spec FILE or set BUGURT_SPEC")
        spec = load_spec(spec_type, text, env)
        run_name = env.get("BUGURT_RUN") or "adhoc"
        if not re.fullmatch(RUN_NAME, run_name):
            raise SpecError(f"BUGURT_RUN: {run_name!r} is not a run's name (lower-case letters, digits, -; at most 31)")
        shard = _shard(env, spec)
        store = ArtifactStore.from_env(env)
        (workdir / "work").mkdir()
        folder = f"runs/{run_name}/{stage}" + (f"/shard-{shard:05d}" if shard is not None else "")
        progress = ProgressReporter(store.bucket, f"{folder}/progress.json", stage=stage, run=run_name, shard=shard)
        ctx = StageContext(spec, store, run=run_name, shard=shard, workdir=workdir / "work", progress=progress)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, ctx._on_signal)
        store.bucket.check()
        shipper = LogShipper(store.bucket, f"{folder}/log.txt", log_file)
        progress.start()
        log.info("bugurt %s, stage %s, run %s: makes %s", __version__, stage, run_name, ctx.ref)
        force = options.force or env.get("BUGURT_FORCE", "") not in ("", "0")
        answer = _work(ctx, run, force=force, exclusive=exclusive)
        progress.finish("succeeded", artifact=answer)
        code = ExitCode.OK
    except BaseException as error:
        # From here on a second signal must not cut the report short.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        sentence, code = explain(error)
        if debug or code == ExitCode.INTERNAL:
            log.debug("%s", "".join(traceback.format_exception(error)))
        log.error("%s", sentence)
        if progress is not None:
            retry_after = error.retry_after if isinstance(error, TemporaryError) else None
            state = "interrupted" if code == ExitCode.INTERRUPTED else "failed"
            progress.finish(state, message=sentence, exit_code=int(code), retry_after=retry_after)
    if shipper is not None:
        shipper.close()
    logging.shutdown()
    if workdir is not None:
        shutil.rmtree(workdir, ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of libraries must not hold up the end or change the code


def _work(
    ctx: StageContext[S], run: Callable[[StageContext[S]], str | None], *, force: bool, exclusive: bool
) -> str | None:
    def found() -> bool:
        manifest = ctx.store.find(ctx.ref)
        if manifest is None or (force and manifest.run != ctx.run):
            return False
        log.info("found %s, made %s by run %s: nothing to do", ctx.ref, manifest.created.isoformat(), manifest.run)
        return True

    def fresh() -> str | None:
        if force and ctx.shard is None:
            ctx.store.remove(ctx.ref)
        ctx.progress.update(message="working")
        answer = run(ctx)
        if answer is not None:
            return answer
        if ctx.shard is None and ctx.store.find(ctx.ref) is None:
            raise RuntimeError(f"the stage ended without committing {ctx.ref}")
        log.info("committed %s", ctx.ref)
        return ctx.ref

    if found():
        return ctx.ref
    if not exclusive:
        return fresh()
    told: set[str] = set()

    def waiting(sentence: str) -> None:
        ctx.check_stop()
        if sentence not in told:
            told.add(sentence)
            log.info("%s", sentence)
            ctx.progress.update(message=sentence)

    with ctx.store.lease(ctx.ref, holder=f"run {ctx.run}", waiting=waiting):
        return ctx.ref if found() else fresh()


__all__ = [
    "BugurtError",
    "ConfigError",
    "DataError",
    "Interrupted",
    "SpecError",
    "StageContext",
    "TemporaryError",
    "explain",
    "load_spec",
    "main",
]
