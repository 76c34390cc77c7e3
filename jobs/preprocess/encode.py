"""Second pass, in the workers: kept posts to tokens, and the measures of what is kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.preprocess.corpus import POST, Ints, Rows, write_arrow
from jobs.preprocess.measure import Measures, measure
from jobs.preprocess.tokenizer import encoder

TOKENS = pa.list_(pa.int32())
ENCODED = pa.schema([*POST, ("input_ids", TOKENS), ("cluster", pa.int64()), ("held_out", pa.bool_())])


@dataclass(frozen=True, slots=True)
class EncodeTask:
    """Posts to tokenise; ``number`` names the file. ``frame``: ids of the begin and end tokens."""

    number: int
    rows: Rows
    cluster: Ints
    held_out: NDArray[np.bool_]
    tokenizer: Path
    frame: tuple[int, int]
    lower: bool
    separator: str | None


@dataclass(slots=True)
class Encoded:
    """What became of it: one number a post, in order; months as YYYY-MM."""

    file: Path
    tokens: Ints
    measures: Measures
    line_counts: Ints
    months: Counter[str]
    changed: int


def encode_rows(task: EncodeTask) -> Encoded:
    """Tokenise, frame and write the posts."""
    table = task.rows.read(POST.names)
    texts: list[str] = table["text"].to_pylist()
    ids, sizes = encoder(task.tokenizer).encode_flat([t.lower() for t in texts] if task.lower else texts)
    sizes = sizes + 2
    offsets = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(sizes, out=offsets[1:])
    flat = np.empty(int(offsets[-1]), np.int32)
    within = np.ones(len(flat), bool)
    for places, token in ((offsets[:-1], task.frame[0]), (offsets[1:] - 1, task.frame[1])):
        flat[places] = token
        within[places] = False
    flat[within] = ids
    table = table.append_column("input_ids", pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)).cast(TOKENS))
    table = table.append_column("cluster", pa.array(task.cluster, pa.int64()))
    table = table.append_column("held_out", pa.array(task.held_out))
    path = task.rows.folder / f"encoded-{task.number:05d}.arrow"
    write_arrow(table.cast(ENCODED), path)
    measures, line_counts = measure(texts, task.separator)
    months = Counter("no date" if d is None else f"{d:%Y-%m}" for d in table["date"].to_pylist())
    changed = len(texts) - table["before"].null_count
    return Encoded(path, sizes, measures, line_counts, months, changed)
