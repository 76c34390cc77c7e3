"""The stage on files, as a process: every kind of source becomes the same posts; bad ones end in one sentence."""

from __future__ import annotations

import io
import json
import random
import stat
import time
import zipfile
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import ijson
import pyarrow.parquet as pq
import pytest

from jobs.artifacts import ArtifactStore
from jobs.posts import POST_SCHEMA
from jobs.scrape import tolerant
from jobs.scrape.archive import open_archive
from jobs.scrape.desktop import find_chat, read_chat
from jobs.scrape.files import run as run_files
from jobs.scrape.parquet import to_batch
from jobs.specs import DataError, ExitCode, ScrapeSpec
from tests.conftest import RunStage

from .helpers import account, context, encode, export, message, rows, upload
from .stages import Stage


def packed(*members: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.plain
def test_an_export_becomes_posts(store: ArtifactStore, run_stage: RunStage) -> None:
    text = ["КУПИЛ 😀 ЧАЙНИК\n@\n", {"type": "text_link", "text": "БУГУРТ-ТРЕД", "href": "https://t.me/x"}, "\n#бугурт"]
    messages = [
        message(1, "", type="service", action="create_channel", title="Бугурты"),
        message(
            2,
            text,
            edited_unixtime="1577847600",
            reactions=[{"type": "emoji", "count": 5, "emoji": "🔥"}, {"type": "paid", "count": 2}],
            author="А. Автор",
        ),
        message(3, "ЧУЖОЕ", forwarded_from="Другой канал"),
        message(4, "", poll={"question": "КТО?", "answers": []}),
        message(5, "", photo="(File not included)", via_bot="@bot", reply_to_message_id=2),
        {"id": 6, "type": "unsupported"},
    ]
    spec = ScrapeSpec(source=upload(store, "result.json", encode(export(messages))))
    result = run_stage(spec)
    assert result.code == 0, result.stderr
    got = rows(store, spec.ref())
    assert [r["id"] for r in got] == [1, 2, 3, 4, 5, 6]
    assert got[0]["service"] == "create_channel"
    second = got[1]
    assert second["text"] == "КУПИЛ 😀 ЧАЙНИК\n@\nБУГУРТ-ТРЕД\n#бугурт"
    [entity] = second["entities"]
    assert second["text"][entity["offset"] : entity["offset"] + entity["length"]] == "БУГУРТ-ТРЕД"
    assert (entity["type"], entity["url"]) == ("text_link", "https://t.me/x")
    assert second["links"] == ["https://t.me/x"]
    assert second["date"] == datetime(2020, 1, 1, 2, tzinfo=UTC)
    assert second["edit_date"] == datetime(2020, 1, 1, 3, tzinfo=UTC)
    assert second["reactions"] == [{"emoji": "🔥", "count": 5}, {"emoji": "paid", "count": 2}]
    assert (second["author"], second["channel"], second["channel_id"]) == ("А. Автор", "Бугурты", 1234567890)
    assert second["permalink"] == "https://t.me/c/1234567890/2"
    assert got[2]["forwarded_from"] == "Другой канал"
    assert (got[3]["poll"], got[3]["media"]) == (True, "poll")
    assert (got[4]["media"], got[4]["media_count"], got[4]["via_bot"], got[4]["reply_to"]) == ("photo", 1, "@bot", 2)
    assert (got[5]["media"], got[5]["text"], got[5]["date"]) == ("other", "", None)
    manifest = store.manifest(spec.ref())
    assert manifest.counts["posts"] == 5
    assert manifest.counts["service"] == 1
    assert manifest.info["newest_id"] == 6
    assert [f.path for f in manifest.files] == ["part-00000.parquet"]
    assert [o.path for o in store.bucket.list(f"{spec.ref()}/")] == [
        f"{spec.ref()}/manifest.json",
        f"{spec.ref()}/part-00000.parquet",
    ]
    with store.open(spec.ref(), manifest.files[0]) as stream:
        assert pq.read_schema(io.BytesIO(stream.read())).names == POST_SCHEMA.names


def test_the_same_export_gives_the_same_bytes_from_a_file_and_a_zip(store: ArtifactStore, run_stage: RunStage) -> None:
    data = encode(export([message(n, f"ПОСТ {n}") for n in range(1, 60)]))
    names = ("result.json", "export.zip")
    contents = (data, packed(("ChatExport_2026-11-01/result.json", data), ("ChatExport_2026-11-01/photos/a.jpg", b"x")))
    digests = []
    for name, content in zip(names, contents, strict=True):
        spec = ScrapeSpec(source=upload(store, name, content), shard_posts=20)
        assert run_stage(spec).code == 0
        digests.append([f.sha256 for f in store.manifest(spec.ref()).files])
    assert len(digests[0]) == 3
    assert digests[0] == digests[1]


def test_albums_are_one_post(store: ArtifactStore, run_stage: RunStage) -> None:
    at = {"date_unixtime": "1577840400"}
    messages = [
        message(1, "", photo="1.jpg", **at),
        message(2, "ПОДПИСЬ", photo="2.jpg", **at),
        message(3, "", media_type="video_file", file="3.mp4", **at),
        message(4, "ДРУГАЯ ПОДПИСЬ", photo="4.jpg", **at),  # a second text: a post of its own
        message(6, "", photo="6.jpg", **at),  # a gap
        message(7, "", photo="7.jpg"),  # another time
    ]
    spec = ScrapeSpec(source=upload(store, "result.json", encode(export(messages))))
    assert run_stage(spec).code == 0
    got = [(r["id"], r["text"], r["media_count"]) for r in rows(store, spec.ref())]
    assert got == [(1, "ПОДПИСЬ", 3), (4, "ДРУГАЯ ПОДПИСЬ", 1), (6, "", 1), (7, "", 1)]


def test_old_and_broken_exports_are_read(store: ArtifactStore, run_stage: RunStage) -> None:
    broken = r"""{
 "name": "Старый",
 "type": "private_channel",
 "id": 9999999999,
 "messages": [
  {
   "id": 1, "type": "message", "date": "2018-05-05T12:00:00", "edited": "1970-01-01T00:00:00",
   "text": ["A\x02B \\x41 ", {"type": "link", "text": "https://primer.ru"}]
  },
  {
   "id": 2, "type": "message", "date": "2018-05-06T12:00:00",
   "text": [{"type": "custom_emoji", "text": "X", "document_id": (File not included. Change data settings.)
   }, "\ud83d\ude00 \ud83d"]
  },
  {
   "id": 3, "type": "message", "date": "2018-05-06T12:00:00",
   "text": [{"type": "custom_emoji", "text": "X", "document_id": 5368324170671202286}], "text_entities": []
  }
 ]
}"""
    spec = ScrapeSpec(source=upload(store, "result.json", ("\ufeff" + broken).encode()))
    result = run_stage(spec)
    assert result.code == 0, result.stderr
    first, second, third = rows(store, spec.ref())
    assert first["text"] == "A\x02B \\x41 https://primer.ru"
    assert first["links"] == ["https://primer.ru"]
    assert (first["date"], first["edit_date"]) == (datetime(2018, 5, 5, 12, tzinfo=UTC), None)
    assert second["text"] == "X😀 \ufffd"
    assert third["entities"][0]["url"] == "tg://emoji?id=5368324170671202286"


def test_an_account_asks_for_a_chat(store: ArtifactStore, run_stage: RunStage) -> None:
    chats = [
        export([message(1, "ЧУЖОЕ")], name="Заметки", type="saved_messages", id=1),
        export([message(n, f"МОЁ {n}") for n in (1, 2)], name="Мой канал", id=2),
        export([message(3, "ТЁЗКА")], name="Мой канал", id=3),
    ]
    left = [export([message(8, "УШЁЛ")], name="Ушёл", id=4)]
    source = upload(store, "result.json", encode(account(*chats, left=left)))
    result = run_stage(ScrapeSpec(source=source))
    assert result.code == ExitCode.BAD_DATA
    assert "with 4 chats; name one with the option 'chat' (--set scrape.chat=ID): 'Заметки' (id 1, saved" in result.last
    twice = run_stage(ScrapeSpec(source=source, chat="Мой канал"))
    assert twice.code == ExitCode.BAD_DATA
    assert "2 of them are called 'Мой канал'" in twice.last
    for wanted, texts in {"2": ["МОЁ 1", "МОЁ 2"], "Заметки": ["ЧУЖОЕ"], "3": ["ТЁЗКА"], "Ушёл": ["УШЁЛ"]}.items():
        spec = ScrapeSpec(source=source, chat=wanted)
        assert run_stage(spec).code == 0
        assert [r["text"] for r in rows(store, spec.ref())] == texts


def test_json_lines_and_text(store: ArtifactStore, run_stage: RunStage) -> None:
    lines = [
        {"text": "РАЗ", "date": "2024-02-03T04:05:06Z", "views": 7, "unknown": 1},
        {"text": "ДВА\n@\nТРИ", "id": 50, "links": ["https://primer.ru"]},
    ]
    data = "\n\n".join(json.dumps(x, ensure_ascii=False) for x in lines) + '\n"ПРОСТО ТЕКСТ"\n'
    spec = ScrapeSpec(source=upload(store, "мои.jsonl", data.encode()))
    assert run_stage(spec).code == 0
    got = rows(store, spec.ref())
    assert [(r["id"], r["text"], r["channel"]) for r in got] == [
        (1, "РАЗ", "мои"),
        (50, "ДВА\n@\nТРИ", "мои"),
        (3, "ПРОСТО ТЕКСТ", "мои"),
    ]
    assert got[0]["date"] == datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert got[0]["views"] == 7
    text = "ПЕРВЫЙ\r\n@\r\nПОСТ\r\n\r\n\r\nВТОРОЙ\n@\nПОСТ"
    spec = ScrapeSpec(source=upload(store, "a.txt", text.encode()))
    assert run_stage(spec).code == 0
    assert [r["text"] for r in rows(store, spec.ref())] == ["ПЕРВЫЙ\n@\nПОСТ", "ВТОРОЙ\n@\nПОСТ"]
    spec = ScrapeSpec(source=upload(store, "b.txt", "А\n\nБ\n---\nВ\n---\n---\n".encode()), separator="---")
    assert run_stage(spec).code == 0
    assert [r["text"] for r in rows(store, spec.ref())] == ["А\n\nБ", "В"]
    result = run_stage(ScrapeSpec(source=upload(store, "c.txt", "РАЗ\nДВА\nТРИ".encode())))
    assert result.code == 0
    assert "all of c.txt is one post: an empty line parts posts" in result.stderr


@pytest.mark.parametrize(
    ("limits", "ids"),
    [
        ({"since": date(2020, 1, 2)}, [24, 25, 26, 27, 28, 29]),
        ({"until": date(2020, 1, 1)}, None),
        ({"until": date(2020, 1, 2), "min_id": 20}, [21, 22, 23]),
        ({"max_id": 3}, [1, 2]),
        ({"limit": 4}, [1, 2, 3, 4]),
        ({"min_id": 10, "limit": 1}, [11]),
    ],
)
def test_windows_and_limits(
    store: ArtifactStore, run_stage: RunStage, limits: dict[str, Any], ids: list[int] | None
) -> None:
    spec = ScrapeSpec(source=upload(store, "result.json", encode(export([message(n) for n in range(1, 30)]))), **limits)
    result = run_stage(spec)
    if ids is None:
        assert result.code == ExitCode.BAD_DATA
        assert "no posts within the limits" in result.last
    else:
        assert [r["id"] for r in rows(store, spec.ref())] == ids


def test_a_newer_export_adds_to_the_old_one(store: ArtifactStore, run_stage: RunStage) -> None:
    old = [message(n, f"ПОСТ {n}") for n in range(1, 11)]
    first = ScrapeSpec(source=upload(store, "result.json", encode(export(old))), shard_posts=4)
    assert run_stage(first).code == 0
    new = [m for m in old if m["id"] != 7] + [message(11, "НОВЫЙ")]
    new[8] = message(10, "ПОСТ 10, ИСПРАВЛЕН", edited_unixtime="1600000000")
    source = upload(store, "result.json", encode(export(new)))
    plain = ScrapeSpec(source=source, parent=first.ref(), shard_posts=4)
    assert run_stage(plain).code == 0
    assert [r["text"] for r in rows(store, plain.ref())] == [f"ПОСТ {n}" for n in range(1, 11)] + ["НОВЫЙ"]
    manifest = store.manifest(plain.ref())
    assert [(f.path, f.artifact) for f in manifest.files] == [
        *((f"part-0000{n}.parquet", first.ref()) for n in range(3)),
        ("part-00003.parquet", None),
    ]
    assert (manifest.parent, manifest.counts["posts"], manifest.counts["new"]) == (first.ref(), 11, 1)
    again = ScrapeSpec(source=source, parent=first.ref(), resync_days=36500, shard_posts=4)
    assert run_stage(again).code == 0
    expected = {n: f"ПОСТ {n}" for n in range(1, 11) if n != 7} | {10: "ПОСТ 10, ИСПРАВЛЕН", 11: "НОВЫЙ"}
    assert {r["id"]: r["text"] for r in rows(store, again.ref())} == expected
    counts = store.manifest(again.ref()).counts
    assert (counts["posts"], counts["new"], counts["edited"], counts["deleted"]) == (10, 1, 1, 1)
    # the same export once more has nothing new: the parent is the answer, and no artefact is made
    nothing = ScrapeSpec(source=source, parent=again.ref(), resync_days=36500)
    result = run_stage(nothing)
    assert result.code == 0
    assert store.find(nothing.ref()) is None
    assert json.loads(store.bucket.get_bytes("runs/test/scrape/progress.json"))["artifact"] == again.ref()
    other = ScrapeSpec(source=upload(store, "o.json", encode(export(old, id=5, name="Другой"))), parent=first.ref())
    result = run_stage(other)
    assert result.code == ExitCode.BAD_DATA
    assert "holds the posts of 'Бугурты' and not of 'Другой'" in result.last


@pytest.mark.plain
@pytest.mark.slow
def test_memory_does_not_grow_with_the_export(store: ArtifactStore, s3_env: dict[str, str], tmp_path: Path) -> None:
    """30 MB more of export take less than as much memory: allocators keep some, nothing is kept whole."""
    held = []
    for count in (13_000, 39_000):
        data = encode(export([message(n, f"{n} " + "БУГУРТ\n@\n" * 20) for n in range(1, count)]))
        stage = Stage(ScrapeSpec(source=upload(store, "result.json", data), shard_posts=1000), s3_env, tmp_path)
        code, log, most = stage.end()
        assert code == 0, log
        held.append(most)
    assert held[1] < held[0] + 32, held  # read whole, as Python objects, it would be hundreds


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def linked() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link("result.json"), "/etc/passwd")
    return buffer.getvalue()


