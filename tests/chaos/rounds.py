"""One round from its beginning to its verdict."""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.clusters.base import JobState
from tests import warm
from tests.chaos import checks
from tests.chaos.kills import Killer, wait_until_gone
from tests.chaos.plan import Plan, Weather
from tests.chaos.world import ROOT, World, driver, goes_on, manifests, new_world
from tests.projects import Project
from tests.scrape.conftest import telegram_env
from tests.telegram.api import Api
from tests.telegram.channel import make_channel
from tests.telegram.faults import Faults
from tests.telegram.server import ServerThread, TelegramServer
from tests.test_pipeline import QUICK

POSTS = 160  # of the sample channel
MESSAGES = 700  # of the invented channel at Telegram
CALM = 120.0  # seconds in which a pipeline must say something on its way to its end, once nothing disturbs it
PATIENCE = 5  # times as many in which it must be there: on a machine that has other work, it may be slow
MAKES = {"scrape": "posts", "preprocess": "dataset", "train": "model", "generate": "batch"}
#: A training of three checkpoints: more steps would be struck no more often.
SHORT = ("--set", "train.max_steps=5", "--set", "train.eval_steps=2")
PIPELINE = ("submit", "pipeline", "--source", "export.json", "--model", "scratch:tiny", "--count", "16", *QUICK, *SHORT)
SCRAPE = (
    "submit", "scrape", "--source", "@bugurt_test",
    "--set", "scrape.as_of=2026-01-01T00:00:00Z",
    "--set", "scrape.shard_posts=100",
)  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """What undisturbed runs made: the bucket's folder, and its artefacts' digests."""

    bucket: Path
    pipeline: checks.Contents
    telegram: checks.Contents


@dataclass
class Result:
    """How a round went."""

    plan: Plan
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)  # that struck: an empty body has no byte to be changed
    kills: dict[str, int] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)  # what processes said about the weather
    requests: int = 0
    submissions: int = 0
    violations: list[str] = field(default_factory=list)


def export() -> str:
    """The first posts of the sample channel as a Desktop export."""
    whole = json.loads((ROOT / "examples" / "channel" / "result.json").read_text(encoding="utf-8"))
    whole["messages"] = whole["messages"][:POSTS]
    return json.dumps(whole, ensure_ascii=False)


@contextmanager
def telegram(faults: Faults) -> Iterator[dict[str, str]]:
    """A Telegram with the invented channel; gives the variables of a session."""
    server = TelegramServer(Api(make_channel(1, MESSAGES)), faults=faults)
    with ServerThread(server) as running:
        yield telegram_env(running.server)


def make_reference(folder: Path) -> Reference:
    """Run everything once, undisturbed."""
    kept = folder / "reference"
    with telegram(Faults()) as env, new_world(folder / "undisturbed") as world:
        project = world.add_project("project", export(), env)
        project.ok(*PIPELINE, "--wait")
        pipeline = checks.contents(world.bucket)
        project.ok(*SCRAPE, "--wait")
        everything = checks.contents(world.bucket)
        problems = [*checks.whole(world.bucket), *checks.posts_once(world.bucket), *checks.tidy(world)]
        assert not problems, problems
        shutil.copytree(world.bucket, kept)
    shutil.rmtree(kept / "runs")
    return Reference(kept, pipeline, {k: v for k, v in everything.items() if k not in pipeline})


def play_all(seeds: Iterable[int], base: Path, *, jobs: int, seconds: float = math.inf) -> Iterator[Result]:
    """A round for each seed, ``jobs`` of them side by side, as they end; none begins after so many seconds."""
    began = time.monotonic()
    with ExitStack() as stack:
        place = stack.enter_context(warm.running())
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reference-", dir=base)))
        with warm.using(place):
            reference = make_reference(work)
        # In processes of their own: a round runs commands in its process, with their folder and environment.
        context = multiprocessing.get_context("spawn")
        pool = stack.enter_context(ProcessPoolExecutor(jobs, mp_context=context))
        waiting, running = deque(seeds), set[Future[Result]]()
        while waiting or running:
            if time.monotonic() - began > seconds:
                waiting.clear()
            while waiting and len(running) < jobs:
                running.add(pool.submit(_play, Plan.of(waiting.popleft()), reference, base, place))
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in ended)


def _play(plan: Plan, reference: Reference, base: Path, place: str) -> Result:
    warm.keep_descriptions()
    with nullcontext() if plan.plain else warm.using(place):
        return play(plan, reference, base)


def play(plan: Plan, reference: Reference, base: Path) -> Result:
    """One round. What went against the promises stands in the result's ``violations``."""
    result = Result(plan)
    began = time.monotonic()
    folder = base / f"round-{plan.seed}"
    shutil.rmtree(folder, ignore_errors=True)  # what an earlier playing of this seed left for people to look at
    try:
        _round(plan, reference, folder, result)
    except Exception:
        result.violations.append(f"it broke off: {traceback.format_exc()}")
    result.seconds = time.monotonic() - began
    if not result.violations:
        shutil.rmtree(folder)
    return result


