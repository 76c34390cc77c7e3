"""Shards on their way into a bucket that fails."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.artifacts import ArtifactStore
from jobs.record import Post
from jobs.scrape.base import Base
from jobs.scrape.shards import STATE, ShardWriter
from jobs.specs import ConfigError, ScrapeSpec
from jobs.stage import StageContext
from tests.conftest import S3Server
from tests.s3_faults import faulty_s3

from .helpers import rows

SPEC = ScrapeSpec(channel="@bugurt_test", shard_posts=3)


def shards(store: ArtifactStore, folder: Path) -> tuple[ShardWriter, Base]:
    folder.mkdir()
    progress: Any = SimpleNamespace(update=lambda **fields: None)
    ctx = StageContext(SPEC, store, run="test", shard=None, workdir=folder, progress=progress)
    base = Base.of(ctx)
    return ShardWriter(ctx, base), base


def test_a_shard_that_could_not_be_uploaded_is_kept(
    s3_server: S3Server, s3_env: dict[str, str], tmp_path: Path
) -> None:
    """Its rows were in no file any more, and the next attempt went on behind them."""
    posts = [Post(number, "bugurt_test", text=f"ЧАЙНИК {number}") for number in (1, 2, 3, 4)]
    with faulty_s3(s3_server.endpoint) as faults:
        store = ArtifactStore.from_env({**s3_env, "BUGURT_S3_ENDPOINT": faults.endpoint})
        out, _ = shards(store, tmp_path / "first")
        faults.break_next("denied", method="PUT", contains="part-00000", times=100)
        with pytest.raises(ConfigError):
            for post in posts:
                out.add(post, post.id)
        faults.clear()
        out.save()
        again, base = shards(store, tmp_path / "second")
        assert again.resume()
        assert (again.cursor, again.rows) == (3, 3)
        assert [o.path.rpartition("/")[2] for o in store.bucket.list(f"{SPEC.ref()}/")] == [STATE, "part-00000.parquet"]
        again.add(posts[3], 4)
        again.commit(info={}, base=base)
        assert [row["id"] for row in rows(store, SPEC.ref())] == [1, 2, 3, 4]
        assert [f.path for f in store.manifest(SPEC.ref()).files] == ["part-00000.parquet", "part-00001.parquet"]
