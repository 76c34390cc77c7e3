"""Reading Parquet files that others may have written: whatever is wrong with one is a DataError that names it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow as pa

from jobs.specs import DataError


@contextlib.contextmanager
def reading(where: str, problem: str = "is no readable Parquet file") -> Iterator[None]:
    """Turn what pyarrow raises over a damaged or foreign file into a DataError: ``where``, ``problem``, pyarrow's word.

    For broken compression and broken headers that is an OSError without a number; the disk's own errors have one.
    """
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{where} {problem}: {' '.join(str(error).split())[:200]}") from error
