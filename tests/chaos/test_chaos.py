"""Some rounds of chaos, and that its checks see what they look for."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.record import Post
from jobs.scrape.parquet import write_shard
from tests.chaos import checks
from tests.chaos.plan import KINDS, Plan
from tests.chaos.rounds import play_all

#: Two batches with kills, lost answers and clocks that differ, a scrape from Telegram, and a whole pipeline.
ROUNDS = int(os.environ.get("CHAOS_ROUNDS") or 4)


@pytest.mark.slow
@pytest.mark.timeout(300 + 30 * ROUNDS)
def test_rounds_of_chaos_break_no_promise(tmp_path: Path) -> None:
    """More of them: ``make test CHAOS_ROUNDS=50``, or ``make chaos ROUNDS=1000``."""
    results = list(play_all(range(1, ROUNDS + 1), tmp_path, jobs=min(4, ROUNDS)))
    assert [v for r in results for v in r.violations] == []
    assert sum(sum(r.kills.values()) for r in results) >= 4
    assert sum(sum(r.faults.values()) for r in results) >= 4


def test_a_seed_means_the_same_plan_and_all_of_them_everything() -> None:
    plans = [Plan.of(seed) for seed in range(400)]
    assert plans == [Plan.of(seed) for seed in range(400)]
    assert {kind for plan in plans for kind in plan.faults} == set(KINDS)
    assert {plan.twins for plan in plans} == {1, 2}
    assert {plan.make[0] for plan in plans} == {"scrape", "preprocess", "train", "generate"}
    assert {fault.message or fault.kind for plan in plans for fault in plan.at_telegram()} == {
        "FLOOD_WAIT_1", "INTERNAL", "close", "cut", "delay", "short", "transport"
    }  # fmt: skip
    assert {plan.plain for plan in plans} == {True, False}
    assert any(p.telegram for p in plans) and any(p.small_disk for p in plans) and any(p.kills == 0 for p in plans)


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """A bucket's folder with one posts artefact."""
    folder = tmp_path / "bucket" / "posts" / ("a" * 20)
    folder.mkdir(parents=True)
    _commit(folder, [1, 2, 3])
    return tmp_path / "bucket"


def _commit(folder: Path, ids: list[int]) -> None:
    shard = folder / "part-00000.parquet"
    write_shard([Post(i, "x") for i in ids], shard)
    entry = {"path": shard.name, "size": shard.stat().st_size, "sha256": hashlib.sha256(shard.read_bytes()).hexdigest()}
    body = {"kind": "posts", "id": folder.name, "files": [entry], "parent": None, "counts": {"posts": 3}}
    (folder / "manifest.json").write_text(json.dumps(body))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / "part-00000.parquet").unlink(), "which is not there"),
        (lambda f: (f / "part-00000.parquet").write_bytes(b"x"), "and it has 1"),
        (lambda f: _flip(f / "part-00000.parquet"), "its bytes are others"),
        (lambda f: _commit(f, [1, 2, 2, 3]), "post ('x', 2, 1) is there 2 times"),
        (lambda f: _commit(f, [1, 2]), "3 posts by its manifest, 2 by its shards"),
        (shutil.rmtree, "is not there"),
    ],
)
def test_the_checks_see_harm(bucket: Path, harm: Callable[[Path], object], words: str) -> None:
    wanted = checks.contents(bucket)

    def found() -> str:
        try:
            once = list(checks.posts_once(bucket))
        except (OSError, pa.ArrowInvalid):  # there is no shard to read, or none that is one
            once = []
        return "; ".join([*checks.same(checks.contents(bucket), wanted), *checks.whole(bucket), *once])

    assert found() == ""
    harm(bucket / "posts" / ("a" * 20))
    assert words in found()


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(data)
