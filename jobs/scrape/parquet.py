"""Shards as Parquet files: how a scrape writes them, and reads those that it goes on from.

By arro3, Arrow and Parquet in Rust: pyarrow, by which all others read them (``jobs.posts``), is 80 megabytes, twice
as much as the rest of this stage's image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from arro3.core import Array, DataType, Field, RecordBatch, RecordBatchReader, Schema, list_array, struct_array
from arro3.io import read_ipc_stream, read_parquet, write_ipc_stream, write_parquet

from jobs.record import BATCH_ROWS, COLUMNS, Column, Post
from jobs.specs import DataError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_TYPES = {
    "string": DataType.string(),
    "int32": DataType.int32(),
    "int64": DataType.int64(),
    "bool": DataType.bool(),
    "seconds": DataType.timestamp("ms", tz="UTC"),  # Parquet has no whole seconds
}


def _one(kind: str | tuple[Column, ...]) -> DataType:
    return _TYPES[kind] if isinstance(kind, str) else DataType.struct([_field(child) for child in kind])


def _field(column: Column) -> Field:
    one = _one(column.kind)
    # An item's name as the Parquet format wants it, and as pyarrow gives it.
    return Field(column.name, DataType.list(Field("element", one)) if column.many else one, column.null)


SCHEMA = Schema([_field(column) for column in COLUMNS])
_MOMENTS = {column.name for column in COLUMNS if column.kind == "seconds"}


def _plain(kind: str | tuple[Column, ...], values: Sequence[Any]) -> Array:
    if not isinstance(kind, str):
        children = [_plain(child.kind, [value.get(child.name) for value in values]) for child in kind]
        return struct_array(children, fields=[_field(child) for child in kind])
    if kind == "seconds":
        moments = [None if v is None else (v - _EPOCH) // _SECOND * 1000 for v in values]
        return Array(moments, DataType.int64()).cast(_TYPES[kind])
    return Array(values, _TYPES[kind])


def _array(column: Column, values: Sequence[Any]) -> Array:
    if not column.many:
        return _plain(column.kind, values)
    ends = Array([0, *accumulate(len(value) for value in values)], DataType.int32())
    return list_array(ends, _plain(column.kind, list(chain.from_iterable(values))), type=_field(column).type)


def to_batch(posts: Sequence[Post]) -> RecordBatch:
    """Posts as one batch. Raises an exception of arro3 for a null where there may be none."""
    arrays = [_array(column, [getattr(post, column.name) for post in posts]) for column in COLUMNS]
    return RecordBatch.from_arrays(arrays, schema=SCHEMA)


class Shard:
    """A shard that is written batch by batch, BATCH_ROWS posts each but the last.

    Until it is closed its batches lie beside it, uncompressed, so that the memory it takes does not grow with it. The
    same posts give the same bytes with the same version of arro3.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._batches: list[Path] = []

    def add(self, posts: Sequence[Post]) -> None:
        """Add posts. Raises OSError where they cannot be written."""
        path = self.path.with_name(f"{self.path.name}.{len(self._batches)}")
        with path.open("wb") as file:  # a path instead would have arro3 tell of a full disk in words only
            write_ipc_stream(to_batch(posts), file)
        self._batches.append(path)

    def close(self) -> None:
        """Write the file. Raises OSError where it cannot be written."""
        reader = RecordBatchReader.from_batches(SCHEMA, self._read())
        with self.path.open("wb") as file:
            write_parquet(reader, file, compression="zstd(3)", max_row_group_size=BATCH_ROWS)

    def _read(self) -> Iterator[RecordBatch]:
        for path in self._batches:
            yield from read_ipc_stream(path)
            path.unlink()


def write_shard(posts: Sequence[Post], path: Path) -> None:
    """Write a shard at once."""
    shard = Shard(path)
    for start in range(0, len(posts), BATCH_ROWS):
        shard.add(posts[start : start + BATCH_ROWS])
    shard.close()


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Raise DataError for what arro3 finds wrong with a file."""
    try:
        yield
    except OSError:
        raise
    except BaseException as error:
        # A broken end of a file is a panic in Rust, which is no Exception and whose class cannot be imported.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise DataError(f"{path.name} is no readable Parquet file: {str(error)[:200]}") from error
        raise


def read_shard(path: Path) -> Iterator[RecordBatch]:
    """A shard's batches, of BATCH_ROWS rows at most. Raises DataError for a file that is none."""
    with _telling(path):
        batches = iter(read_parquet(path, batch_size=BATCH_ROWS))
    while True:
        with _telling(path):
            batch = next(batches, None)
        if batch is None:
            return
        if missing := [column.name for column in COLUMNS if column.name not in batch.column_names]:
            raise DataError(f"{path.name} has no column {missing[0]!r}; it is no shard of posts")
        yield batch


def values(batch: RecordBatch, name: str) -> list[Any]:
    """A column's values; moments are aware, in UTC."""
    array = batch[name]
    if name not in _MOMENTS:
        return list(array.to_pylist())
    stamps = array.cast(_TYPES["seconds"]).cast(DataType.int64()).to_pylist()
    return [None if stamp is None else _EPOCH + timedelta(milliseconds=stamp) for stamp in stamps]


def rows(batch: RecordBatch, indices: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """A batch's rows, all or those at ``indices``: the fields of Post, by name."""
    if indices is not None:
        batch = batch.take(Array(indices, DataType.uint32()))
    names = [column.name for column in COLUMNS]
    columns = [values(batch, name) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
