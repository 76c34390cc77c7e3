"""Files of a dataset as they are written: row groups of bounded size, nothing left open on errors."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.artifacts import ArtifactStore
from jobs.preprocess.output import BYTES_A_GROUP, CHANGED, ParquetFiles

REF = "dataset/" + "0" * 20


def changed(number: int, size: int) -> pa.Table:
    values = {"id": [number], "channel": ["bt"], "before": ["Ы" * size], "after": ["ы" * size], "rules": [["lines"]]}
    return pa.table(values, schema=CHANGED)


def test_few_long_posts_do_not_wait_for_many_rows(store: ArtifactStore, tmp_path: Path) -> None:
    writer = store.writer(REF)
    size = BYTES_A_GROUP // 16  # in characters of two bytes, twice: a quarter of a group
    with ParquetFiles(writer, "changed", CHANGED, 0, single=True) as files:
        for number in range(10):
            files.add(changed(number, size))
    writer.commit(stage="preprocess", spec={})
    store.download(REF, tmp_path, "changed.parquet")
    with pq.ParquetFile(tmp_path / "changed.parquet") as file:
        groups = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
        assert groups == [4, 4, 2]
        assert file.read(["id"])["id"].to_pylist() == list(range(10))


def test_an_error_at_the_end_ends_the_upload(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fails)
    with pytest.raises(MemoryError) as caught, ParquetFiles(store.writer(REF), "changed", CHANGED, 9) as files:
        files.add(changed(1, 5))
    assert caught.value is not None  # its frames hold the stream meanwhile
    assert not [t for t in threading.enumerate() if t.name == "upload stream"]
