"""The stage contract: read the spec, open the inputs, run, commit; progress, logs, signals and exit codes.

A stage's package calls ``main(SpecType, run)`` from its ``__main__``. ``run`` gets a StageContext, commits the
artefact ``ctx.ref`` and returns. What a container is told besides its spec comes from the environment:

- ``BUGURT_SPEC``: the spec as JSON text, a file or an ``s3://`` address (``--spec`` wins over it);
- ``BUGURT_RUN``: the run that this belongs to; logs and progress go to ``runs/RUN/STAGE/``;
- ``BUGURT_STEP``: the folder there where it is not STAGE: a run of several channels has ``scrape-2`` and so on;
- ``BUGURT_FORCE``: do it again although the artefact is there;
- ``JOB_COMPLETION_INDEX``: which shard this is, as Kubernetes sets it for Indexed Jobs;
- ``BUGURT_S3_*``: the bucket (``jobs.s3``).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from jobs import __version__
from jobs.artifacts import MANIFEST, ArtifactStore, ArtifactWriter, Bucket, Lease, Manifest, S3Settings
from jobs.leases import release_all
from jobs.reporting import LogShipper, ProgressReporter, configure_logging
from jobs.signals import Signalled, Signals
from jobs.specs import (
    RUN_NAME,
    BugurtError,
    ConfigError,
    DataError,
    ExitCode,
    Interrupted,
    NotFoundError,
    SpecError,
    StageSpec,
    TemporaryError,
    parse_spec,
)

S = TypeVar("S", bound=StageSpec)
log = logging.getLogger("bugurt")
ADHOC = "adhoc"  # the run of a stage that was started by hand


class StageContext(Generic[S]):
    """What a stage works with.

    ``spec``: what to make; ``ref``: the artefact's ``kind/id``; ``store``: the bucket; ``run``: the run's name;
    ``shard``: this process's index among ``spec.shards``, or None; ``workdir``: an empty folder that is removed
    at the end; ``progress``: for the user's eyes; ``stop``: set once SIGTERM or SIGINT has arrived; ``force``: make
    it although it is there.
    """

    def __init__(
        self, spec: S, store: ArtifactStore, *, run: str, shard: int | None, workdir: Path, progress: ProgressReporter,
        step: str | None = None, force: bool = False,
    ) -> None:  # fmt: skip
        self.spec = spec
        self.store = store
        self.run = run
        self.shard = shard
        self.step = step or spec.stage
        self.force = force
        self.workdir = workdir
        self.progress = progress
        self.log = log
        self.ref = spec.ref()
        self.started = datetime.now(UTC)
        self.stop = threading.Event()
        self.lease: Lease | None = None  # on what this process writes: the artefact, or a shard's share of it
        self._graceful = False
        self._made_from: dict[str, datetime] = {}

    @property
    def folder(self) -> str:
        """This stage's folder of the run: ``runs/RUN/STAGE``, or ``runs/RUN/STEP`` where a run has several of it."""
        return f"runs/{self.run}/{self.step}"

    def input(self, name: str) -> Manifest:
        """The manifest of an input, by the spec's field. Raises SpecError when the spec leaves it out."""
        ref = self.spec.inputs().get(name)
        if ref is None:
            raise SpecError(f"the {self.spec.stage} spec needs the field '{name}'")
        return self.store.manifest(ref)

    def writer(self) -> ArtifactWriter:
        """A writer for the artefact that the spec names; it writes while the lease is ours."""
        return self.store.writer(self.ref, guard=self.lease.ensure if self.lease else None)

    def found(self) -> Manifest | None:
        """The artefact, if it is what this process was asked for; raises DataError when its manifest is damaged.

        By force that is only what this run has made: a forced Job that is tried again must find what its first try
        made. A stage that was started by hand, without a run's name, has no earlier tries.
        """
        try:
            manifest = self.store.find(self.ref)
        except DataError as error:
            if not self.force:
                raise DataError(f"{error}; --force makes it again") from error
            log.warning("%s; it is made again", error)
            return None
        if manifest is None or (self.force and (manifest.run != self.run or self.run == ADHOC)):
            return None
        return manifest

    def make_room(self) -> None:
        """Remove what is there before it is made anew by force, but not what an earlier try of this run left."""
        marker = f"{self.folder}/forced.json"
        ours = json.dumps({"artifact": self.ref}).encode()
        committed = self.store.bucket.head(f"{self.ref}/{MANIFEST}") is not None
        if not committed and self.run != ADHOC and self._get(marker) == ours:
            return
        self.store.remove(self.ref)
        self.store.bucket.put_bytes(marker, ours)

    def _get(self, path: str) -> bytes | None:
        try:
            return self.store.bucket.get_bytes(path)
        except NotFoundError:
            return None

    def commit(
        self,
        writer: ArtifactWriter,
        *,
        counts: Mapping[str, int | float],
        info: Mapping[str, Any] | None = None,
        parent: str | None = None,
    ) -> Manifest:
        """Commit the artefact with this stage's spec, inputs and run filled in.

        Raises TemporaryError, and commits nothing, when the lease was lost: another process may be at work.
        """
        if self.lease is not None:
            self.lease.ensure(ask=True)
        writer.started = min(writer.started, self.started)  # the work began before the first file of it was written
        return writer.commit(
            stage=self.spec.stage,
            spec=self.spec.model_dump(mode="json"),
            inputs=self.spec.inputs(),
            parent=parent,
            counts=counts,
            info=info,
            run=self.run,
            made_from=self._made_from,
        )

    def note_inputs(self) -> None:
        """Remember which making of its inputs the artefact is made from, before anything of them is read."""
        for name, ref in self.spec.inputs().items():
            found = self.store.find(ref)
            if found is not None:
                self._made_from[name] = found.created

    def handle_stop(self) -> None:
        """The stage watches ``stop`` itself from now on: signals no longer raise anything in it."""
        self._graceful = True

    def check_stop(self) -> None:
        """Raise Interrupted once a signal has arrived, and TemporaryError once the lease is lost."""
        if self.stop.is_set():
            raise Interrupted("interrupted by a signal")
        lease = self.lease  # another thread may be giving it back
        if lease is not None and lease.lost.is_set():
            lease.ensure()

    def _on_signal(self, number: int) -> None:
        again = self.stop.is_set()
        self.stop.set()
        if not self._graceful or (again and number == signal.SIGINT):
            raise Signalled(number)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """As argparse does it, but with the exit code that says that trying again is useless."""
        self.print_usage(sys.stderr)
        self.exit(ExitCode.BAD_SPEC, f"{self.prog}: error: {message}\n")