def encrypted() -> bytes:
    data = bytearray(packed(("result.json", b"{}"), compression=zipfile.ZIP_STORED))
    data[6] |= 1  # of the local header
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def damaged() -> bytes:
    content = encode(export([message(n, "ПОСТ " * n) for n in range(1, 300)]))
    data = bytearray(packed(("result.json", content)))
    data[2000:2050] = bytes(50)
    return bytes(data)


def misplaced() -> bytes:
    """An archive whose directory says that the member lies before the file's beginning."""
    data = bytearray(packed(("result.json", GOOD)))
    entry = data.index(b"PK\x01\x02")
    data[entry + 42 : entry + 46] = b"\xff\xff\xff\xfe"
    end = data.index(b"PK\x05\x06")
    data[end + 16 : end + 20] = (entry + 100_000).to_bytes(4, "little")
    return bytes(data)


def start_of(text: bytes) -> bytes:
    """An export up to the middle of its first text."""
    return b'{"name": "x", "type": "public_channel", "id": 1, "messages": [{"id": 1, "text": "' + text


NEWLINE = b"\n"
GOOD = encode(export([message(1), message(2)]))
CUT = GOOD[:-30]
BAD_SOURCES: dict[str, tuple[str, bytes, str]] = {
    "empty file": ("result.json", b"", "result.json is empty"),
    "no messages": ("result.json", encode(export([])), "holds no posts"),
    "other json": ("result.json", b'{"posts": [], "x": 1}', "no 'messages' (its fields are posts, x)"),
    "a list": ("result.json", b"[1, 2]", "no 'messages'"),
    "messages that are no list": ("result.json", b'{"name": "a", "messages": {}}', "'messages' is no list"),
    "cut off": ("result.json", CUT, f"JSON at line {CUT.count(NEWLINE) + 1}, byte {len(CUT)}"),
    "garbage": ("result.json", GOOD.replace(b'"id": 2', b'"id": @'), "not valid JSON at line "),
    "not utf-8": ("result.json", GOOD.decode().encode("cp1251"), "not valid JSON at line 2, byte "),
    "no id": ("result.json", encode(export([message(1), {"type": "message", "text": ""}])), "message 2: it has no"),
    "bad id": ("result.json", encode(export([message(1) | {"id": "x"}])), "1: 'id' must be a number, not 'x'"),
    "bad date": ("result.json", encode(export([{"id": 1, "date": "вчера", "text": ""}])), "'date' is no time: 'вчера'"),
    "bad text": ("result.json", encode(export([message(1) | {"text_entities": 1, "text": 5}])), "'text' must be text"),
    "a number as message": ("result.json", encode(export([5])), "a message must be an object"),  # type: ignore[list-item]
    "too deep": ("result.json", b'{"messages": ' + b"[1, " * 100_000, "nested more than 64 deep"),
    "huge message": ("result.json", encode(export([message(1, "A," * 5_000_000)])), "a message of more than"),
    "html": ("messages.html", b"<!DOCTYPE html><html>", "HTML page; export again"),
    "html zip": ("e.zip", packed(("x/messages.html", b"<html>")), "is an export in HTML"),
    "zip without": ("e.zip", packed(("a.jpg", b"1")), "holds no result.json"),
    "zip with two": ("e.zip", packed(("a/result.json", GOOD), ("b/result.json", GOOD)), "holds 2 exports"),
    "broken zip": ("e.zip", packed(("result.json", GOOD))[:-40], "is a broken zip archive"),
    "damaged zip": ("e.zip", damaged(), "the archive is damaged"),
    "zip bomb": ("e.zip", packed(("result.json", bytes(80_000_000))), "would swell from"),
    "link in zip": ("e.zip", linked(), "is a link and not a file"),
    "encrypted zip": ("e.zip", encrypted(), "is encrypted"),
    "jsonl without text": ("a.jsonl", b'{"text": "a"}\n{"id": 3}\n', "a.jsonl, line 2: text: "),
    "jsonl broken": ("a.jsonl", b'{"text": "a"}\n{"text": }\n', "a.jsonl, line 2, column 10: not valid JSON"),
    "jsonl wrong type": ("a.jsonl", b'{"text": "a", "views": -1}', "line 1: views: "),
    "jsonl list": ("a.jsonl", b"[1]", "a line must be an object"),
    "jsonl deep": ("a.jsonl", b"[" * 100_000, "not valid JSON: nested too deep"),
    "text in utf-16": ("a.txt", "привет".encode("utf-16"), "is in UTF-16; save it as UTF-8"),
    "text in cp1251": ("a.txt", "раз\nпривет".encode("cp1251"), "a.txt, line 1, byte 1: not UTF-8"),
    "text without posts": ("a.txt", b"\n\n\n", "holds no posts"),
    "json in utf-16": ("result.json", GOOD.decode().encode("utf-16"), "is in UTF-16"),
    "json in utf-16 without a mark": ("result.json", GOOD.decode().encode("utf-16-be"), "is in UTF-16"),
    "lists in a piece": (
        "result.json",
        encode(export([message(1) | {"text_entities": [{"text": ["a"]}]}])),
        "not list",
    ),
    "nested text": ("result.json", encode(export([message(1) | {"text": [["a"]], "text_entities": None}])), "not list"),
    "id too large": ("result.json", encode(export([message(1) | {"id": 2**63}])), "integer overflow"),
    "year 1": ("result.json", encode(export([{"id": 1, "date": "0001-01-01T00:00+14:00"}])), "'date' is no time"),
    "bad unix time": ("result.json", encode(export([message(1, date_unixtime="9" * 18)])), "is no time: '999999"),
    "only old messages": ("result.json", encode(export([message(-5)])), "holds no posts"),
    "keys like paths": ("result.json", b'{"chats": {"list.item.messages": [{"id": 1}]}}', "without a chat"),
    "spaces without end": ("result.json", b'{"messages": [' + b" " * 9_000_000, "a message of more than"),
    "jsonl text deep": ("a.jsonl", b'{"text":' + b"[" * 900 + b"]" * 900 + b"}", "line 1: "),
    "jsonl year 1": ("a.jsonl", b'{"text": "a", "date": "0001-01-01T00:00+14:00"}', "lies outside the calendar"),
    "jsonl nan": ("a.jsonl", b'{"text": "a", "date": NaN}', "line 1: date: "),
    "jsonl id zero": ("a.jsonl", b'{"text": "a", "id": 0}', "line 1: id: "),
    "jsonl long number": ("a.jsonl", b'{"text": "a", "id": ' + b"9" * 5000 + b"}", "a number without an end"),
    "jsonl same number": ("a.jsonl", b'{"text": "a", "id": 2}\n{"text": "b"}', "line 2: another line has the number 2"),
    "beyond unicode": ("result.json", start_of(b"\xf4\x90\x80\x80") + b'"}]}', "not valid JSON at line 1"),
    "broken far from a comma": (
        "result.json",
        start_of(b"a" * 900_000) + b"\\q" + b"a" * 9,
        "not valid JSON at line 1",
    ),
    "a terminal's commands": (
        "e.zip",
        packed(("\x1b[31m\n\u202eresult/result.json", CUT)),
        "e.zip,  [31m  result/result.json is not valid JSON",
    ),
    "misplaced in zip": ("e.zip", misplaced(), "the archive is damaged"),
    "an account without chats": ("result.json", encode(account()), "an account's export without a chat"),
    "binary": ("a.bin", b"\x7fELF\0\0\0", "neither an export, nor JSON Lines, nor text"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_input_is_told_in_one_sentence(store: ArtifactStore, tmp_path: Path, case: str) -> None:
    name, data, sentence = BAD_SOURCES[case]
    spec = ScrapeSpec(source=upload(store, name, data))
    with pytest.raises(DataError) as caught:
        run_files(context(store, spec, tmp_path))
    assert sentence in str(caught.value)
    assert name in str(caught.value)
    assert str(caught.value).isprintable()
    assert store.find(spec.ref()) is None


@pytest.mark.plain
@pytest.mark.parametrize("case", ["cut off", "zip bomb", "jsonl without text"])
def test_bad_input_ends_the_process_well(store: ArtifactStore, run_stage: RunStage, case: str) -> None:
    name, data, sentence = BAD_SOURCES[case]
    spec = ScrapeSpec(source=upload(store, name, data))
    result = run_stage(spec)
    assert result.code == ExitCode.BAD_DATA, result.stderr
    assert sentence in result.last
    assert "Traceback" not in result.stderr
    assert [line["level"] for line in result.log].count("error") == 1
    assert store.find(spec.ref()) is None


def test_names_that_climb_do_nothing(store: ArtifactStore, run_stage: RunStage) -> None:
    spec = ScrapeSpec(source=upload(store, "e.zip", packed(("../../../../tmp/result.json", GOOD), ("/etc/x", b"1"))))
    assert run_stage(spec).code == 0
    assert len(rows(store, spec.ref())) == 2


def test_a_post_that_stands_there_twice_is_one_post(store: ArtifactStore, run_stage: RunStage) -> None:
    """As in an export that was put together by hand: the later one is a newer version, and counts tell the truth."""
    messages = [message(1, "РАЗ"), message(2, "ДВА"), message(3, "ТРИ"), message(2, "ДВА, ИСПРАВЛЕНО"), message(4, "4")]
    spec = ScrapeSpec(source=upload(store, "result.json", encode(export(messages))))
    assert run_stage(spec).code == 0
    got = {r["id"]: (r["text"], r["version"]) for r in rows(store, spec.ref())}
    assert got == {1: ("РАЗ", 1), 2: ("ДВА, ИСПРАВЛЕНО", 2), 3: ("ТРИ", 1), 4: ("4", 1)}
    counts = store.manifest(spec.ref()).counts
    assert (counts["posts"], counts["edited"]) == (4, 1)


def test_messages_from_before_a_group_was_a_channel_are_left_out_and_told(
    store: ArtifactStore, run_stage: RunStage
) -> None:
    messages = [message(-999_999_998, "СТАРОЕ"), message(-999_999_997, "И ЭТО"), message(1, "НОВОЕ")]
    spec = ScrapeSpec(source=upload(store, "result.json", encode(export(messages))))
    result = run_stage(spec)
    assert result.code == 0
    assert [r["id"] for r in rows(store, spec.ref())] == [1]
    assert any("2 messages without a number of their own" in line["message"] for line in result.log)


ODD: dict[str, tuple[str, bytes]] = {
    "halves of pairs": ("result.json", start_of(rb"\ude00\ud83d \ud83d\ud83d\ude00 \\ud83d") + b'"}]}'),
    "halves of pairs in bytes": ("result.json", start_of(b"\xed\xa0\xbd \xed\xb8\x80") + b'"}]}'),
    "a name with commands": ("result.json", encode(export([message(1, "А")], name="Б\n\x1b[31m\u0000"))),
    "an account with one chat": ("result.json", encode(account(export([message(1, "А")])))),
    "strange lists": (
        "result.json",
        encode(export([message(1, "А") | {"reactions": 5, "inline_bot_buttons": 7, "author": ["x"]}])),
    ),
    "strange counts": (
        "result.json",
        encode(export([message(1, "А") | {"reactions": [{"type": "emoji", "emoji": "x", "count": True}, 4, None]}])),
    ),
    "a name without end": ("result.json", encode(export([message(n, "А") for n in range(1, 900)], name="Я" * 900_000))),
    "text that is null": ("result.json", encode(export([message(1) | {"text": None, "text_entities": None}]))),
    "text that begins like an archive": ("a.txt", "PKO: БАНК\n\nА".encode()),
    "a field that is nested deep": ("a.jsonl", b'{"text": "a", "x": ' + b"[" * 900 + b"]" * 900 + b"}"),
    "nulls and half a pair": ("a.jsonl", b'{"text": "a\\u0000\\ud800", "\\ud800": 1}'),
    "before 1970": ("a.jsonl", b'{"text": "a", "date": "1965-03-02T01:00:00Z"}'),
    "duplicate keys": ("a.jsonl", b'{"text": "a", "text": "b"}'),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_input_is_read(store: ArtifactStore, tmp_path: Path, case: str) -> None:
    name, data = ODD[case]
    spec = ScrapeSpec(source=upload(store, name, data))
    run_files(context(store, spec, tmp_path))
    found = rows(store, spec.ref())
    assert found
    assert len(found[0]["channel"]) <= 256
    assert found[0]["channel"].isprintable()
    assert all(r["text"].encode() is not None for r in found)


def test_halves_of_pairs_become_one_sign_each(store: ArtifactStore, tmp_path: Path) -> None:
    spec = ScrapeSpec(source=upload(store, *ODD["halves of pairs"]))
    run_files(context(store, spec, tmp_path))
    assert rows(store, spec.ref())[0]["text"] == "\ufffd\ufffd \ufffd😀 \\ud83d"


PIECES = [
    rb"\\", rb"\"", rb"\ud83d", rb"\ude00", rb"\ud83d\ude00", rb"\x41", b"u", b"x41", b"ud83d", b"a", "я".encode(),
    b"\xed\xa0\xbd", b"\xed\xb8\x80", "한".encode(), b"{", b"]", rb"\n", rb"\u0041", b",",
]  # fmt: skip


def test_mending_does_not_depend_on_where_the_bytes_are_parted(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(1)
    for _ in range(1000):
        data = start_of(b"".join(draw.choices(PIECES, k=draw.randrange(60)))) + b'"}]}'
        whole = tolerant.Mender().feed(data, last=True)
        [item] = ijson.items(io.BytesIO(whole), "messages.item")
        item["text"].encode()
        monkeypatch.setattr(tolerant, "MAX_HELD", draw.randrange(13, 40))
        mender, found, at = tolerant.Mender(), b"", 0
        while at < len(data):
            size = draw.randrange(1, 20)
            found += mender.feed(data[at : at + size])
            at += size
        assert found + mender.feed(b"", last=True) == whole, data


@pytest.mark.parametrize("piece", [rb"\"", rb"\\", rb"\x41", rb"\ud83d", b"\xed\xa0\xbd", b'"', b'"document_id" : '])
def test_mending_takes_linear_time(piece: bytes) -> None:
    data = start_of(piece * 1_000_000)
    begun = time.process_time()
    mender = tolerant.Mender()
    for start in range(0, len(data), tolerant.READ):
        mender.feed(data[start : start + tolerant.READ])
    mender.feed(b"", last=True)
    assert time.process_time() - begun < 20  # a second or two; quadratic time would take hours


def test_damaged_files_end_in_a_sentence_or_are_read(tmp_path: Path) -> None:
    """Archives and exports in which bytes were changed, lost or put in, some thousand times."""
    draw = random.Random(7)
    archives = [packed(("x/result.json", GOOD), ("a.jpg", b"x"), compression=n) for n in (0, 8, 12, 14)]
    path = tmp_path / "e.zip"
    ends = Counter[str]()
    for number in range(2000):
        data = bytearray(archives[number % 4] if number % 2 else GOOD)
        for _ in range(draw.randrange(1, 4)):
            place = draw.randrange(len(data))
            data[place : place + draw.randrange(3)] = draw.choice([b"", b"\xff", b"\0", b'"', b"{", b"\\", b"9" * 20])
        try:
            if number % 2:
                path.write_bytes(data)
                inside, opener = open_archive(path, "e.zip")
            else:
                inside, opener = "r.json", lambda data=bytes(data): io.BytesIO(data)
            chat = find_chat(opener, inside, None)
            to_batch(list(read_chat(opener, inside, chat, advance=lambda read: None)))
            ends["read"] += 1
        except DataError as error:
            assert str(error).isprintable()
            ends["told"] += 1
    assert min(ends["read"], ends["told"]) > 100


def test_entities_past_the_end_of_the_text_are_cut(store: ArtifactStore, tmp_path: Path) -> None:
    entities = [{"type": "bold", "offset": 2, "length": 50}, {"type": "bold", "offset": 100, "length": 5}]
    data = json.dumps({"text": "abc", "entities": entities}).encode()
    spec = ScrapeSpec(source=upload(store, "a.jsonl", data))
    run_files(context(store, spec, tmp_path))
    [found] = rows(store, spec.ref())
    assert [(e["offset"], e["length"]) for e in found["entities"]] == [(2, 1), (3, 0)]


def test_huge_posts_are_not_held_by_the_thousand(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "\n".join(json.dumps({"text": f"{n} " + "а" * 500}) for n in range(100))
    spec = ScrapeSpec(source=upload(store, "a.jsonl", lines.encode()))
    monkeypatch.setattr("jobs.scrape.shards.MAX_HELD", 10_000)
    run_files(context(store, spec, tmp_path))
    sizes = []
    for shard in store.manifest(spec.ref()).files:
        with store.open(spec.ref(), shard) as stream:
            sizes.append(pq.ParquetFile(io.BytesIO(stream.read())).metadata.num_rows)
    assert sizes == [20, 20, 20, 20, 20]
    assert [r["id"] for r in rows(store, spec.ref())] == list(range(1, 101))
