"""Posts as a record: versions, deletions, and offsets."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.artifacts import ArtifactStore
from jobs.posts import latest_posts, read_posts
from jobs.record import Post, utf16_length, utf16_spans
from jobs.scrape.parquet import write_shard
from jobs.specs import DataError, NotFoundError

START = datetime(2020, 1, 1, tzinfo=UTC)


def commit(store: ArtifactStore, ref: str, shards: dict[str, list[Post]], tmp_path: Path, parent: str = "") -> None:
    writer = store.writer(ref)
    if parent:
        for entry in store.manifest(parent).files:
            writer.adopt(entry if entry.artifact else entry.model_copy(update={"artifact": parent}))
    for name, posts in shards.items():
        write_shard(posts, tmp_path / name)
        writer.put_file(tmp_path / name)
    writer.commit(stage="scrape", spec={}, parent=parent or None)


def rows(batches: Any) -> list[dict[str, Any]]:
    return [row for batch in batches for row in batch.to_pylist()]


def test_readers_get_the_latest_versions_across_parents(store: ArtifactStore, tmp_path: Path) -> None:
    first, second = "posts/" + "a" * 20, "posts/" + "b" * 20
    old = [Post(i, "x", f"{i}", date=START) for i in range(1, 9001)]
    commit(store, first, {"part-00000.parquet": old[:5000], "part-00001.parquet": old[5000:]}, tmp_path)
    changes = [
        Post(7, "x", "edited", version=2),
        Post(5001, "x", version=2, deleted=True),
        Post(7, "y", "the same number in another channel"),
        Post(9001, "x", "new"),
    ]
    commit(store, second, {"part-00002.parquet": changes}, tmp_path, parent=first)
    assert [r["id"] for r in rows(read_posts(store, first, ["id"]))] == list(range(1, 9001))
    got = rows(read_posts(store, second, ["text", "id", "channel"]))
    assert list(got[0]) == ["text", "id", "channel"]
    expected = [str(i) for i in range(1, 9001) if i not in (7, 5001)]
    assert [r["text"] for r in got] == [*expected, "edited", "the same number in another channel", "new"]


def test_against_a_plain_dictionary(tmp_path: Path) -> None:
    rng = random.Random(3)
    shards, model = [], {}
    for number in range(8):
        posts = [
            Post(rng.randrange(400), rng.choice("xy"), str(rng.random()), deleted=rng.random() < 0.2)
            for _ in range(rng.randrange(1, 300))
        ]
        for post in posts:
            model.pop((post.channel, post.id), None)
            model[post.channel, post.id] = post
        write_shard(posts, tmp_path / f"{number}")
        shards.append(tmp_path / f"{number}")
    expected = [(p.channel, p.id, p.text) for p in model.values() if not p.deleted]
    assert [(r["channel"], r["id"], r["text"]) for r in rows(latest_posts(shards))] == expected


def test_what_is_no_posts_artefact_is_said_so(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        list(read_posts(store, "posts/" + "0" * 20))
    with pytest.raises(ValueError, match="no column txet"):
        list(latest_posts([], ["txet"]))
    (tmp_path / "part-00000.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="no readable Parquet"):
        list(latest_posts([tmp_path / "part-00000.parquet"]))
    pq.write_table(pa.table({"id": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="no column 'channel'"):
        list(latest_posts([tmp_path / "other.parquet"]))


def units(text: str) -> bytes:
    return text.encode("utf-16-le")


@given(st.text(alphabet="аё@\n😀👩\u200d👩🏽e\u0301", max_size=40), st.data())
def test_offsets_agree_with_utf16_itself(text: str, data: st.DataObject) -> None:
    """Cut the UTF-16 bytes at any whole character, and the string at the converted offsets: the same piece."""
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    offset, length = utf16_length(text[:start]), utf16_length(text[start:end])
    [(at, count)] = utf16_spans(text, [(offset, length)])
    assert (at, count) == (start, end - start)
    assert units(text[at : at + count]) == units(text)[2 * offset : 2 * (offset + length)]


@pytest.mark.parametrize(
    ("text", "span", "piece"),
    [
        ("a😀b", (3, 1), "b"),
        ("a😀b", (2, 1), "😀"),  # begins and ends within the pair
        ("a😀b", (0, 2), "a😀"),  # ends within the pair
        ("a😀b", (1, 99), "😀b"),
        ("ab", (1, 99), "b"),
        ("ab", (7, 2), ""),
        ("a😀", (9, 2), ""),
        ("", (0, 1), ""),
    ],
)
def test_broken_offsets_are_brought_into_the_text(text: str, span: tuple[int, int], piece: str) -> None:
    [(at, count)] = utf16_spans(text, [span])
    assert text[at : at + count] == piece
    assert 0 <= at <= len(text)