def load_spec(spec_type: type[S], text: str, env: Mapping[str, str] = os.environ) -> S:
    """Read a spec from JSON text, a file, or an ``s3://BUCKET/KEY`` address. Raises SpecError."""
    where = "the spec"
    if not text.lstrip().startswith("{"):
        where, text = text, _read_spec(text, env)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{where} is not valid JSON: {error}") from error
    stage = spec_type.model_fields["stage"].default
    if isinstance(data, dict) and data.get("stage", stage) != stage:
        raise SpecError(f"{where}: stage: this is the {stage} stage, not {str(data['stage'])[:60]!r}")
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
        return str(error) or "interrupted", ExitCode.INTERRUPTED
    if isinstance(error, MemoryError):
        return "out of memory; give the stage more, or ask for smaller batches", ExitCode.TRY_AGAIN
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" ({error.filename})" if error.filename else ""
        return f"the disk is full{place}; free some space and try again", ExitCode.TRY_AGAIN
    if isinstance(error, OSError):
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{place}", ExitCode.TRY_AGAIN
    text = " ".join(str(error).split())[:500]
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_relative_to(Path(__file__).parent)] or frames
    place = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    sentence = f"internal error{place}, please report it with the output of --debug: {type(error).__name__}: {text}"
    return sentence, ExitCode.INTERNAL


