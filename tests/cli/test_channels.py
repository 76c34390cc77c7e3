"""A run of several channels: one scrape Job and one posts artefact for each, one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from cli.clusters import local_s3
from cli.given import check_distinct
from cli.runs import load_status, run_name, save_record
from cli.sources import channel_key
from cli.submission import latest_posts, plan
from jobs.artifacts import ArtifactStore
from jobs.specs import PreprocessSpec, RunSpec, ScrapeSpec, SpecError, parse_spec
from tests.cli.fake_cluster import ControlPlane
from tests.cli.test_driver_killed import World, calm_world
from tests.cli.watching import Watch
from tests.conftest import RunStage
from tests.projects import Project, new_project
from tests.scrape.conftest import telegram_env
from tests.scrape.helpers import rows, upload
from tests.telegram.api import Api
from tests.telegram.channel import make_channel
from tests.telegram.server import ServerThread, TelegramServer

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ONE, TWO, THREE = (ScrapeSpec(channel=f"@channel_{n}", as_of=NOW) for n in ("one", "two", "three"))
SEVERAL = RunSpec(scrape=ONE, also=(TWO, THREE))


# -- the spec


def test_the_record_of_one_channel_is_written_as_ever() -> None:
    """Older code reads it, and the names of runs, which are digests of their specs, stay."""
    spec = RunSpec(scrape=ONE)
    assert set(spec.model_dump()) == {"scrape", "preprocess", "train", "generate"}
    assert "also" not in json.loads(spec.model_dump_json())
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec
    assert run_name(RunSpec(scrape=ScrapeSpec(source="source/" + "a" * 20)), "x") == "x-3d18e3"


def test_steps_have_names_of_their_own() -> None:
    assert list(SEVERAL.steps()) == ["scrape", "scrape-2", "scrape-3"]
    assert RunSpec.model_validate_json(SEVERAL.model_dump_json()) == SEVERAL
    assert list(RunSpec(scrape=ONE, preprocess=PreprocessSpec()).steps()) == ["scrape", "preprocess"]
    names = {run_name(RunSpec(scrape=ONE, also=also), "x") for also in ((), (TWO,), (TWO, THREE), (THREE, TWO))}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"scrape": ONE, "also": (ONE,)}, "the same channel is asked for twice"),
        ({"scrape": ONE, "also": (TWO,), "preprocess": {}}, "has the one stage 'scrape'"),
        ({"preprocess": {}, "also": (TWO,)}, "has the one stage 'scrape'"),
    ],
)
def test_what_cannot_be_a_run_of_several(data: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        parse_spec(RunSpec, data, "the run")


def test_a_channel_may_be_written_in_many_ways() -> None:
    assert {
        channel_key(t) for t in ("@Bugurt", "t.me/bugurt", "https://t.me/bugurt/", "http://telegram.me/BUGURT")
    } == {"@bugurt"}
    assert channel_key("https://t.me/+AbCdEf") == "https://t.me/+AbCdEf"  # an invitation: every letter counts
    assert channel_key("posts.txt") == "posts.txt"
    with pytest.raises(SpecError, match="--source @bugurt is given 2 times"):
        check_distinct(["@bugurt", "@other", "https://t.me/Bugurt"])


def test_a_plan_looks_at_each_channel_by_itself(store: ArtifactStore) -> None:
    store.writer(TWO.ref()).commit(stage="scrape", spec={}, run="earlier")
    assert [(p.step, p.stage, p.found is not None) for p in plan(store, SEVERAL)] == [
        ("scrape", "scrape", False), ("scrape-2", "scrape", True), ("scrape-3", "scrape", False),
    ]  # fmt: skip


def test_a_scrape_adds_to_posts_that_begin_where_it_begins(store: ArtifactStore) -> None:
    """What was read of a part of a channel is no beginning of the whole, nor the whole one of a part."""

    def read(parent: str | None = None, **fields: Any) -> str:
        spec = ScrapeSpec(channel="@channel", parent=parent, as_of=NOW, **fields)
        store.writer(spec.ref()).commit(stage="scrape", spec=spec.identity(), parent=parent)
        return spec.ref()

    def parent_of(**fields: Any) -> str | None:
        return latest_posts(store, ScrapeSpec(channel="https://t.me/Channel", **fields))

    recent = read(since=date(2026, 1, 1))
    assert parent_of() is None
    assert parent_of(since=date(2026, 1, 1)) == recent
    assert parent_of(since=date(2025, 1, 1)) is None
    mixed = read(recent, min_id=9)  # as somebody asked for by hand
    assert mixed not in (parent_of(min_id=9), parent_of(since=date(2026, 1, 1)))
    old = read(until=date(2020, 1, 1))
    assert parent_of() == parent_of(until=date(2021, 1, 1)) == old
    assert parent_of(until=date(2019, 1, 1)) is None
    first = read(old, limit=100)
    assert parent_of() == parent_of(limit=5) == first
    assert parent_of(until=date(2021, 1, 1)) == old
    assert latest_posts(store, ScrapeSpec(channel="@other")) is None


# -- the driver, on a cluster in memory


def one_is_unknown(plane: ControlPlane) -> None:
    """A world in which the first channel cannot be read, for good."""
    plane.fault("scrape", "exit", code=78, message=json.dumps({"message": "there is no channel @channel_one"}))


def telegram_is_out_of_reach(plane: ControlPlane) -> None:
    """A world in which the first scrape gives up after all its tries."""
    for _ in range(20):
        plane.fault("scrape", "exit", code=75)


def several(prepare: Callable[[ControlPlane], None] = calm_world) -> World:
    world = World(prepare)
    world.record = world.record.model_copy(update={"spec": SEVERAL})
    save_record(world.store, world.record)
    return world


@pytest.mark.parametrize(("prepare", "code"), [(calm_world, 0), (one_is_unknown, 78)])
def test_killed_at_every_call(prepare: Callable[[ControlPlane], None], code: int) -> None:
    calm = several(prepare)
    assert calm.drive() == (code, 0)
    wanted, calls = calm.end(), calm.killer.calls
    assert len(wanted["jobs"]) == 4  # the driver's and three scrapes'
    assert len(wanted["manifests"]) == (3 if code == 0 else 2)
    for number in range(1, calls + 1):
        for when in ("before", "after"):
            world = several(prepare)
            assert world.drive((number, when)) == (code, 1)
            assert world.end() == wanted, (number, when)


def test_one_that_fails_does_not_keep_the_others_from_being_read() -> None:
    world = several(one_is_unknown)
    assert world.drive() == (78, 0)
    status = load_status(world.store, "made-up")
    assert {n: s.state for n, s in status.stages.items()} == {
        "scrape": "failed", "scrape-2": "succeeded", "scrape-3": "succeeded",
    }  # fmt: skip
    assert (status.state, status.exit_code) == ("failed", 78)
    assert status.message == "scrape: there is no channel @channel_one"
    tasks = [(t.spec["channel"], t.env.get("BUGURT_STEP")) for t in world.plane.runs]
    assert tasks[-2:] == [("@channel_two", "scrape-2"), ("@channel_three", "scrape-3")]


def test_after_one_that_gave_up_for_now_the_rest_is_left_for_later() -> None:
    """An account that has to wait must not be asked for more."""
    world = several(telegram_is_out_of_reach)
    assert world.drive()[0] == 70
    status = load_status(world.store, "made-up")
    assert [s.state for s in status.stages.values()] == ["failed", "waiting", "waiting"]
    assert len(world.plane.jobs()) == 2


# -- the stage


def test_each_step_has_its_own_log_and_progress(store: ArtifactStore, run_stage: RunStage) -> None:
    spec = ScrapeSpec(source=upload(store, "posts.txt", "ПРИВЕТ\n".encode()))
    assert run_stage(spec, run="both", env={"BUGURT_STEP": "scrape-2"}).code == 0
    assert {o.path.removeprefix("runs/both/") for o in store.bucket.list("runs/both/")} == {
        "scrape-2/log.txt",
        "scrape-2/progress.json",
    }
    refused = run_stage(spec, env={"BUGURT_STEP": "../../train"})
    assert (refused.code, "is no step of the scrape stage" in refused.last) == (64, True)


# -- the command line on one machine


@pytest.mark.slow
def test_several_files_in_one_run(project: Project) -> None:
    (project.folder / "more.txt").write_text("ПОЗВАЛ ГОСТЕЙ\n@\nГОСТИ ПОЗВАЛИ ТЕБЯ\n", encoding="utf-8")
    (project.folder / "broken.json").write_text('{"messages": [', encoding="utf-8")
    several = ["submit", "scrape", "--source", "posts.txt", "--source", "broken.json", "--source", "more.txt", "--wait"]
    said = project.run(*several)
    assert said.returncode == 65, said.stderr
    assert "broken.json is not valid JSON" in said.stderr
    (run,) = project.json("runs")
    assert run["source"] == "posts.txt, broken.json, more.txt"
    assert {n: s["state"] for n, s in run["stages"].items()} == {
        "scrape": "succeeded", "scrape-2": "failed", "scrape-3": "succeeded",
    }  # fmt: skip
    found = project.json("status", run["run"])
    assert [s["stage"] for s in found["stages"]] == ["scrape", "scrape-2", "scrape-3"]
    assert all(s["source"].startswith("source/") for s in found["stages"])
    assert len({m["ref"] for m in project.json("artifacts", "list", "posts")}) == 2
    assert "committed posts/" in project.ok("logs", run["run"], "scrape-3")
    assert "is not valid JSON" in project.ok("logs", run["run"], "scrape-2")
    everything = project.ok("logs", run["run"])
    assert all(f"{step}  " in everything for step in ("scrape", "scrape-2", "scrape-3", "driver"))
    # Again: what is there is found, the other is tried once more.
    again = project.run("rerun", run["run"], "--wait")
    assert again.returncode == 65
    found = project.json("status", run["run"])
    assert (found["attempt"], found["stages"][1]["state"]) == (2, "failed")
    assert found["stages"][0]["artifact"] == run["stages"]["scrape"]["artifact"]
    jobs = [p.name for p in (project.folder / ".bugurt" / "jobs").iterdir() if p.name.endswith("-2")]
    assert len([n for n in jobs if "-scrape-" in n]) == 1, jobs  # only the one that had failed was tried again
    good = project.ok("submit", "scrape", "--source", "posts.txt", "--source", "more.txt", "--wait")
    assert "everything was found" in good


def test_a_pipeline_learns_from_one_channel(project: Project) -> None:
    said = project.fails(64, "submit", "pipeline", "--source", "posts.txt", "--source", "@channel")
    assert "a pipeline learns from one channel" in said
    said = project.fails(64, "submit", "scrape", "--source", "@channel", "--source", "@Channel")
    assert "--source @channel is given 2 times" in said
    said = project.fails(
        64, "submit", "scrape", "--source", "@channel", "--source", "@other", "--set", "scrape.channel=@third"
    )
    assert "there are several --source" in said


# -- the command line and Telegram


@pytest.fixture
def server() -> Iterator[ServerThread]:
    """A Telegram with two channels that notices when a session is used from two places."""
    two = make_channel(2, 150, channel_id=22, username="second_one")
    with ExitStack() as stack:
        yield stack.enter_context(ServerThread(TelegramServer(Api(make_channel(1, 250), two), forbid_sharing=True)))


def secrets_of(server: TelegramServer, env: dict[str, str]) -> dict[str, str]:
    session = env["BUGURT_TELEGRAM_SESSION"]
    return {"session": session[1:60], "api_hash": env["BUGURT_TELEGRAM_API_HASH"], "phone": server.api.account.phone}


@pytest.mark.plain
def test_two_channels_and_nothing_of_the_session_in_sight(server: ServerThread, tmp_path: Path) -> None:
    """From the command line to the bucket: the session is in the 0600 file and in the processes' environment alone.

    The command lines of all processes of this machine are read again and again while the run is at work, and every
    file that it leaves: Jobs, logs, specs, manifests, posts.
    """
    env = telegram_env(server.server)
    keyfile = tmp_path / "telegram.json"
    keyfile.write_text(json.dumps(env))
    keyfile.chmod(0o600)
    secrets = secrets_of(server.server, env)
    with new_project(tmp_path / "project") as project, Watch(list(secrets.values())) as watch:
        project.env.update(BUGURT_TELEGRAM_FILE=str(keyfile), BUGURT_DEBUG="1")
        submit = ("submit", "scrape", "--source", "@bugurt_test", "--source", "https://t.me/second_one", "--wait")
        printed = project.run(*submit)
        assert printed.returncode == 0, printed.stderr
        (run,) = project.json("runs")
        assert run["source"] == "@bugurt_test, https://t.me/second_one"
        shown = project.json("status", run["run"])
        assert [s["source"] for s in shown["stages"]] == ["@bugurt_test", "https://t.me/second_one"]
        refs = [s["artifact"] for s in shown["stages"]]
        store = ArtifactStore.from_env(_s3(project))
        assert {r["channel"] for r in rows(store, refs[0], "channel")} == {"@bugurt_test"}
        assert {r["channel"] for r in rows(store, refs[1], "channel")} == {"@second_one"}
        assert server.server.overlaps == 0

        # Once more, one of them written in another way: only what is new is asked for, and one artefact is the old.
        server.do(lambda: server.server.api.channel.add_posts(5))
        server.do(server.server.clear_log)
        again = project.run("submit", "scrape", "--source", "t.me/Bugurt_test", "--source", "@second_one", "--wait")
        assert again.returncode == 0, again.stderr
        newest = project.json("runs")[0]
        states = {n: (s["artifact"] in refs, s["state"]) for n, s in newest["stages"].items()}
        assert states == {"scrape": (False, "succeeded"), "scrape-2": (True, "found")}
        assert server.server.count("messages.GetHistory") <= 4

        seen = watch.commands
        assert any("jobs.scrape" in c for c in seen), seen
        assert any("cli.clusters.supervisor" in c for c in seen), seen
        assert watch.leaks == []
        places = [p for p in project.folder.rglob("*") if p.is_file()]
        assert any(p.name == "job.json" for p in places)
        assert any(p.name == "manifest.json" for p in places)
        for name, secret in secrets.items():
            assert [p for p in places if secret.encode() in p.read_bytes()] == [], name
            assert secret not in printed.stdout + printed.stderr + again.stdout + again.stderr, name
        dry = project.run(*submit, "--dry-run", "--force")
        assert dry.returncode == 0, dry.stderr
        assert "BUGURT_STEP" in dry.stdout
        assert all(secret not in dry.stdout + dry.stderr for secret in secrets.values())


def _s3(project: Project) -> dict[str, str]:
    """The variables of the project's own bucket, as its stages get them."""
    server = local_s3.running(project.folder / ".bugurt")
    assert server is not None
    return server.env()
