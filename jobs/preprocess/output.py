"""Writing the dataset's files: posts, changed posts, excluded posts, blocks. Bytes depend on the rows alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.artifacts import ArtifactWriter
from jobs.preprocess.corpus import DROPPED, Rows, read_arrow
from jobs.preprocess.encode import TOKENS
from jobs.preprocess.packing import Tokens, cut, pack
from jobs.preprocess.tokenizer import TokenizerInfo, encoder
from jobs.streams import MIB

POSTS_A_FILE = 200_000
BLOCKS_A_FILE = 200_000
ROWS_A_CHUNK = 8192
#: A row group is written once it has so many rows or bytes, whatever comes first: posts may be of any length.
ROWS_A_GROUP, BYTES_A_GROUP = 4096, 64 * MIB
#: Columns that are the smaller for a dictionary; one of texts or tokens takes half of the time to write them.
REPEATING = frozenset({"channel", "rule"})
#: Pieces are packed in windows of so many tokens: memory stays bounded, and blocks hardly notice.
WINDOW_TOKENS = 8_000_000

POSTS = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("channel", pa.string(), nullable=False),
        pa.field("date", pa.timestamp("s", tz="UTC")),
        pa.field("text", pa.string(), nullable=False),
        pa.field("input_ids", TOKENS, nullable=False),
        pa.field("cluster", pa.int64(), nullable=False),
    ]
)
CHANGED = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("channel", pa.string(), nullable=False),
        pa.field("before", pa.string(), nullable=False),
        pa.field("after", pa.string(), nullable=False),
        pa.field("rules", pa.list_(pa.string()), nullable=False),
    ]
)
BLOCKS = pa.schema(
    [pa.field("input_ids", TOKENS, nullable=False), pa.field("lengths", pa.list_(pa.int32()), nullable=False)]
)


class ParquetFiles:
    """Tables to ``NAME-00000.parquet``, ``NAME-00001.parquet`` …, a new one after ``rows`` rows; at least one."""

    def __init__(
        self, writer: ArtifactWriter, name: str, schema: pa.Schema, rows: int, *, single: bool = False
    ) -> None:
        self._writer, self._name, self._schema, self._limit, self._single = writer, name, schema, rows, single
        self._stack = ExitStack()
        self._open: Any = None
        self._files = self._rows = 0
        self._waiting: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        """Add rows; they are written once there are enough of them for a row group."""
        self._waiting.append(table.cast(self._schema))
        rows, size = sum(t.num_rows for t in self._waiting), sum(t.nbytes for t in self._waiting)
        if rows >= ROWS_A_GROUP or size >= BYTES_A_GROUP:
            self._write()

    def _write(self) -> None:
        table = pa.concat_tables(self._waiting)
        self._waiting = []
        if self._open is None:
            path = f"{self._name}.parquet" if self._single else f"{self._name}-{self._files:05d}.parquet"
            sink = self._stack.enter_context(self._writer.open(path))
            dictionaries = sorted(REPEATING & set(self._schema.names))
            self._open = self._stack.enter_context(
                pq.ParquetWriter(
                    sink, self._schema, compression="zstd", compression_level=3, use_dictionary=dictionaries
                )
            )
            self._files += 1
        if table.num_rows:
            self._open.write_table(table, row_group_size=table.num_rows)
            self._rows += table.num_rows
        if self._rows >= self._limit and not self._single:
            self._close()

    def _close(self) -> None:
        self._stack.close()
        self._open, self._rows = None, 0

    def __enter__(self) -> ParquetFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            if self._waiting or not self._files:
                self._waiting = self._waiting or [self._schema.empty_table()]
                self._write()


@dataclass(slots=True)
class BlockStats:
    """What packing did on one side of the split."""

    posts: int = 0
    tokens: int = 0
    blocks: int = 0
    segments: int = 0
    cut_posts: int = 0
    cut_tokens: int = 0


class BlockWriter:
    """Packs framed posts into blocks, window by window."""

    def __init__(self, files: ParquetFiles, tokenizer: TokenizerInfo, size: int) -> None:
        self._files, self._tokenizer, self._size = files, tokenizer, size
        self._pieces: list[Tokens] = []
        self._waiting = 0
        self._newlines: Any = None
        self.stats = BlockStats()

    def add(self, posts: Iterable[Tokens]) -> None:
        """Add posts, in order."""
        for tokens in posts:
            count = len(tokens)
            self.stats.posts += 1
            self.stats.tokens += count
            if count > self._size:
                if self._newlines is None:
                    self._newlines = encoder(self._tokenizer.file).line_ends(self._tokenizer.vocab_size)
                self.stats.cut_posts += 1
                self.stats.cut_tokens += count
                self._pieces.extend(cut(tokens, self._size, self._newlines))
            else:
                self._pieces.append(tokens)
            self._waiting += count
            if self._waiting >= WINDOW_TOKENS:
                self.flush()

    def flush(self) -> None:
        """Pack and write what waits."""
        packed = pack(self._pieces, self._size)
        self.stats.blocks += len(packed.input_ids)
        self.stats.segments += len(self._pieces)
        for start in range(0, len(packed.input_ids), ROWS_A_CHUNK):
            ids = packed.input_ids[start : start + ROWS_A_CHUNK]
            lengths = packed.lengths[start : start + ROWS_A_CHUNK]
            columns = [_lists(ids), _lists([np.array(n, np.int32) for n in lengths])]
            self._files.add(pa.Table.from_arrays(columns, schema=BLOCKS))
        self._pieces, self._waiting = [], 0


def _lists(values: list[Tokens]) -> pa.ListArray:
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(v) for v in values], out=offsets[1:])
    flat = np.concatenate(values) if values else np.zeros(0, np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, pa.int32()))


class DatasetWriter:
    """Writes train, validation, changed and blocks out of the second pass's files, which come in order."""

    def __init__(self, writer: ArtifactWriter, tokenizer: TokenizerInfo, block_size: int) -> None:
        self._stack = ExitStack()

        def files(name: str, schema: pa.Schema, rows: int, *, single: bool = False) -> ParquetFiles:
            return self._stack.enter_context(ParquetFiles(writer, name, schema, rows, single=single))

        self._posts = {side: files(side, POSTS, POSTS_A_FILE) for side in ("train", "validation")}
        self._changed = files("changed", CHANGED, 0, single=True)
        self._blocks = {
            side: BlockWriter(files(f"blocks/{side}", BLOCKS, BLOCKS_A_FILE), tokenizer, block_size)
            for side in ("train", "validation")
        }

    @property
    def blocks(self) -> dict[str, BlockStats]:
        """By side of the split."""
        return {side: blocks.stats for side, blocks in self._blocks.items()}

    def add(self, path: Path) -> None:
        """Add a file of the second pass, and delete it."""
        table = read_arrow(path)
        held = table["held_out"]
        for side, mask in (("train", pc.invert(held)), ("validation", held)):
            part = table.filter(mask)
            self._posts[side].add(part.select(POSTS.names))
            self._blocks[side].add(_rows_of(part["input_ids"].combine_chunks()))
        changed = table.filter(table["before"].is_valid())
        columns = [changed[n] for n in ("id", "channel", "before", "text", "rules")]
        self._changed.add(pa.Table.from_arrays(columns, names=CHANGED.names))
        path.unlink()

    def finish(self) -> None:
        """Pack and write what waits, and complete the files."""
        with self._stack:
            for blocks in self._blocks.values():
                blocks.flush()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)  # which has nothing to do once the files are complete


