"""A Telegram session is used from one place at a time, and nothing that is secret gets anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli import manifests
from cli.clusters.base import Component, JobRequest
from cli.settings import load
from jobs.artifacts import ArtifactStore
from jobs.specs import ScrapeSpec
from tests.conftest import RunStage, S3Server
from tests.telegram.channel import make_channel
from tests.telegram.faults import Faults, cut, error, flood, hold
from tests.telegram.server import TelegramServer

from .conftest import Serve, telegram_env
from .helpers import rows
from .stages import Stage
from .test_telegram import check


def test_two_scrapes_of_one_session_take_turns(
    store: ArtifactStore, s3_env: dict[str, str], serve: Serve, tmp_path: Path
) -> None:
    one, two = make_channel(1, 400), make_channel(2, 300, channel_id=22, username="second")
    held, gate = hold()
    running = serve(one, two, forbid_sharing=True, faults=Faults(held))
    env = {**s3_env, **telegram_env(running.server)}
    specs = [ScrapeSpec(channel="@bugurt_test"), ScrapeSpec(channel="@second")]
    stages = []
    for number, spec in enumerate(specs):
        folder = tmp_path / str(number)
        folder.mkdir()
        stages.append(Stage(spec, env, folder, run=f"run-{number}"))
    gate.reached.result(60)
    while not any("the Telegram session is in use" in stage.log() for stage in stages):
        assert not any(stage.ends_within(0.05) for stage in stages)
    gate.release()
    ends = [stage.end() for stage in stages]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert running.server.overlaps == 0
    check(rows(store, specs[0].ref()), one)
    check(rows(store, specs[1].ref()), two)
    assert not list(store.bucket.list("leases/"))


def secrets_of(server: TelegramServer, env: dict[str, str]) -> list[str]:
    session = env["BUGURT_TELEGRAM_SESSION"]
    return [session, session[1:60], env["BUGURT_TELEGRAM_API_HASH"], server.api.account.phone, "proxy-password"]


@pytest.mark.plain
@pytest.mark.parametrize("ending", ["well", "fatal", "later", "proxy"])
def test_no_secret_gets_out(
    store: ArtifactStore, run_stage: RunStage, serve: Serve, s3_server: S3Server, s3_env: dict[str, str], ending: str
) -> None:
    """Whatever happens, with debug messages on: nothing in the log, and nothing in any object of the bucket."""
    faults: dict[str, Any] = {
        "well": (flood(1, at=3), cut(at=5, after_bytes=99)),
        "fatal": (error(406, "AUTH_KEY_DUPLICATED", start=3),),
        "later": (flood(9999, at=4),),
        "proxy": (),
    }
    running = serve(make_channel(3, 500), faults=Faults(*faults[ending]))
    env = {**telegram_env(running.server), "BUGURT_DEBUG": "1"}
    if ending == "proxy":
        env["BUGURT_TELEGRAM_PROXY"] = "socks5://somebody:proxy-password@127.0.0.1:1"
    result = run_stage(ScrapeSpec(channel="@bugurt_test", shard_posts=100), env=env)
    assert result.code == {"well": 0, "fatal": 78, "later": 75, "proxy": 75}[ending], result.stderr
    objects = {p: p.read_bytes() for p in (s3_server.folder / s3_env["BUGURT_S3_BUCKET"]).rglob("*") if p.is_file()}
    assert any(p.name == "log.txt" for p in objects)
    assert ending in ("fatal", "proxy") or any(p.suffix == ".parquet" for p in objects)
    for secret in secrets_of(running.server, env):
        assert secret not in result.stderr
        assert [p for p, data in objects.items() if secret.encode() in data] == []


@pytest.mark.parametrize("component", manifests.COMPONENTS)
def test_no_secret_is_in_a_job(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, component: Component
) -> None:
    """Whatever this machine's environment holds: a Job names Secrets, and nothing of what is in them."""
    running = serve(make_channel(4, 5))
    env = telegram_env(running.server)
    keys = {"BUGURT_S3_ACCESS_KEY_ID": "an-access-key", "BUGURT_S3_SECRET_ACCESS_KEY": "a-secret-key"}
    for name, value in {**env, **keys, "BUGURT_TELEGRAM_PROXY": "socks5://u:proxy-password@h:1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BUGURT_S3_BUCKET", "b")
    monkeypatch.setenv("BUGURT_CLUSTER_KIND", "kubernetes")
    monkeypatch.chdir(tmp_path)
    spec = ScrapeSpec(channel="@bugurt_test").model_dump(mode="json") if component == "scrape" else {"run": "x"}
    request = JobRequest(name=f"x-{component}-1", run="x", component=component, spec=spec)
    text = json.dumps(manifests.render(request, load(), namespace="n"))
    assert ("bugurt-telegram" in text) == (component == "scrape")  # the Secret's name; only a scrape gets it
    for secret in [*secrets_of(running.server, env), *keys.values()]:
        assert secret not in text