def _shard(env: Mapping[str, str], spec: StageSpec) -> int | None:
    text = env.get("JOB_COMPLETION_INDEX")
    if text is None or not hasattr(spec, "shards"):
        return None
    if not (text.isascii() and text.isdigit()) or int(text) >= spec.shards:
        raise SpecError(f"JOB_COMPLETION_INDEX is {text!r}, but the spec has {spec.shards} shards")
    return int(text)


def main(
    spec_type: type[S],
    run: Callable[[StageContext[S]], str | None],
    *,
    argv: Sequence[str] | None = None,
    description: str = "",
    prepare: Callable[[S], None] | None = None,
) -> NoReturn:
    """Run a stage as a process and exit with its code.

    ``run`` returns None after it has committed ``ctx.ref``, or the reference of an artefact that already is the
    answer (a scrape that found nothing new returns its parent). It holds the lease on the artefact meanwhile, so
    that two processes asked for the same one do not write over each other; only one of several shards, which
    work side by side, takes leases of its own.

    ``prepare`` is called in a thread once the spec is read, while the bucket is asked whether there is anything to do:
    for imports that ``run`` will need. What it raises is left to ``run`` to meet again.
    """
    stage = spec_type.model_fields["stage"].default
    parser = _Parser(prog=f"python -m jobs.{stage}", description=description or spec_type.__doc__)
    parser.add_argument("--spec", help="a JSON file or an s3:// address (default: the variable BUGURT_SPEC)")
    parser.add_argument("--force", action="store_true", help="do it again although the artefact is there")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and debug messages")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(argv)
    process = _Process(spec_type, run, options, prepare)
    try:
        try:
            code = process.work()
        except BaseException as error:
            process.signals.ignored = True  # a second signal must not cut the report short
            code = process.failed(error)
    except KeyboardInterrupt as error:  # a signal between that except and its first line
        process.signals.ignored = True
        code = process.failed(error)
    process.close()
    os._exit(code)  # threads of libraries must not hold up the end or change the code