def _rows_of(column: pa.Array) -> Iterator[Tokens]:
    if isinstance(column, pa.ChunkedArray):  # an empty table has no chunk to combine
        return
    offsets = column.offsets.to_numpy().tolist()
    flat = column.values.to_numpy()
    for start, stop in pairwise(offsets):
        yield flat[start:stop]


def write_excluded(
    writer: ArtifactWriter, dropped: Rows, *, rows: Rows, duplicates: Iterable[tuple[int, str, str]]
) -> Counter[str]:
    """Write ``excluded.parquet``: what the rules dropped, then the duplicates, each in the order of (channel, id).

    ``duplicates``: (number in ``rows``, rule, detail), ascending. Returns the posts of each rule.
    """
    counts: Counter[str] = Counter()
    waiting = iter(duplicates)
    with ParquetFiles(writer, "excluded", DROPPED, 0, single=True) as files:
        for piece in dropped.pieces(ROWS_A_CHUNK):
            table = dropped.part(piece).read(DROPPED.names)
            counts.update(table["rule"].to_pylist())
            files.add(table)
        while chunk := list(islice(waiting, ROWS_A_CHUNK)):
            left_out = rows.part(np.array([n for n, _, _ in chunk], np.int64))
            rules, details = pa.array([rule for _, rule, _ in chunk]), pa.array([detail for _, _, detail in chunk])
            counts.update(rules.to_pylist())
            for piece in left_out.pieces(ROWS_A_CHUNK):
                table = left_out.part(piece).read(["id", "channel", "before", "text"])
                raw = pc.coalesce(table["before"], table["text"])
                which = (piece.start, piece.stop - piece.start)
                columns = [table["id"], table["channel"], raw, rules.slice(*which), details.slice(*which)]
                files.add(pa.Table.from_arrays(columns, names=DROPPED.names))
    return counts
