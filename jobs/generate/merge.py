"""All parts of a batch together: near-duplicates between parts, and the records in order.

Posts of one part are unlike each other already. Here the posts of all parts are gone through in the order
(round, index); a post that is alike to one kept before it is dropped, and ``lost`` names it so that it can be drawn
anew. The order does not depend on who made which part, so neither does the outcome.

What is kept of a post meanwhile lies in files of the working folder, mapped into memory: the band keys of its
MinHash signature (some 170 bytes) and where its line is. A hundred thousand posts need a few megabytes of memory.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.similarity import Banding, jaccard, normalise, shingle_many, shingles

_ROWS = np.dtype([("round", "<i4"), ("file", "<i4"), ("offset", "<i8"), ("index", "<i8"), ("attempts", "<i4")])
_BATCH = 2048


class Merge:
    """Near-duplicates among the posts of many JSON Lines files, and what is left in order.

    ``files``: (round, path) in the order of rounds and parts; within a round, indexes rise.
    """

    def __init__(self, files: Sequence[tuple[int, Path]], folder: Path, threshold: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [path for _, path in files]
        self._threshold = threshold
        self._banding = Banding.for_threshold(threshold)
        self._rows, self._keys = self._read(files, folder)
        self.kept: NDArray[np.bool_] = np.ones(len(self._rows), bool)
        self.dropped = self._drop(folder)

    def _read(self, files: Sequence[tuple[int, Path]], folder: Path) -> tuple[NDArray[Any], NDArray[np.uint64]]:
        rows_path, keys_path = folder / "rows.bin", folder / "keys.bin"
        with rows_path.open("wb") as rows_file, keys_path.open("wb") as keys_file:
            for number, (round_, path) in enumerate(files):
                rows: list[tuple[int, int, int, int, int]] = []
                texts: list[str] = []

                def flush(rows: list[tuple[int, int, int, int, int]], texts: list[str]) -> None:
                    rows_file.write(np.array(rows, _ROWS).tobytes())
                    keys_file.write(self._banding.keys(*shingle_many(texts)).tobytes())
                    rows.clear()
                    texts.clear()

                offset = 0
                with path.open("rb") as stream:
                    for line in stream:
                        post = json.loads(line)
                        rows.append((round_, number, offset, post["index"], post["attempts"]))
                        texts.append(normalise(post["text"]))
                        offset += len(line)
                        if len(rows) == _BATCH:
                            flush(rows, texts)
                if rows:
                    flush(rows, texts)
        if not rows_path.stat().st_size:
            return np.zeros(0, _ROWS), np.zeros((0, self._banding.bands), np.uint64)
        found = np.memmap(rows_path, _ROWS, "r")
        return found, np.memmap(keys_path, np.uint64, "r", shape=(len(found), self._banding.bands))

    def _drop(self, folder: Path) -> int:
        """Decide about all posts in order; returns how many were dropped."""
        count, bands = self._keys.shape
        if not count:
            return 0
        # For each band: posts ordered by key, where each post stands in that order, where its group begins.
        shape = (bands, count)
        order = np.memmap(folder / "order.bin", np.int32, "w+", shape=shape)
        place = np.memmap(folder / "place.bin", np.int32, "w+", shape=shape)
        group = np.memmap(folder / "group.bin", np.int32, "w+", shape=shape)
        has_earlier = np.zeros(count, bool)
        for band in range(bands):
            column = np.ascontiguousarray(self._keys[:, band])
            sorting = np.argsort(column, kind="stable")
            keys = column[sorting]
            begins = np.concatenate([[True], keys[1:] != keys[:-1]])
            starts = np.maximum.accumulate(np.where(begins, np.arange(count), 0))
            order[band] = sorting
            place[band, sorting] = np.arange(count)
            group[band, sorting] = starts
            has_earlier[sorting[~begins]] = True
        dropped = 0
        for number in np.flatnonzero(has_earlier).tolist():
            earlier: set[int] = set()
            for band in range(bands):
                before = order[band, group[band, number] : place[band, number]]
                if len(before):
                    earlier.update(before[self.kept[before]].tolist())
            if not earlier:
                continue
            own = self._shingles(number)
            if any(jaccard(own, self._shingles(other)) >= self._threshold for other in sorted(earlier)):
                self.kept[number] = False
                dropped += 1
        return dropped

    def _line(self, number: int) -> bytes:
        row = self._rows[number]
        with self._files[int(row["file"])].open("rb") as stream:
            stream.seek(int(row["offset"]))
            line: bytes = stream.readline()
        return line

    def _shingles(self, number: int) -> NDArray[np.uint64]:
        return shingles(json.loads(self._line(number))["text"])

    def lost(self) -> dict[int, int]:
        """Indexes whose post of the latest round was dropped, with the attempts that they have taken so far."""
        if not len(self._rows):
            return {}
        rounds = np.asarray(self._rows["round"])
        latest = np.flatnonzero((rounds == rounds.max()) & ~self.kept)
        wanted = {int(i): 0 for i in np.sort(np.asarray(self._rows["index"])[latest])}
        indexes, attempts = np.asarray(self._rows["index"]), np.asarray(self._rows["attempts"])
        for row in np.flatnonzero(np.isin(indexes, np.fromiter(wanted, np.int64, len(wanted)))).tolist():
            wanted[int(indexes[row])] += int(attempts[row])
        return wanted

    def lines(self) -> Iterator[bytes]:
        """The kept records in the order of their indexes."""
        rounds = np.asarray(self._rows["round"])
        streams = [self._of_round(r) for r in np.unique(rounds).tolist()]
        for _, line in heapq.merge(*streams, key=lambda item: item[0]):
            yield line

    def _of_round(self, round_: int) -> Iterator[tuple[int, bytes]]:
        numbers = np.flatnonzero((np.asarray(self._rows["round"]) == round_) & self.kept)
        current, stream = -1, None
        try:
            for number in numbers.tolist():
                row = self._rows[number]
                if row["file"] != current:
                    if stream is not None:
                        stream.close()
                    current = int(row["file"])
                    stream = self._files[current].open("rb")
                assert stream is not None
                stream.seek(int(row["offset"]))
                yield int(row["index"]), stream.readline()
        finally:
            if stream is not None:
                stream.close()
