"""Shards: that pyarrow reads in them what arro3 wrote, of the types that the schema promises."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.posts import POST_SCHEMA, latest_posts
from jobs.record import BATCH_ROWS, Post
from jobs.scrape.parquet import SCHEMA, Shard, read_shard, rows, to_batch, values, write_shard
from jobs.specs import DataError

START = datetime(2020, 1, 1, tzinfo=UTC)
WHOLE = Post(
    id=2**40,
    channel="бугурт",
    channel_id=1234567890123,
    version=3,
    date=START,
    edit_date=START + timedelta(seconds=1),
    text="А😀\n@\nБ",
    entities=[{"type": "text_link", "offset": 0, "length": 2, "url": "https://primer.ru/"}],
    links=["https://primer.ru/"],
    views=5,
    forwards=0,
    replies=None,
    reactions=[{"emoji": "🔥", "count": 7}],
    reply_to=1,
    album_id=-(2**60),
    media="photo",
    media_count=4,
    forwarded_from="кто-то",
    via_bot="@b",
    poll=True,
    invoice=True,
    service="pin_message",
    author="А.",
    permalink="https://t.me/x/1",
)


def fields(post: Post) -> dict[str, Any]:
    return {name: getattr(post, name) for name in POST_SCHEMA.names}


def by_pyarrow(path: Path) -> list[dict[str, Any]]:
    return [row for batch in latest_posts([path]) for row in batch.to_pylist()]


def by_arro3(path: Path) -> list[dict[str, Any]]:
    return [row for batch in read_shard(path) for row in rows(batch)]


def stored(schema: pa.Schema) -> pa.Schema:
    """The schema as Parquet has it: it knows no whole seconds, and calls the items of a list ``element``."""
    found = []
    for field in schema:
        kind = field.type
        if pa.types.is_timestamp(kind):
            kind = pa.timestamp("ms", kind.tz)
        elif pa.types.is_list(kind):
            kind = pa.list_(kind.value_field.with_name("element"))
        found.append(field.with_type(kind))
    return pa.schema(found)


def test_a_post_survives_parquet_whole(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    write_shard([WHOLE], path)
    assert by_pyarrow(path) == by_arro3(path) == [fields(WHOLE)]
    assert [b.schema for b in latest_posts([path])] == [POST_SCHEMA]


def test_readers_without_this_project_see_the_types_that_pyarrow_would_have_written(tmp_path: Path) -> None:
    write_shard([WHOLE, Post(1, "x")], tmp_path / "ours.parquet")
    pq.write_table(pa.Table.from_pylist([fields(WHOLE)], POST_SCHEMA), tmp_path / "pyarrow.parquet")
    ours, theirs = (pq.ParquetFile(tmp_path / f"{name}.parquet") for name in ("ours", "pyarrow"))
    assert ours.schema_arrow.remove_metadata() == theirs.schema_arrow.remove_metadata() == stored(POST_SCHEMA)
    # pyarrow's == looks at the types of nested fields and not at whether they may be null
    assert ours.schema_arrow.equals(theirs.schema_arrow, check_metadata=False)
    for column in range(len(theirs.schema)):
        mine, other = ours.schema.column(column), theirs.schema.column(column)
        assert (mine.path, mine.physical_type, str(mine.logical_type)) == (
            other.path,
            other.physical_type,
            str(other.logical_type),
        )
        levels = ("max_definition_level", "max_repetition_level")  # what may be null, what repeats, at every depth
        assert [getattr(mine, n) for n in levels] == [getattr(other, n) for n in levels], mine.path
    assert pa.schema(SCHEMA) == stored(POST_SCHEMA)


def test_shards_that_pyarrow_wrote_are_read(tmp_path: Path) -> None:
    """As a parent's are that an earlier version of this project made."""
    posts = [WHOLE, Post(7, "x", deleted=True, version=2)]
    pq.write_table(pa.Table.from_pylist([fields(p) for p in posts], POST_SCHEMA), tmp_path / "old.parquet")
    assert by_arro3(tmp_path / "old.parquet") == [fields(p) for p in posts]


texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=20)
counts = st.integers(-(2**63), 2**63 - 1)
small = st.integers(-(2**31), 2**31 - 1)
moments = st.none() | st.datetimes(timezones=st.just(UTC)).map(lambda t: t.replace(microsecond=0))
entities = st.fixed_dictionaries({"type": texts, "offset": small, "length": small, "url": st.none() | texts})
reactions = st.fixed_dictionaries({"emoji": texts, "count": counts})
drawn = st.builds(
    Post,
    id=counts,
    channel=texts,
    text=texts,
    version=small,
    date=moments,
    edit_date=moments,
    entities=st.lists(entities, max_size=3),
    links=st.lists(texts, max_size=3),
    views=st.none() | counts,
    reactions=st.lists(reactions, max_size=3),
    media=st.none() | texts,
    poll=st.booleans(),
    deleted=st.just(False),
)


@given(st.lists(drawn, max_size=5, unique_by=lambda post: (post.channel, post.id)))
@settings(max_examples=40, deadline=None)
def test_both_read_any_posts_alike(tmp_path_factory: pytest.TempPathFactory, posts: list[Post]) -> None:
    path = tmp_path_factory.mktemp("shard") / "part-00000.parquet"
    write_shard(posts, path)
    assert by_pyarrow(path) == by_arro3(path) == [fields(p) for p in posts]


def test_equal_posts_give_equal_bytes(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        write_shard([Post(i, "x", f"пост {i}", date=START) for i in range(6000)], tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}, "batches are left beside the shard"


def test_a_shard_is_read_in_parts_and_by_rows(tmp_path: Path) -> None:
    write_shard([Post(i, "x", date=START + timedelta(seconds=i)) for i in range(BATCH_ROWS + 2)], tmp_path / "a")
    first, second = read_shard(tmp_path / "a")
    assert (first.num_rows, second.num_rows) == (BATCH_ROWS, 2)
    assert values(second, "date") == [START + timedelta(seconds=BATCH_ROWS + n) for n in (0, 1)]
    assert [row["id"] for row in rows(first, [7, 3])] == [7, 3]
    assert pq.read_metadata(tmp_path / "a").num_row_groups == 2


def test_what_is_no_shard_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    write_shard([Post(i, "x", f"пост {i}") for i in range(2000)], path)
    whole = path.read_bytes()
    middle = len(whole) // 4
    for broken in (b"", b"PAR1 not really", whole[:-5], whole[:middle] + bytes(500) + whole[middle + 500 :]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"part-00000\.parquet is no readable Parquet"):
            by_arro3(path)
    pq.write_table(pa.table({"id": [1]}), path)
    with pytest.raises(DataError, match="no column 'channel'"):
        by_arro3(path)
    with pytest.raises(FileNotFoundError):
        by_arro3(tmp_path / "none.parquet")


@pytest.mark.parametrize("post", [Post(1, "x", text=None), Post(1, "x", reactions=[{"emoji": None, "count": 1}])])  # type: ignore[arg-type]
def test_a_null_is_refused_where_there_may_be_none(post: Post) -> None:
    with pytest.raises(Exception, match="non-nullable"):
        to_batch([post])


@pytest.mark.parametrize("full", ["x.parquet.0", "x.parquet"])
def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path, full: str) -> None:
    """Which the stage tells from bad data: it is worth another try."""
    (tmp_path / full).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        shard = Shard(tmp_path / "x.parquet")
        shard.add([Post(i, "x", str(i) * 100) for i in range(1000)])
        shard.close()
