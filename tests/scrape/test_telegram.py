"""The stage against Telegram, as a process with the real Telethon: everything arrives, once, as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from telethon.tl import types as t
from telethon.utils import get_inner_text

from jobs.artifacts import ArtifactStore
from jobs.scrape.resolve import parse_target
from jobs.scrape.telegram import run as scrape_telegram
from jobs.specs import BugurtError, ExitCode, ScrapeSpec, SpecError
from tests.conftest import RunStage
from tests.telegram.channel import Channel, make_channel
from tests.telegram.faults import Faults, close, cut, error, flood, internal, short_page
from tests.telegram.server import ServerThread

from .conftest import Serve, telegram_env
from .helpers import context, rows


def expected(channel: Channel) -> list[list[Any]]:
    """The messages of each post, oldest first: an album's parts together, nothing for what is empty."""
    found = [m for m in channel.messages() if not isinstance(m, t.MessageEmpty)]
    keyed = groupby(found, key=lambda m: getattr(m, "grouped_id", None) or -m.id)
    return [list(parts) for _, parts in keyed]


def check(posts: list[dict[str, Any]], channel: Channel) -> None:
    """All posts are there, in order, with all that the messages say. Offsets are checked with Telethon's own."""
    wanted = expected(channel)
    assert [p["id"] for p in posts] == [parts[0].id for parts in wanted]
    for post, parts in zip(posts, wanted, strict=True):
        first = parts[0]
        assert post["date"] == first.date
        assert post["permalink"] == f"https://t.me/{channel.username}/{first.id}"
        if isinstance(first, t.MessageService):
            assert post["service"] in ("pin_message", "edit_group_title", "create_channel")
            continue
        assert post["service"] is None
        assert post["text"] == "\n".join(m.message for m in parts if m.message)
        assert (post["views"], post["forwards"]) == (max(m.views for m in parts), max(m.forwards for m in parts))
        assert post["album_id"] == first.grouped_id
        assert post["author"] == first.post_author
        assert post["edit_date"] == (None if first.edit_hide else first.edit_date)
        assert (post["forwarded_from"] is None) == (first.fwd_from is None)
        assert (post["via_bot"] is None) == (first.via_bot_id is None)
        assert post["poll"] == isinstance(first.media, t.MessageMediaPoll)
        assert post["invoice"] == isinstance(first.media, t.MessageMediaInvoice)
        assert post["media_count"] == sum(
            isinstance(m.media, t.MessageMediaPhoto | t.MessageMediaDocument) for m in parts
        )
        pieces = [post["text"][e["offset"] : e["offset"] + e["length"]] for e in post["entities"]]
        assert pieces == [text for m in parts if m.entities for text in get_inner_text(m.message, m.entities)]
        hidden = [e.url for m in parts for e in m.entities or () if isinstance(e, t.MessageEntityTextUrl)]
        assert set(hidden) <= set(post["links"])
        results = first.reactions.results if first.reactions else []
        assert [r["count"] for r in post["reactions"]] == [r.count for r in results]


def scrape(run_stage: RunStage, running: ServerThread, spec: ScrapeSpec, **options: Any) -> Any:
    return run_stage(spec, env={**telegram_env(running.server), **options.pop("env", {})}, **options)


@pytest.mark.plain
def test_a_channel_arrives_whole(store: ArtifactStore, run_stage: RunStage, serve: Serve) -> None:
    channel = make_channel(1, 1500)
    running = serve(channel, faults=Faults(flood(1, at=3), cut(after_bytes=700, at=6), close(at=9), internal(at=11)))
    spec = ScrapeSpec(channel="@bugurt_test", shard_posts=400)
    result = scrape(run_stage, running, spec)
    assert result.code == 0, result.stderr
    check(rows(store, spec.ref()), channel)
    manifest = store.manifest(spec.ref())
    services = len(channel.of_kind("service"))
    assert manifest.counts["service"] == services
    assert manifest.counts["posts"] == len(expected(channel)) - services
    assert manifest.info["newest_id"] == max(m[-1].id for m in expected(channel))
    assert (manifest.info["channel"], manifest.info["channel_id"]) == ("@bugurt_test", channel.id)
    left = [o.path.rpartition("/")[2] for o in store.bucket.list(f"{spec.ref()}/")]
    assert sorted(left) == sorted(["manifest.json", *(f.path for f in manifest.files)])


