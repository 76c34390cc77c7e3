"""A scrape that is killed, at any moment and again and again, ends with every post once."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.artifacts import ArtifactStore
from jobs.specs import ExitCode, ScrapeSpec
from tests.telegram.channel import make_channel
from tests.telegram.faults import Faults, cut, delay, flood, hold
from tests.telegram.server import ServerThread

from .conftest import Serve, telegram_env
from .helpers import rows
from .stages import Stage
from .test_telegram import check

KILLS = int(os.environ.get("BUGURT_KILLS", "12"))
HISTORY = "messages.GetHistory"


def start(spec: ScrapeSpec, running: ServerThread, s3_env: dict[str, str], folder: Path) -> Stage:
    return Stage(spec, {**s3_env, **telegram_env(running.server)}, folder)


@pytest.mark.slow
@pytest.mark.timeout(120 + 30 * KILLS)
def test_random_kills_lose_and_double_nothing(
    store: ArtifactStore, s3_env: dict[str, str], serve: Serve, tmp_path: Path
) -> None:
    """``BUGURT_KILLS`` times SIGKILL or SIGTERM: three of four at a moment between the first page and the end."""
    rng = random.Random(int(os.environ.get("BUGURT_KILLS_SEED", "1")))
    number = kills = walking = finished = 0
    life = walk = 0.0  # seconds that a process takes, and from its first page on, when nobody disturbs it
    while kills < KILLS or finished < 2:
        number += 1
        channel = make_channel(number, 1200)
        running = serve(channel, faults=Faults(delay(0.05, HISTORY), cut(after_bytes=500, every=9, method=HISTORY)))
        spec = ScrapeSpec(channel="@bugurt_test", shard_posts=150, limit=10**6 + number)  # an artefact of its own
        while True:
            running.do(running.server.clear_log)
            asked = running.do(lambda server=running.server: server.reached(HISTORY))
            began = time.monotonic()
            stage = start(spec, running, s3_env, tmp_path)
            late = rng.random() < 0.75
            # killed after its commit, an earlier process has left nothing to ask for
            while (late or not life) and not asked.done() and not stage.ends_within(0.01):
                pass
            first = time.monotonic()
            if not life or kills >= KILLS or stage.ends_within(rng.uniform(0, walk if late else life)):
                assert stage.process.wait(120) == 0, stage.log()
                if not life:
                    life, walk = time.monotonic() - began, time.monotonic() - first
                break
            sent = rng.choice((signal.SIGKILL, signal.SIGTERM))
            stage.process.send_signal(sent)
            # Either may come after the commit, at the process's end; SIGTERM before the stage has its handler.
            code = stage.process.wait(120)
            assert code in ((-9, 0) if sent == signal.SIGKILL else (143, -15, 0)), stage.log()
            kills += code != 0
            walking += code != 0 and running.server.count(HISTORY) > 0
        finished += 1
        check(rows(store, spec.ref()), channel)
    print(f"{kills} kills, {walking} of them during the walk, {finished} scrapes finished")
    assert walking > KILLS // 3


@pytest.mark.plain
def test_sigterm_keeps_what_was_read(
    store: ArtifactStore, s3_env: dict[str, str], serve: Serve, tmp_path: Path
) -> None:
    """SIGTERM in the middle of a shard: exit 143 at once, and the next attempt asks for none of it again."""
    channel = make_channel(1, 1000)
    held, gate = hold(HISTORY, at=7)
    running = serve(channel, faults=Faults(held))
    spec = ScrapeSpec(channel="@bugurt_test")
    stage = start(spec, running, s3_env, tmp_path)
    gate.reached.result(60)  # the newest id and five pages are there, the sixth is being waited for
    stage.process.send_signal(signal.SIGTERM)
    code, log, _ = stage.end()
    gate.release()
    assert code == ExitCode.INTERRUPTED, log
    assert json.loads(store.bucket.get_bytes("runs/kills/scrape/progress.json"))["state"] == "interrupted"
    assert store.find(spec.ref()) is None
    running.do(running.server.clear_log)
    stage = start(spec, running, s3_env, tmp_path)
    code, log, _ = stage.end()
    assert code == 0, log
    assert "going on after message" in log
    first = running.server.histories()[1]["offset_id"]
    assert first > 450
    check(rows(store, spec.ref()), channel)
    assert [f.path for f in store.manifest(spec.ref()).files] == ["part-00000.parquet"]


def test_an_interrupted_scrape_ends_with_the_same_shards(
    store: ArtifactStore, s3_env: dict[str, str], serve: Serve, tmp_path: Path
) -> None:
    digests: list[list[Any]] = []
    for attempt in range(2):
        channel = make_channel(2, 700)
        held, gate = hold(HISTORY, at=5)
        running = serve(channel, faults=Faults(*([held] if attempt else [])))
        spec = ScrapeSpec(channel="@bugurt_test", shard_posts=250, limit=10**6 + attempt)
        stage = start(spec, running, s3_env, tmp_path)
        if attempt:
            gate.reached.result(60)
            stage.process.send_signal(signal.SIGTERM)
            assert stage.end()[0] == ExitCode.INTERRUPTED
            gate.release()
            stage = start(spec, running, s3_env, tmp_path)
        assert stage.end()[0] == 0
        digests.append([(f.path, f.sha256) for f in store.manifest(spec.ref()).files])
    assert digests[0] == digests[1]


@pytest.mark.plain
@pytest.mark.slow
def test_a_large_channel_with_everything_going_wrong(
    store: ArtifactStore, s3_env: dict[str, str], serve: Serve, tmp_path: Path
) -> None:
    """32,000 messages with flood waits, two dropped connections and a SIGKILL; memory under 250 MiB throughout."""
    channel = make_channel(5, 32_000)
    faults = Faults(flood(1, at=(20, 200)), cut(after_bytes=3000, at=(60, 250)))
    running = serve(channel, faults=faults)
    spec = ScrapeSpec(channel="@bugurt_test")
    stage = start(spec, running, s3_env, tmp_path)
    running.wait_for(HISTORY, 150, timeout=120)
    before = stage.memory()
    stage.process.kill()
    assert stage.end()[0] == -9
    running.do(running.server.clear_log)
    stage = start(spec, running, s3_env, tmp_path)
    code, log, after = stage.end()
    assert code == 0, log
    assert running.server.count(HISTORY) < 260  # two shards of 5,000 had been uploaded at least
    check(rows(store, spec.ref()), channel)
    print(f"most memory: {before:.0f} and {after:.0f} MiB")
    assert min(before, after) > 50
    assert max(before, after) < 250


@pytest.mark.plain
def test_memory_does_not_grow_with_the_channel(
    store: ArtifactStore, s3_env: dict[str, str], serve: Serve, tmp_path: Path
) -> None:
    held = []
    for count in (1_000, 9_000):
        running = serve(make_channel(6, count))
        stage = start(ScrapeSpec(channel="@bugurt_test", shard_posts=500, limit=count), running, s3_env, tmp_path)
        code, log, most = stage.end()
        assert code == 0, log
        held.append(most)
    assert held[1] < held[0] + 25
