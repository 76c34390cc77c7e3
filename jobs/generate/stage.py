"""The generate stage: draw the parts of a batch, put them together, commit.

A part that has been drawn lies in the bucket as a committed folder ``batch/ID/parts/FROM/NAME`` until the batch
itself is committed; whoever comes later finds it and does not draw it again. FROM is a digest of what it was drawn
from: a model that was trained again by force has its old id and other weights. The process that sees the last part
of the batch in the bucket puts the batch together, holding the lease on it, so that it is committed once.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from jobs.artifacts import MANIFEST, ArtifactStore, Lease, Manifest
from jobs.generate.convert import WEIGHT_FILES
from jobs.generate.engines import Engine, Setting, open_engine
from jobs.generate.finish import Finish, account
from jobs.generate.gates import Gates
from jobs.generate.heap import trim
from jobs.generate.language import TEXT_FILES, Language, read_language
from jobs.generate.merge import Merge
from jobs.generate.parts import HOPELESS, Drawing, Part, Plan, Tally, again, worth_drawing
from jobs.generate.prompts import Prompts, open_prompts
from jobs.generate.records import record, to_line
from jobs.generate.spares import Spares
from jobs.generate.training import TRAIN, Training, open_training
from jobs.specs import ConfigError, DataError, GenerateSpec
from jobs.stage import StageContext

log = logging.getLogger(__name__)

POSTS = "posts-*.jsonl"  # a part's posts
SPARES = "spares-*.jsonl"  # those that passed and were not needed, where there are some
PARTS = "parts/"  # the folder of a batch's parts


def cores() -> int:
    """Cores that this process may use: ``BUGURT_CORES``, else its affinity and the container's CPU limit."""
    given = os.environ.get("BUGURT_CORES", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2, so no limit that could be read
    return count


@dataclass
class _Tools:
    """What drawing needs, opened once and only when something is to be drawn."""

    engine: Engine
    prompts: Prompts
    gates: Gates


def folder_of_parts(ctx: StageContext[GenerateSpec], store: ArtifactStore, model: Manifest) -> str:
    """Where a batch's parts lie: apart from those that were drawn from other weights or compared with other posts.

    By force they are drawn anew, so that a run finds its own only.
    """
    made_from = model.digest(*WEIGHT_FILES, *TEXT_FILES)[:12]
    dataset = store.find(ref) if (ref := model.inputs.get("dataset")) else None
    compared = dataset.digest(TRAIN)[:12] if dataset else "none"
    return f"{ctx.ref}/{PARTS}{made_from}-{compared}" + (f"-{ctx.run}" if ctx.force else "")


class Generation:
    """One process's work on a batch."""

    def __init__(self, ctx: StageContext[GenerateSpec]) -> None:
        self.ctx = ctx
        self.spec = ctx.spec
        self.plan = Plan(self.spec.count, self.spec.micro_batch)
        self.model: Manifest = ctx.input("model")
        self.parts = folder_of_parts(ctx, ctx.store, self.model)
        self._folder = ctx.workdir / "model"
        self._folder.mkdir()
        self._drawn: _Tools | None = None
        self._lock = threading.Lock()
        self._speed = _Speed()
        ctx.store.download(self.model.ref, self._folder, *TEXT_FILES, manifest=self.model)
        self.language: Language = read_language(self._folder, self.model.ref)
        self.training: Training | None = open_training(ctx.store, self.model, self.spec, ctx.workdir / "dataset")
        # Prompts are checked before anything is drawn, and before the weights are fetched.
        self._prompts = open_prompts(self.spec, ctx.store, self.language, self.training)

    # -- the bucket

    def committed(self) -> bool:
        """Whether somebody has committed the batch meanwhile."""
        return self.ctx.found() is not None

    def _there(self) -> set[str]:
        """Names of the parts that are in the bucket, whole."""
        under = f"{self.parts}/"
        end = f"/{MANIFEST}"
        return {o.path[len(under) : -len(end)] for o in self.ctx.store.bucket.list(under) if o.path.endswith(end)}

    def waiting(self, sentence: str) -> None:
        """Called while somebody else holds a lease."""
        self.ctx.check_stop()
        self.ctx.progress.update(message=sentence)

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Hold a lease meanwhile: what is written is written only as long as it is ours."""
        ctx = self.ctx
        with ctx.store.lease(name, holder=f"run {ctx.run}", waiting=self.waiting) as lease:
            ctx.lease = lease
            try:
                yield
            finally:
                ctx.lease = None

    def draw_share(self, shard: int) -> None:
        """Draw the parts of one shard; another process with the same share, such as that of a lost node, waits."""
        shards = self.ctx.spec.shards
        with self.holding(f"{self.parts}/shard-{shard}-of-{shards}"):
            self.draw(part for part in self.plan if part.number % shards == shard)

    # -- drawing

    def _tools(self) -> _Tools:
        if self._drawn is None:
            spec = self.spec
            setting = Setting(
                spec=spec,
                store=self.ctx.store,
                manifest=self.model,
                language=self.language,
                folder=self._folder,
                workers=spec.workers or max(1, cores() // spec.threads),
                waiting=self.waiting,
            )
            self._drawn = _Tools(open_engine(setting), self._prompts, Gates(spec, self.language, self.training))
            log.info("drawing with %s, %d at a time", self._drawn.engine.label, self._drawn.engine.sessions)
        return self._drawn

    def draw(self, parts: Iterable[Part]) -> None:
        """Draw those parts that are not in the bucket, several at a time, and put them there.

        Raises DataError when a part of the first round is hopeless.
        """
        there = self._there()
        todo = [p for p in parts if p.name not in there]
        self._speed.expect(sum(len(p.slots) for p in todo))
        if not todo:
            return
        with _memory_said("the model does not fit into memory", "take a smaller one, or give the stage more"):
            tools = self._tools()
        queue = iter(todo)
        lease = self.ctx.lease  # which is still what a part is bound by that ends after all others were given up
        pool = ThreadPoolExecutor(tools.engine.sessions, thread_name_prefix="draw")
        running: set[Future[None]] = set()
        try:
            while True:
                # Only so many are handed over at once, so that a long batch is no long queue.
                while len(running) < tools.engine.sessions and (part := next(queue, None)) is not None:
                    if part.round == 0 and self.committed():
                        return  # another process was faster
                    running.add(pool.submit(self._part, tools, part, lease))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _part(self, tools: _Tools, part: Part, lease: Lease | None) -> None:
        began = time.monotonic()
        store, spec = self.ctx.store, self.spec
        seed = part.seed(spec.seed)
        # A session may load the model anew, and sample with as many rows as a batch has.
        with _memory_said(
            f"{spec.micro_batch} posts at once do not fit into memory",
            "lower 'micro_batch' or 'max_new_tokens', or give the stage more",
        ):
            session = tools.engine.session(seed)
            drawing = Drawing(part, session, tools.prompts, tools.gates, spec, self._checker(part))
            found = drawing.run()
        tally = drawing.tally
        if part.round == 0 and not found and tally.drawn >= HOPELESS:
            raise DataError(f"none of {tally.drawn} drawn posts passed the gates: {account(tally)}")
        writer = store.writer(f"{self.parts}/{part.name}", guard=lease.ensure if lease else None)
        for name, posts in ((POSTS, found), (SPARES, drawing.spares)):
            data = b"".join(to_line(record(a, seed=seed, model=self.model.ref)) for a in posts)
            # Runs with other numbers of shards may draw the same part: each manifest names files of its own.
            if data or name == POSTS:
                writer.put_bytes(name.replace("*", sha256(data).hexdigest()[:12]), data)
        writer.commit(
            stage="generate-part",
            spec={"round": part.round, "number": part.number, "slots": len(part.slots)},
            counts={"posts": len(found)},
            info={"tally": tally.plain(), "engine": tools.engine.label},
            run=self.ctx.run,
        )
        with self._lock:
            self._speed.finished(part.name, len(found), tally)
        log.info(
            "part %s: %d posts of %d drawn, %.1f posts/s", part.name, len(found), tally.drawn,
            len(found) / max(1e-9, time.monotonic() - began),
        )  # fmt: skip
        self._report()
        del session, drawing, found, writer
        trim()

    def _checker(self, part: Part) -> Callable[[Tally, int], None]:
        def check(tally: Tally, accepted: int) -> None:
            self.ctx.check_stop()
            with self._lock:
                self._speed.running(part.name, accepted, tally)
            self._report()

        return check

    def _report(self) -> None:
        with self._lock:
            values = self._speed.values()
        self.ctx.progress.update(message="drawing posts", unit="posts", **values)

    # -- putting together

    def complete(self) -> bool:
        """Whether all parts of the first round are in the bucket."""
        there = self._there()
        return all(part.name in there for part in self.plan)

    def finish(self) -> None:
        """Put the batch together and commit it. Raises DataError when no post passed."""
        parts: Sequence[Part] = self.plan
        rounds = 1
        folder = self.ctx.workdir / "parts"
        folder.mkdir(exist_ok=True)
        tally = Tally()
        engine = ""
        spares = Spares(self.plan, self._prompts)
        with Merge(self.ctx.workdir / "merge", self.spec.near_duplicates) as merge:
            while True:
                self.draw(parts)
                if self.ctx.lease is not None:  # whoever has taken it over may have cleared the parts away
                    self.ctx.lease.ensure(ask=True)
                self.ctx.progress.update(message="putting the batch together")
                for part in parts:
                    self.ctx.check_stop()
                    manifest = self._fetch(part, folder)
                    tally.merge(Tally.of(manifest.info["tally"]))
                    engine = str(manifest.info["engine"])
                    if part.round == 0 and manifest.matching(SPARES):
                        spares.put(part.number, folder / f"{part.name}-spares.jsonl")
                first = merge.rounds
                merge.add([folder / f"{part.name}.jsonl" for part in parts])
                lost = merge.lost(first)
                stand_in = folder / f"instead-{merge.rounds}.jsonl"
                while lost and (taken := spares.take(list(lost), stand_in)):
                    log.info("%d posts are like posts in other parts; spare ones stand in for %d", len(lost), taken)
                    tally.spare -= taken
                    merge.add([stand_in])
                    lost = merge.lost(first)
                    stand_in = folder / f"instead-{merge.rounds}.jsonl"
                wanted = worth_drawing(lost, self.spec, tally)
                if not wanted:
                    break
                log.info("%d posts are near-duplicates of posts in other parts and are drawn again", len(wanted))
                parts = again(rounds, wanted, self.spec.micro_batch)
                rounds += 1
            tally.refused["near_duplicate"] += merge.dropped
            if not merge.kept.any():
                raise DataError(f"none of {tally.drawn} drawn posts passed the gates: {account(tally)}")
            if self.ctx.force:  # the old manifest must not vouch for the new files
                if self.ctx.lease is not None:
                    self.ctx.lease.ensure(ask=True)
                self.ctx.store.remove(self.ctx.ref, but=PARTS)
            # The end of a batch takes memory of its own, and nothing is drawn any more: it gets what an engine had that
            # keeps the model from part to part.
            self._drawn = None
            trim()
            Finish(self.ctx, self.model, self.language, self.training).commit(
                merge, self.plan, tally, engine=engine, rounds=rounds
            )

    def _fetch(self, part: Part, folder: Path) -> Manifest:
        store, ref = self.ctx.store, f"{self.parts}/{part.name}"
        manifest = store.manifest(ref)
        for pattern, name in ((POSTS, part.name), (SPARES, f"{part.name}-spares")):
            if entries := manifest.matching(pattern):
                data = b"".join(store.read(ref, entry) for entry in entries)
                (folder / f"{name}.jsonl").write_bytes(data)
        return manifest

    def clear(self) -> None:
        """Remove the parts: the batch has them now."""
        bucket = self.ctx.store.bucket
        bucket.delete([o.path for o in bucket.list(f"{self.parts}/")])


def _out_of_memory(error: BaseException) -> bool:
    """Whether an engine says that it got no memory; each has its own words for it."""
    words = ("out of memory", "bad_alloc", "can't allocate memory", "_STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(w in str(error) for w in words)


@contextmanager
def _memory_said(what: str, remedy: str) -> Iterator[None]:
    """Raises ConfigError when what is done meanwhile ends for want of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        cause = " ".join(str(error).split())[:160]
        raise ConfigError(f"{what} ({cause}): {remedy}") from error


class _Speed:
    """Posts and tokens a second of this process, over all its parts."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._total = 0
        self._done: tuple[int, int, int] = (0, 0, 0)  # accepted posts, draws, tokens
        self._open: dict[str, tuple[int, int, int]] = {}

    def expect(self, posts: int) -> None:
        self._total += posts

    def running(self, name: str, accepted: int, tally: Tally) -> None:
        self._open[name] = (accepted, tally.drawn, tally.tokens)

    def finished(self, name: str, accepted: int, tally: Tally) -> None:
        self._open.pop(name, None)
        done = self._done
        self._done = (done[0] + accepted, done[1] + tally.drawn, done[2] + tally.tokens)

    def values(self) -> dict[str, Any]:
        """Fields for the progress report."""
        posts, drawn, tokens = (sum(v) for v in zip(self._done, *self._open.values(), strict=True))
        seconds = max(1e-9, time.monotonic() - self._began)
        values: dict[str, Any] = {
            "done": posts,
            "total": self._total,
            "posts_per_second": round(posts / seconds, 2),
            "tokens_per_second": round(tokens / seconds),
            "passing": round(posts / drawn, 3) if drawn else None,
        }
        if posts:
            values["seconds_left"] = round((self._total - posts) * seconds / posts)
        return values


def run(ctx: StageContext[GenerateSpec]) -> str | None:
    """Make the batch, or this process's share of it; None once it is committed, else its reference."""
    work = Generation(ctx)
    plan: Sequence[Part] = work.plan
    log.info("%d posts in %d parts", ctx.spec.count, len(plan))
    if ctx.shard is None:  # the lease on the batch is held already
        work.finish()
        work.clear()
        return None
    work.draw_share(ctx.shard)
    if not work.committed() and not work.complete():
        log.info("shard %d has its parts; other shards are still at work", ctx.shard)
        return ctx.ref
    with work.holding(ctx.ref):
        if not work.committed():
            work.finish()
        work.clear()
    return None