def test_short_and_empty_pages_end_nothing(store: ArtifactStore, run_stage: RunStage, serve: Serve) -> None:
    channel = make_channel(2, 300)
    channel.add_empty(250)  # pages that hold nothing a reader would see
    channel.add_posts(150)
    running = serve(channel, faults=Faults(short_page(7, every=3, start=2), short_page(0, at=6)))
    spec = ScrapeSpec(channel="https://t.me/bugurt_test/17")
    assert scrape(run_stage, running, spec).code == 0
    check(rows(store, spec.ref()), channel)


def test_the_next_scrape_takes_only_what_is_new(store: ArtifactStore, run_stage: RunStage, serve: Serve) -> None:
    channel = make_channel(3, 900)
    running = serve(channel)
    first = ScrapeSpec(channel="@bugurt_test", as_of=datetime(2030, 1, 1, tzinfo=UTC))
    assert scrape(run_stage, running, first).code == 0
    assert running.do(lambda: running.server.count("contacts.ResolveUsername")) == 1
    nothing = ScrapeSpec(channel="@bugurt_test", parent=first.ref())
    running.do(running.server.clear_log)
    result = scrape(run_stage, running, nothing)
    assert result.code == 0
    assert store.find(nothing.ref()) is None
    assert json.loads(store.bucket.get_bytes("runs/test/scrape/progress.json"))["artifact"] == first.ref()
    assert [c.method for c in running.server.calls].count("messages.GetHistory") == 1
    calls = []
    parent = first.ref()
    for _ in range(2):  # as the history grows, the calls for as many new posts stay the same
        running.do(lambda: channel.add_posts(120))
        running.do(running.server.clear_log)
        spec = ScrapeSpec(channel="@bugurt_test", parent=parent)
        assert scrape(run_stage, running, spec).code == 0
        assert running.server.count("contacts.ResolveUsername") == 0
        calls.append([c.method for c in running.server.calls])
        check(rows(store, spec.ref()), channel)
        manifest = store.manifest(spec.ref())
        assert [f.artifact for f in manifest.files][-1] is None
        assert manifest.parent == parent
        assert all(f.artifact for f in manifest.files[:-1])
        parent = spec.ref()
        running.do(lambda: channel.add_posts(500))
        more = ScrapeSpec(channel="@bugurt_test", parent=parent)
        assert scrape(run_stage, running, more).code == 0
        parent = more.ref()
    assert calls[0] == calls[1]
    assert calls[0].count("messages.GetHistory") == 3  # the newest id, and two pages
    check(rows(store, parent), channel)


def test_resync_records_edits_and_deletions(store: ArtifactStore, run_stage: RunStage, serve: Serve) -> None:
    channel = make_channel(4, 400)
    running = serve(channel)
    first = ScrapeSpec(channel="@bugurt_test")
    assert scrape(run_stage, running, first).code == 0
    old = {r["id"]: r for r in rows(store, first.ref())}
    newest = datetime.fromtimestamp(channel.clock, UTC)
    plain = channel.of_kind("text")
    long_ago, edited, deleted = plain[3], plain[-4], [plain[-9], plain[-2]]

    def change() -> None:
        channel.edit(edited, "ИСПРАВЛЕНО 😀")
        channel.edit(plain[-5], views=10**6)  # more views are no new version
        channel.edit(long_ago, "ИСПРАВЛЕНО СЛИШКОМ ДАВНО")
        channel.delete(deleted)
        channel.add_posts(30)

    running.do(change)
    spec = ScrapeSpec(channel="@bugurt_test", parent=first.ref(), as_of=datetime(2030, 1, 1, tzinfo=UTC))
    days = (spec.as_of - newest).days + 10 if spec.as_of else 0
    spec = spec.model_copy(update={"resync_days": days})
    running.do(running.server.clear_log)
    assert scrape(run_stage, running, spec).code == 0
    assert running.server.count("messages.GetHistory") < 6
    found = {r["id"]: r for r in rows(store, spec.ref())}
    assert (found[edited]["text"], found[edited]["version"]) == ("ИСПРАВЛЕНО 😀", 2)
    assert not set(deleted) & set(found)
    assert found[long_ago] == old[long_ago]
    assert {i: r for i, r in found.items() if i in old and i != edited} == {
        i: r for i, r in old.items() if i != edited and i not in deleted
    }
    counts = store.manifest(spec.ref()).counts
    assert (counts["edited"], counts["deleted"], counts["new"] > 0) == (1, 2, True)
    again = ScrapeSpec(channel="@bugurt_test", parent=spec.ref(), resync_days=36500)
    assert scrape(run_stage, running, again).code == 0
    everything = {r["id"]: r["text"] for r in rows(store, again.ref())}
    assert everything[long_ago] == "ИСПРАВЛЕНО СЛИШКОМ ДАВНО"
    assert list(everything) != sorted(everything)  # a newer version stands where it was written
    assert sorted(everything) == [parts[0].id for parts in expected(channel)]


