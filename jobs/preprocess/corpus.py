"""The cleaned posts between the passes: Arrow files in a working folder, read by memory map at any row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Ints = NDArray[np.int64]
#: What is worked on at once: posts may be of any length, and what is made of them takes several times their bytes.
PIECE_BYTES = 16 * 1024 * 1024

_TIME = pa.timestamp("s", tz="UTC")
POST = pa.schema(
    [
        ("id", pa.int64()),
        ("channel", pa.string()),
        ("date", _TIME),
        ("text", pa.string()),
        ("before", pa.string()),  # null where the rules left the post as it was
        ("rules", pa.list_(pa.string())),
    ]
)
KEPT = POST.append(pa.field("plain", pa.string()))  # the text as it is compared, which three steps need
DROPPED = pa.schema(
    [
        ("id", pa.int64()),
        ("channel", pa.string()),
        ("text", pa.string()),
        ("rule", pa.string()),
        ("detail", pa.string()),
    ]
)


def write_arrow(table: pa.Table, path: Path) -> None:
    """Write a table so that it can be mapped: not compressed, one chunk."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


@lru_cache(maxsize=128)  # open files; a table that falls out stays valid as long as it is used
def read_arrow(path: Path) -> pa.Table:
    """Map a table."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def pieces(sizes: Ints, most: int) -> Iterator[slice]:
    """Items of these sizes in bytes, parted into pieces of at most ``most`` items and ``PIECE_BYTES``.

    An item that is larger by itself is a piece of its own.
    """
    ends = np.cumsum(sizes)
    start = 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        fitting = int(np.searchsorted(ends, before + PIECE_BYTES, "right"))
        stop = min(max(fitting, start + 1), start + most)
        yield slice(start, stop)
        start = stop


def text_bytes(table: pa.Table, columns: list[str]) -> Ints:
    """How many bytes the texts in some columns of each row have; shape (rows,)."""
    found = np.zeros(table.num_rows, np.int64)
    for name in columns:
        found += pc.fill_null(pc.binary_length(table[name]), 0).to_numpy()
    return found


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of the numbered files ``STEM-00000.arrow`` … of a folder, in an order of their own.

    ``sizes``: how many bytes the texts of each row have, all its columns together.
    """

    folder: Path
    stem: str
    files: Ints
    rows: Ints
    sizes: Ints

    def __len__(self) -> int:
        return len(self.files)

    def part(self, which: Ints | slice) -> Rows:
        """Some of these rows."""
        return Rows(self.folder, self.stem, self.files[which], self.rows[which], self.sizes[which])

    def pieces(self, most: int) -> Iterator[slice]:
        """These rows in their order, in pieces of at most ``most`` rows and ``PIECE_BYTES``; see ``pieces``."""
        return pieces(self.sizes, most)

    def read(self, columns: list[str]) -> pa.Table:
        """The rows' columns, in their order."""
        if not len(self.files):
            schema = KEPT if self.stem == "kept" else DROPPED
            return pa.schema([schema.field(c) for c in columns]).empty_table()
        order = np.argsort(self.files, kind="stable")
        files, starts = np.unique(self.files[order], return_index=True)
        bounds = [*starts.tolist(), len(order)]
        pieces = []
        for number, file in enumerate(files.tolist()):
            wanted = self.rows[order[bounds[number] : bounds[number + 1]]]
            table = read_arrow(self.folder / f"{self.stem}-{file:05d}.arrow").select(columns)
            pieces.append(table.take(pa.array(wanted)))
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_tables(pieces).combine_chunks().take(pa.array(back))

    def texts(self, column: str = "text") -> list[str]:
        """The rows' texts, or those of another column."""
        found: list[str] = self.read([column])[column].to_pylist()
        return found
