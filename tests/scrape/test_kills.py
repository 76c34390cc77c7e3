"""A scrape that is killed, at any moment and again and again, ends with every post once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.artifacts import ArtifactStore
from jobs.specs import ExitCode, ScrapeSpec
from tests.conftest import stage_env
from tests.telegram.channel import make_channel
from tests.telegram.faults import Faults, cut, delay, flood, hold
from tests.telegram.server import ServerThread

from .conftest import Serve, telegram_env
from .helpers import rows
from .test_telegram import check

KILLS = int(os.environ.get("BUGURT_KILLS", "12"))
HISTORY = "messages.GetHistory"


class Stage:
    """A scrape's process that a test can kill."""

    def __init__(self, spec: ScrapeSpec, env: dict[str, str], folder: Path, run: str = "kills") -> None:
        path = folder / "spec.json"
        path.write_text(spec.model_dump_json())
        self._log = (folder / "log.jsonl").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs.scrape", "--spec", str(path)],
            env=stage_env({}, run, env),
            stderr=self._log,
            cwd=folder,
        )

    def ends_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self) -> tuple[int, str, float]:
        """Exit code, log, and the most memory that it held (MiB), looked at every twentieth of a second.

        Not from ``wait4``: what that gives contains the memory of the test's own process at the fork.
        """
        most = 0.0
        while not self.ends_within(0.05):
            most = max(most, self.memory())
        return self.process.wait(), self.log(), most

    def memory(self) -> float:
        """The most memory so far (MiB); 0 when the process has just ended."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return 0.0

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()


def start(spec: ScrapeSpec, running: ServerThread, s3_env: dict[str, str], folder: Path) -> Stage:
    return Stage(spec, {**s3_env, **telegram_env(running.server)}, folder)


@pytest.mark.timeout(120 + 30 * KILLS)
def test_random_kills_lose_and_double_nothing(
    store: ArtifactStore, s3_env: dict[str, str], serve: Serve, tmp_path: Path
) -> None:
    """``BUGURT_KILLS`` times: SIGKILL or SIGTERM at a moment drawn over the whole life of the process."""
    rng = random.Random(int(os.environ.get("BUGURT_KILLS_SEED", "1")))
    number = kills = finished = 0
    life = 3.0  # seconds of an undisturbed process; measured with every one that ends by itself
    while kills < KILLS or finished == 0:
        number += 1
        channel = make_channel(number, 1200)
        running = serve(channel, faults=Faults(delay(0.02, HISTORY), cut(after_bytes=500, every=9, method=HISTORY)))
        spec = ScrapeSpec(channel="@bugurt_test", shard_posts=150, limit=10**6 + number)  # an artefact of its own
        while True:
            began = time.monotonic()
            stage = start(spec, running, s3_env, tmp_path)
            if kills >= KILLS or stage.ends_within(rng.uniform(0, life)):
                assert stage.process.wait(120) == 0, stage.log()
                life = max(1.0, time.monotonic() - began)
                break
            kills += 1
            sent = rng.choice((signal.SIGKILL, signal.SIGTERM))
            stage.process.send_signal(sent)
            # SIGTERM may come before the stage has its handler, or after its commit
            assert stage.process.wait(120) in ((-9,) if sent == signal.SIGKILL else (143, -15, 0)), stage.log()
        finished += 1
        check(rows(store, spec.ref()), channel)
    print(f"{kills} kills, {finished} scrapes finished")


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