@pytest.mark.parametrize("window", ["dates", "ids", "limit", "as of"])
def test_windows(store: ArtifactStore, run_stage: RunStage, serve: Serve, window: str) -> None:
    channel = make_channel(5, 600, step=40_000)
    ids = [parts[0].id for parts in expected(channel)]
    dates = {parts[0].id: parts[0].date for parts in expected(channel)}
    whole = [parts for parts in expected(channel) if not isinstance(parts[0], t.MessageService)]
    limits: dict[str, Any]
    if window == "dates":
        since, until = dates[ids[200]].date(), dates[ids[320]].date()
        limits = {"since": since, "until": until}
        wanted = [i for i in ids if since <= dates[i].date() < until]
        most = 4
    elif window == "ids":
        limits = {"min_id": ids[100], "max_id": ids[150]}
        wanted, most = ids[101:150], 3
    elif window == "limit":
        limits = {"limit": 130}
        wanted, most = [i for i in ids if i <= whole[129][0].id], 4
    else:
        limits = {"as_of": dates[ids[99]]}
        wanted, most = [i for i in ids if dates[i] < dates[ids[99]]], 4
    running = serve(channel)
    spec = ScrapeSpec(channel="@bugurt_test", **limits)
    assert scrape(run_stage, running, spec).code == 0
    assert [r["id"] for r in rows(store, spec.ref(), "id")] == wanted
    assert running.server.count("messages.GetHistory") <= most + 1  # one is asked for ahead


def test_nothing_within_the_window(store: ArtifactStore, run_stage: RunStage, serve: Serve) -> None:
    running = serve(make_channel(5, 30))
    result = scrape(run_stage, running, ScrapeSpec(channel="@bugurt_test", since=date(2035, 1, 1)))
    assert result.code == ExitCode.BAD_DATA
    assert result.last == "@bugurt_test has no posts within the limits that were given"
    result = scrape(run_stage, serve(Channel()), ScrapeSpec(channel="@bugurt_test"))
    assert result.code == ExitCode.BAD_DATA
    assert result.last == "@bugurt_test has no posts"


@pytest.mark.parametrize(
    "name",
    ["@Bugurt_Test", "https://t.me/s/bugurt_test", "tg://resolve?domain=bugurt_test", "-1001234567890", "1234567890"],
)
def test_public_channels_have_many_names(store: ArtifactStore, run_stage: RunStage, serve: Serve, name: str) -> None:
    channel, other = make_channel(6, 40), make_channel(7, 20, channel_id=77, username="another")
    spec = ScrapeSpec(channel=name)
    assert scrape(run_stage, serve(other, channel), spec).code == 0
    check(rows(store, spec.ref()), channel)


@pytest.mark.parametrize("name", ["https://t.me/+AbCdEfGhIjK", "t.me/joinchat/AbCdEfGhIjK", "https://t.me/c/555/3"])
def test_private_channels_that_were_joined(store: ArtifactStore, run_stage: RunStage, serve: Serve, name: str) -> None:
    channel = make_channel(8, 40, channel_id=555, username=None, invite="AbCdEfGhIjK", title="Тайный")
    spec = ScrapeSpec(channel=name)
    assert scrape(run_stage, serve(channel), spec).code == 0
    found = rows(store, spec.ref())
    assert len(found) == len(expected(channel))
    assert (found[0]["channel"], found[0]["permalink"]) == ("Тайный", f"https://t.me/c/555/{found[0]['id']}")


def test_takeout(store: ArtifactStore, run_stage: RunStage, serve: Serve) -> None:
    channel = make_channel(9, 250)
    running = serve(channel)
    spec = ScrapeSpec(channel="@bugurt_test", takeout=True)
    assert scrape(run_stage, running, spec).code == 0
    check(rows(store, spec.ref()), channel)
    [takeout] = running.server.api.takeouts.values()
    assert (takeout.open, takeout.success) == (False, True)
    pages = [c for c in running.server.calls if c.method == "messages.GetHistory"]
    assert sum(c.takeout is not None for c in pages) == len(pages) - 1  # all but the first look


