"""Reading posts: the schema of a ``posts`` artefact for pyarrow, and the latest versions of its posts.

``jobs.record`` says what a post is and what the columns mean; ``jobs.scrape`` writes the shards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.artifacts import ArtifactStore
from jobs.parquet import reading
from jobs.record import BATCH_ROWS, COLUMNS, Column, fetch_shards
from jobs.specs import DataError

FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799  # of the years 1 and 9999, as Python counts them
_TYPES = {
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "seconds": pa.timestamp("s", tz="UTC"),
}


def _field(column: Column) -> pa.Field:
    one = _TYPES[column.kind] if isinstance(column.kind, str) else pa.struct([_field(child) for child in column.kind])
    return pa.field(column.name, pa.list_(one) if column.many else one, nullable=column.null)


POST_SCHEMA = pa.schema([_field(column) for column in COLUMNS])


def read_posts(store: ArtifactStore, ref: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The latest version of every post of a ``posts`` artefact, without deleted ones, as batches.

    ``columns``: names out of POST_SCHEMA, None for all. Order: that of the shards, within a shard that of its
    rows; a post that was edited stands where its newest version does. Memory: one batch, and some 30 bytes a
    row for the search of the latest versions; the shards lie in a temporary folder until the end.

    Raises NotFoundError when there is no such artefact, and DataError when it is damaged.
    """
    manifest = store.manifest(ref)
    with tempfile.TemporaryDirectory(prefix="bugurt-posts-") as folder:
        yield from latest_posts(fetch_shards(store, manifest, Path(folder)), columns)


def latest_posts(shards: Sequence[Path], columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """As ``read_posts``, over shards that lie in files, given in their order."""
    wanted = POST_SCHEMA.names if columns is None else list(columns)
    unknown = sorted(set(wanted) - set(POST_SCHEMA.names))
    if unknown:
        raise ValueError(f"posts have no column {', '.join(unknown)}")
    if not shards:
        return
    keep = _latest_rows(shards)
    first = done = 0  # number of the batch's first row; rows of ``keep`` that are used up
    for batch in _batches(shards, wanted):
        # ``keep`` is sorted, so this batch's rows are the next few of it.
        near = keep.slice(done, batch.num_rows)
        count = pc.sum(pc.less(near, first + batch.num_rows)).as_py() or 0
        if count == batch.num_rows:
            yield batch
        elif count:
            yield batch.take(pc.subtract(near.slice(0, count), first))
        first += batch.num_rows
        done += count


def _latest_rows(shards: Sequence[Path]) -> pa.Int64Array:
    """Numbers (over all shards) of the rows that are their post's latest and not deleted, ascending."""
    parts = [pa.Table.from_batches([b]) for b in _batches(shards, ["channel", "id", "deleted"])]
    if not parts:
        return pa.array([], pa.int64())
    keys = pa.concat_tables(parts)
    keys = keys.append_column("row", pa.array(np.arange(keys.num_rows)))
    newest = keys.group_by(["channel", "id"]).aggregate([("row", "max")])["row_max"].combine_chunks()
    newest = newest.take(pc.sort_indices(newest))
    alive = pc.invert(keys["deleted"].take(newest))
    return cast(pa.Int64Array, pa.chunked_array([newest]).filter(alive).combine_chunks())


def _batches(shards: Iterable[Path], columns: list[str]) -> Iterator[pa.RecordBatch]:
    for path in shards:
        schema = pa.schema([POST_SCHEMA.field(n) for n in columns])  # Parquet itself has no whole seconds
        with reading(path.name), pq.ParquetFile(path) as file:
            missing = [n for n in columns if n not in file.schema_arrow.names]
            if missing:
                raise DataError(f"{path.name} has no column {missing[0]!r}; it is no shard of posts")
            for raw in file.iter_batches(BATCH_ROWS, columns=columns):
                batch = raw.select(columns).cast(schema)
                batch.validate(full=True)  # that texts are UTF-8, which reading does not look at
                _check_dates(batch, path.name)
                yield batch


def _check_dates(batch: pa.RecordBatch, where: str) -> None:
    """Python's calendar ends with the year 9999, Parquet's does not. Raises DataError."""
    for name in {"date", "edit_date"} & set(batch.schema.names):
        ends = pc.min_max(batch.column(name).cast(pa.int64())).as_py()
        if ends["min"] is not None and not (ends["min"] >= FIRST_SECOND and ends["max"] <= LAST_SECOND):
            raise DataError(f"{where}: the column {name!r} has a time that lies outside the calendar")
