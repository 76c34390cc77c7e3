"""A live scrape, and one that adds to it, with a key that may do what ``examples/policies/scrape.json`` says."""

from __future__ import annotations

from jobs.artifacts import ArtifactStore
from jobs.specs import ScrapeSpec
from tests.bucket_policies import gate
from tests.conftest import RunStage
from tests.telegram.channel import make_channel

from .conftest import Serve, telegram_env
from .helpers import rows


def test_a_live_channel_needs_no_more(s3_env: dict[str, str], run_stage: RunStage, serve: Serve) -> None:
    running = serve(make_channel(1, 60))
    with gate(s3_env, "scrape", "team") as guarded:
        env = {**guarded.env(s3_env, "team"), **telegram_env(running.server)}
        first = ScrapeSpec(channel="@bugurt_test", shard_posts=20, max_id=31)
        second = ScrapeSpec(channel="@bugurt_test", shard_posts=20, parent=first.ref())
        for spec in (first, second):
            result = run_stage(spec, env=env)
            assert result.code == 0, (result.last, guarded.refused)
        assert guarded.refused == []
        written = {resource.split("/")[2] for action, resource in guarded.passed if action == "s3:PutObject"}
        assert written == {"posts", "leases", "telegram", "runs"}
        assert len(rows(ArtifactStore.from_env(env), second.ref(), "id")) > len(
            rows(ArtifactStore.from_env(env), first.ref(), "id")
        )