FATAL = {
    "used twice": (error(406, "AUTH_KEY_DUPLICATED", "*"), "used from two places at once; run 'bugurt login' again"),
    "used twice on the way": (error(406, "AUTH_KEY_DUPLICATED", start=3), "used from two places at once"),
    "revoked": (error(401, "SESSION_REVOKED", start=2), "the Telegram session was ended"),
    "unregistered": (error(401, "AUTH_KEY_UNREGISTERED", start=2), "the Telegram session was ended"),
    "banned": (error(401, "USER_DEACTIVATED_BAN", start=2), "has banned this account"),
    "deleted account": (error(401, "USER_DEACTIVATED", start=2), "account was deleted"),
    "private": (error(400, "CHANNEL_PRIVATE"), "is private, or the account was banned from it: join it"),
    "no such name": (error(400, "USERNAME_NOT_OCCUPIED", "contacts.*"), "there is no @bugurt_test at Telegram"),
    "unknown": (error(400, "SOMETHING_NEW"), "Telegram refuses to give @bugurt_test"),
    "api id": (error(400, "API_ID_INVALID", "help.GetConfig"), "get your own at https://my.telegram.org"),
}


Attempt = Callable[..., BugurtError]


@pytest.fixture
def attempt(store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    """``attempt(running, channel, **variables)``: the error that the stage ends with, in this process."""

    def run(running: ServerThread, channel: str, **variables: str) -> BugurtError:
        for name, value in {**telegram_env(running.server), **variables}.items():
            monkeypatch.setenv(name, value)
        spec = ScrapeSpec(channel=channel)
        with pytest.raises(BugurtError) as caught:
            scrape_telegram(context(store, spec, tmp_path))
        assert store.find(spec.ref()) is None
        return caught.value

    return run


@pytest.mark.parametrize("case", FATAL)
def test_what_no_retry_helps_exits_78(attempt: Attempt, serve: Serve, case: str) -> None:
    fault, sentence = FATAL[case]
    failure = attempt(serve(make_channel(1, 500), faults=Faults(fault)), "@bugurt_test")
    assert sentence in str(failure)
    assert failure.exit_code == ExitCode.BAD_CONFIG


def test_a_fatal_error_ends_the_process_well(store: ArtifactStore, run_stage: RunStage, serve: Serve) -> None:
    running = serve(make_channel(1, 500), faults=Faults(error(406, "AUTH_KEY_DUPLICATED", start=3)))
    result = scrape(run_stage, running, ScrapeSpec(channel="@bugurt_test"))
    assert result.code == ExitCode.BAD_CONFIG, result.stderr
    assert "used from two places at once; run 'bugurt login' again" in result.last
    assert "Traceback" not in result.stderr


def test_channels_that_cannot_be_read(attempt: Attempt, serve: Serve) -> None:
    running = serve(make_channel(1, 5, username=None, invite="NotJoinedYet", joined=False))
    for name, sentence in {
        "@predlozhi_bot": "is a person or a bot",
        "@nobody_here": "there is no @nobody_here at Telegram",
        "t.me/+NotJoinedYet": "has not joined the channel of this invite link",
        "t.me/+WrongWrongWrong": "the invite link is wrong",
        "-1000001009999": "the account is in no channel with the id -1000001009999",
    }.items():
        failure = attempt(running, name)
        assert sentence in str(failure)
        assert failure.exit_code == ExitCode.BAD_CONFIG


@pytest.mark.parametrize(
    "name", ["https://example.org/x", "-1009999", "t.me", "t.me/+x", "@a", "ftp://t.me/abcde", "@имя"]
)
def test_what_is_no_channel_is_a_wrong_spec(name: str) -> None:
    with pytest.raises(SpecError, match=r"channel: .*write @name"):
        parse_target(name)


def test_sessions_that_are_not_logged_in(attempt: Attempt, serve: Serve) -> None:
    running = serve(make_channel(1, 10))
    session = running.server.session()
    running.server.state_of(session).authorised = False
    assert "is not logged in (any more); run" in str(
        attempt(running, "@bugurt_test", BUGURT_TELEGRAM_SESSION=session.save())
    )
    unknown = running.server.session_string()
    running.do(running.server.forget_keys)
    failure = attempt(running, "@bugurt_test", BUGURT_TELEGRAM_SESSION=unknown)
    assert "the Telegram session was ended" in str(failure)
    assert failure.exit_code == ExitCode.BAD_CONFIG


def test_settings_that_make_no_sense(attempt: Attempt, serve: Serve) -> None:
    running = serve(make_channel(1, 10))
    secret = running.server.session_string()
    for name, value, sentence in (
        ("SESSION", "", "BUGURT_TELEGRAM_SESSION not set); run 'bugurt login' first"),
        ("SESSION", secret[:-20], "BUGURT_TELEGRAM_SESSION is"),
        ("SESSION", "чушь", "BUGURT_TELEGRAM_SESSION is not a session string"),
        ("API_ID", "двадцать", "BUGURT_TELEGRAM_API_ID must be the number"),
        ("API_HASH", "abcdef", "BUGURT_TELEGRAM_API_HASH must be the 32 hex digits"),
        ("PROXY", "localhost", "BUGURT_TELEGRAM_PROXY is not an address"),
        ("PROXY", "mtproxy://ee00@proxy.invalid:443", "(fake TLS) are not supported"),
    ):
        failure = attempt(running, "@bugurt_test", **{f"BUGURT_TELEGRAM_{name}": value})
        assert sentence in str(failure)
        assert failure.exit_code == ExitCode.BAD_CONFIG
        assert not value or value not in str(failure).replace("BUGURT_TELEGRAM", "")


def test_telegram_out_of_reach_is_temporary(attempt: Attempt, serve: Serve) -> None:
    running = serve(make_channel(1, 10))
    session = running.server.session_string()
    running.do(lambda: [dc.listener.close() for dc in running.server.dcs.values() if dc.listener])
    failure = attempt(running, "@bugurt_test", BUGURT_TELEGRAM_SESSION=session)
    assert "the connection to Telegram failed" in str(failure)
    assert failure.exit_code == ExitCode.TRY_AGAIN


def test_a_long_flood_wait_keeps_the_progress(store: ArtifactStore, run_stage: RunStage, serve: Serve) -> None:
    channel = make_channel(10, 1200)
    faults = Faults(flood(48_038, at=8))
    running = serve(channel, faults=faults)
    spec = ScrapeSpec(channel="@bugurt_test", shard_posts=200)
    result = scrape(run_stage, running, spec)
    assert result.code == ExitCode.TRY_AGAIN
    assert "wait 13 h 20 min" in result.last
    progress = json.loads(store.bucket.get_bytes("runs/test/scrape/progress.json"))
    assert (progress["retry_after"], progress["exit_code"]) == (48_038, 75)
    assert store.find(spec.ref()) is None
    running.do(running.server.clear_log)
    assert scrape(run_stage, running, spec).code == 0
    assert running.server.count("messages.GetHistory") <= 8  # 6 of 12 pages were kept
    check(rows(store, spec.ref()), channel)
    assert {f.path for f in store.manifest(spec.ref()).files} == {f"part-{n:05d}.parquet" for n in range(6)}


def test_many_short_flood_waits_in_a_row_are_waited_for(
    store: ArtifactStore, run_stage: RunStage, serve: Serve
) -> None:
    channel = make_channel(11, 150)
    running = serve(channel, faults=Faults(flood(1, at=(2, 3, 4, 5, 6))))  # Telethon itself gives up at the fourth
    spec = ScrapeSpec(channel="@bugurt_test")
    result = scrape(run_stage, running, spec)
    assert result.code == 0, result.stderr
    assert [line["message"] for line in result.log].count("Telegram asks to wait 1 s (GetHistoryRequest)") == 5
    check(rows(store, spec.ref()), channel)


def test_a_renamed_channel_keeps_its_name_in_the_posts(store: ArtifactStore, run_stage: RunStage, serve: Serve) -> None:
    channel = make_channel(12, 60)
    running = serve(channel)
    first = ScrapeSpec(channel="-1001234567890")
    assert scrape(run_stage, running, first).code == 0

    def change() -> None:
        channel.username = "renamed"
        channel.add_posts(10)

    running.do(change)
    spec = ScrapeSpec(channel="@renamed", parent=first.ref())
    assert scrape(run_stage, running, spec).code == 0
    assert {r["channel"] for r in rows(store, spec.ref(), "channel")} == {"@bugurt_test"}
    other = make_channel(13, 10, channel_id=99, username="other_one")
    running.do(lambda: running.server.api.add_channel(other))
    result = scrape(run_stage, running, ScrapeSpec(channel="@other_one", parent=first.ref()))
    assert result.code == ExitCode.BAD_DATA
    assert "holds the posts of '@bugurt_test' and not of '@other_one'" in result.last