def _round(plan: Plan, reference: Reference, folder: Path, result: Result) -> None:
    weather = Weather(plan)
    with ExitStack() as stack:
        faults = Faults(*plan.at_telegram())
        env = stack.enter_context(telegram(faults)) if plan.telegram else {}
        world = stack.enter_context(new_world(folder, lambda bucket: _fill(bucket, plan, reference)))
        for name in ("one", "two")[: plan.twins]:
            project = world.add_project(name, export(), env)
            if plan.small_disk:
                world.limit_disk(project, plan.small_disk)
        killer = Killer(plan, folder, {world.server.pid})
        world.proxy.weather, world.proxy.skew, world.proxy.spot = weather, plan.skew, weather.spot
        killer.start()
        try:
            _drive(world, plan, time.monotonic() + plan.storm, _nothing)
        finally:
            killer.stop.set()
            killer.join()
        weather.clear()
        world.widen_disks()
        disturbed, calm = len(world.said), time.monotonic()
        if not _drive(world, plan, time.monotonic() + PATIENCE * CALM, result.violations.append, silence=CALM):
            result.violations.append(f"no end {time.monotonic() - calm:.0f} s after the last fault")
        result.violations += _after(world, plan, reference)
        result.faults, result.kills = dict(world.proxy.struck | weather.outages), dict(killer.sent)
        result.faults |= faults.fired()
        result.told = dict(checks.words(world))
        result.requests = len(world.proxy.requests)
        result.submissions = sum(1 for name, _ in world.said[:disturbed] if "submit" in name)


def _nothing(sentence: str) -> None:
    """During a storm anything may fail."""


def _fill(bucket: Path, plan: Plan, reference: Reference) -> None:
    """The undisturbed bucket without the artefacts that the round is to make."""
    shutil.copytree(reference.bucket, bucket, dirs_exist_ok=True)
    for stage in plan.make:
        for place in (bucket / MAKES[stage]).glob("*"):
            shutil.rmtree(place)
    if not plan.cache and (bucket / "cache").exists():
        shutil.rmtree(bucket / "cache")
    if plan.make[0] == "scrape":
        shutil.rmtree(bucket / "source")


def _arguments(plan: Plan, number: int) -> tuple[str, ...]:
    more: tuple[str, ...] = ("--name", "second") if number and plan.seed % 2 else ()
    if plan.telegram:
        return (*SCRAPE, *more)
    workers = ("--set", f"preprocess.workers={plan.workers}")
    return (*PIPELINE, *workers, "--shards", str(plan.shards), *more)


def _drive(
    world: World, plan: Plan, deadline: float, fault: Callable[[str], None], *, silence: float = math.inf
) -> bool:
    """Submit, and submit again what failed, until all pipelines are at their end; False when time runs out.

    That is at the deadline, or when no Job has logged anything for ``silence`` seconds. ``fault`` hears of
    submissions that fail, and of pipelines that fail more often than what was under way before may explain.
    """
    failures = {p.folder: 0 for p in world.projects}
    waiting = dict(enumerate(world.projects))
    logged, at = -1, time.monotonic()
    while waiting and time.monotonic() < min(deadline, at + silence):
        if (size := world.logged()) != logged:
            logged, at = size, time.monotonic()
        for number, project in list(waiting.items()):
            job = driver(project)
            if goes_on(job):
                continue
            if job is not None and job.state is JobState.SUCCEEDED:
                del waiting[number]
                continue
            if job is not None and job.state is JobState.FAILED:
                failures[project.folder] += 1
                if failures[project.folder] > 1:
                    fault(f"{project.folder.name}: {job.name} failed in calm weather: {job.reason}")
                    return True
            done = world.run(project, *_arguments(plan, number), "--detach")
            if done.returncode:
                fault(f"{project.folder.name}: submit ended with {done.returncode}: {done.stderr[-400:]}")
            elif "everything was found" in done.stdout:
                del waiting[number]
        time.sleep(0.1)  # the Jobs' state is in files
    return not waiting


def _after(world: World, plan: Plan, reference: Reference) -> list[str]:
    found: list[str] = []
    left = wait_until_gone(world.folder, {world.server.pid}, 20)
    found += [f"process {pid} is left: {command[:200]}" for pid, command in left.items()]
    if plan.telegram:
        # The artefacts of the pipeline that were copied are none of this round's.
        mine = {k: v for k, v in checks.contents(world.bucket).items() if k in reference.telegram}
        found += checks.same(mine, reference.telegram)
    else:
        skip = reference.telegram
        mine = {k: v for k, v in checks.contents(world.bucket).items() if k not in skip}
        found += checks.same(mine, reference.pipeline)
    found += checks.whole(world.bucket)
    found += checks.posts_once(world.bucket)
    found += checks.told(world, plan)
    found += checks.tidy(world)
    found += _statuses(world)
    found += [f"{sentence} (after gc)" for sentence in checks.reclaimed(world)]
    found += [f"{sentence} (after gc)" for sentence in checks.whole(world.bucket)]
    return found


def _statuses(world: World) -> Iterator[str]:
    """What the user is told is what is there."""
    made = {f"{body['kind']}/{body['id']}": body for _, body in manifests(world.bucket)}
    for project in world.projects:
        for run in _json(project, "runs"):
            status = _json(project, "status", run["run"])
            if status["state"] != "succeeded":
                yield f"{project.folder.name}: run {run['run']} is {status['state']}: {status['message']}"
            for stage in status["stages"]:
                if stage["artifact"] not in made:
                    yield f"{project.folder.name}: {run['run']}: {stage['stage']} tells of {stage['artifact']}"


def _json(project: Project, *arguments: str) -> Any:
    return project.json(*arguments)