class _Process(Generic[S]):
    """One attempt of a stage: from the environment to the last report."""

    def __init__(
        self,
        spec_type: type[S],
        run: Callable[[StageContext[S]], str | None],
        options: argparse.Namespace,
        prepare: Callable[[S], None] | None,
    ) -> None:
        self._spec_type, self._run, self._options, self._prepare = spec_type, run, options, prepare
        self.signals = Signals()
        self._debug = options.debug or os.environ.get("BUGURT_DEBUG", "") not in ("", "0")
        self._stage = spec_type.model_fields["stage"].default
        self._workdir: Path | None = None
        self._progress: ProgressReporter | None = None
        self._shipper: LogShipper | None = None
        configure_logging(debug=self._debug)
        threading.excepthook = lambda args: log.error(
            "in thread %s: %s", args.thread and args.thread.name, args.exc_value
        )

    def work(self) -> ExitCode:
        """Do it; raises whatever it ends in."""
        self.signals.install()
        env = os.environ
        parent = env.get("BUGURT_WORKDIR") or None
        if parent is not None and not Path(parent).is_dir():
            raise ConfigError(f"BUGURT_WORKDIR: {parent} is no folder")
        self._workdir = Path(tempfile.mkdtemp(prefix=f"bugurt-{self._stage}-", dir=parent))
        log_file = self._workdir / "log.txt"
        configure_logging(debug=self._debug, file=log_file)
        text = self._options.spec or env.get("BUGURT_SPEC")
        if not text:
            raise SpecError("no spec: give --spec FILE or set BUGURT_SPEC")
        spec = load_spec(self._spec_type, text, env)
        run_name = env.get("BUGURT_RUN") or ADHOC
        if not re.fullmatch(RUN_NAME, run_name):
            raise SpecError(f"BUGURT_RUN: {run_name!r} is not a run's name (lower-case letters, digits, -; at most 31)")
        step = env.get("BUGURT_STEP") or self._stage
        if not re.fullmatch(rf"{self._stage}(-[0-9]{{1,3}})?", step):
            raise SpecError(f"BUGURT_STEP: {step[:60]!r} is no step of the {self._stage} stage, as {self._stage}-2 is")
        shard = _shard(env, spec)
        # Before the client of S3 is made, which takes a while: whoever looks sees at once what has started.
        log.info("bugurt %s, stage %s, run %s: makes %s", __version__, self._stage, run_name, spec.ref())
        if self._prepare is not None:
            threading.Thread(target=_prepared, args=(self._prepare, spec), name="prepare", daemon=True).start()
        store = ArtifactStore.from_env(env)
        scratch = self._workdir / "work"
        scratch.mkdir()
        folder = f"runs/{run_name}/{step}" + (f"/shard-{shard:05d}" if shard is not None else "")
        self._progress = ProgressReporter(
            store.bucket, f"{folder}/progress.json", stage=self._stage, run=run_name, shard=shard
        )
        force = self._options.force or env.get("BUGURT_FORCE", "") not in ("", "0")
        ctx = StageContext(
            spec, store, run=run_name, shard=shard, workdir=scratch, progress=self._progress, step=step, force=force
        )
        self.signals.handler = ctx._on_signal
        store.bucket.check()
        self._shipper = LogShipper(store.bucket, f"{folder}/log.txt", log_file)
        self._progress.start()
        answer = _work(ctx, self._run)
        self.signals.ignored = True  # it is committed: nothing is left to interrupt
        self._progress.finish("succeeded", artifact=answer)
        return ExitCode.OK

    def failed(self, error: BaseException) -> ExitCode:
        """Report how it ended."""
        release_all()  # a signal may have come in the moment before one was given back
        sentence, code = explain(error)
        if self.signals.raised is not None and code != ExitCode.INTERRUPTED:
            # Some libraries make an error of their own of it: an extension module that is being imported does.
            log.debug("after a signal: %s", sentence)
            sentence, code = explain(self.signals.raised)
        if self._debug:
            log.debug("%s", "".join(traceback.format_exception(error)))
        log.error("%s", sentence)
        if self._progress is not None and self._progress.started:
            retry_after = error.retry_after if isinstance(error, TemporaryError) else None
            state = "interrupted" if code == ExitCode.INTERRUPTED else "failed"
            self._progress.finish(state, message=sentence, exit_code=int(code), retry_after=retry_after)
        return code

    def close(self) -> None:
        """Send the rest of the log and leave nothing behind."""
        if self._shipper is not None:
            self._shipper.close()
        logging.shutdown()
        logging.disable()  # else a thread that is left would open log.txt anew, which raises where its folder is gone
        if self._workdir is not None:
            shutil.rmtree(self._workdir, ignore_errors=True)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # whoever read them is gone
                stream.flush()


def _prepared(prepare: Callable[[S], None], spec: S) -> None:
    try:
        prepare(spec)
    except Exception as error:
        log.debug("preparing: %s", error)


def _work(ctx: StageContext[S], run: Callable[[StageContext[S]], str | None]) -> str | None:
    def found() -> bool:
        manifest = ctx.found()
        if manifest is None:
            return False
        log.info("found %s, made %s by run %s: nothing to do", ctx.ref, manifest.created.isoformat(), manifest.run)
        return True

    def fresh() -> str | None:
        if ctx.force and ctx.shard is None:
            ctx.make_room()
        ctx.note_inputs()
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
    if ctx.shard is not None:
        return fresh()
    told: set[str] = set()

    def waiting(sentence: str) -> None:
        ctx.check_stop()
        if sentence not in told:
            told.add(sentence)
            log.info("%s", sentence)
            ctx.progress.update(message=sentence)

    with ctx.store.lease(ctx.ref, holder=f"run {ctx.run}", waiting=waiting) as ctx.lease:
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
